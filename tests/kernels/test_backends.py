"""Tests of the choice of Triton, and of the preparation of kernels in several threads."""

import threading
import time
from typing import Any

import pytest
import torch

from icl_bench.errors import KernelUnavailableError
from icl_bench.kernels.backends import prepare_in_turn, takes_triton
from icl_bench.kernels.fleet.norm import rms_norm
from tests.kernels.numerics import draw


def test_triton_is_not_taken_for_float64_though_it_is_asked_for() -> None:
    x = draw(2, 4, dtype=torch.float64)
    assert not takes_triton("auto", x)
    with pytest.raises(KernelUnavailableError, match="impl='triton' takes float32, bfloat16 and float16; got float64"):
        rms_norm(x, draw(2, 4, dtype=torch.float64), impl="triton")


def test_threads_take_turns_to_prepare_kernels_and_see_them_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = pytest.importorskip("triton.compiler")
    kind = compiler.CompiledKernel
    under_way: list[Any] = []
    most = []

    def make_ready(kernel: Any) -> None:
        under_way.append(kernel)
        most.append(len(under_way))
        kernel._run = kernel.name  # Triton sets the launcher first
        time.sleep(0.01)
        kernel.function = kernel.name
        under_way.remove(kernel)

    monkeypatch.setattr(kind, "_init_handles", make_ready)
    monkeypatch.setattr(kind, "run", kind.run)
    monkeypatch.delattr(kind, "prepared_in_turn", raising=False)
    kernels = [kind.__new__(kind) for _ in range(2)]
    for name, kernel in enumerate(kernels):
        kernel.name, kernel.module, kernel.function, kernel._run = name, None, None, None
    prepare_in_turn()
    prepare_in_turn()  # once is enough
    seen: list[tuple[Any, Any, int]] = []
    threads = [threading.Thread(target=lambda k=k: seen.append((k.run, k.function, k.name))) for k in kernels * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    del kind.prepared_in_turn
    assert len(seen) == 6
    assert all(launcher == function == name for launcher, function, name in seen)
    assert max(most) == 1
