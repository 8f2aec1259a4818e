"""Kernels that are compiled ahead: what is missing is compiled once, in other processes, and nothing is launched."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

KERNELS = """
import triton
import triton.language as tl

@triton.jit
def double_kernel(x, y, count, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + index, 2 * tl.load(x + index, mask=index < count), mask=index < count)
"""
PROGRAM = """
import torch
import triton
from triton.backends.compiler import GPUTarget

from icl_bench.harness.training.ahead import LISTS, compile_ahead
from own_kernels import double_kernel

class Hopper:
    stream = 7
    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)
    def get_current_device(self):
        return 0
    def get_current_stream(self, device=0):
        return self.stream

def work():
    x = torch.ones(64)
    for block in (32, 64, 32):
        double_kernel[(2,)](x, torch.empty(64), 64, BLOCK=block)

if __name__ == "__main__":
    triton.runtime.driver.set_active(Hopper())
    print(compile_ahead(work, 1), compile_ahead(work, 2), compile_ahead(work, 2), LISTS)
    kernel = double_kernel.warmup(torch.ones(64), torch.ones(64), 64, BLOCK=32, grid=(2,))
    print(type(kernel).__name__, len(double_kernel.device_caches[0][0]))
"""


def test_missing_kernels_are_compiled_once_and_nothing_is_launched(tmp_path: Path) -> None:
    """A launch would fail, since no driver is there; two constants make two kernels."""
    (tmp_path / "own_kernels.py").write_text(KERNELS)
    (tmp_path / "program.py").write_text(PROGRAM)
    path = os.pathsep.join([str(tmp_path), *sys.path])
    own = {"PYTHONPATH": path, "TRITON_CACHE_DIR": str(tmp_path / "cache"), "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, str(tmp_path / "program.py")],
        env=os.environ | own,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.splitlines() == ["0 2 0 {}", "CompiledKernel 1"], done.stderr
    assert len(list((tmp_path / "cache").glob("*/double_kernel.cubin"))) == 2
