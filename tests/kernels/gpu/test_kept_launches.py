"""Kernels that keep their launches, on a device: a launch again has the bits of one through Triton."""

import pytest
import torch

pytest.importorskip("triton")
from triton.runtime.jit import JITFunction

from icl_bench.kernels.power.records import PowerInputs, PowerOptions
from icl_bench.kernels.power.triton import forward, key_gradient, query_gradient, state, tokens
from icl_bench.kernels.power.triton.ops import power_attention_triton
from icl_bench.kernels.triton import kept
from icl_bench.kernels.triton.kept import KeptKernel
from tests.kernels.numerics import assert_replays
from tests.kernels.power.power_oracle import Case

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
MODULES = forward, query_gradient, key_gradient, state, tokens
KERNELS = [x for module in MODULES for x in vars(module).values() if type(x) is KeptKernel]
CASES = [
    {"p": 1}, {"p": 2}, {"p": 2, "chunk": 128, "initial": True, "keep": True}, {"p": 2, "chunk": 300},
    {"p": 3, "normalize": "none", "chunk": 128, "key": 16}, {"p": 4, "key": 16, "chunk": 300},
]  # fmt: skip

OPTIONS = PowerOptions(p=2, scale=0.125, normalize="sum", eps=1e-6, chunk=128)


@pytest.fixture(autouse=True)
def forgotten():
    """Keep nothing from before a test."""
    for kernel in KERNELS:
        kernel.launches.clear()


def kept_launches() -> int:
    return sum(len(kernel.launches) for kernel in KERNELS)


def through_triton(case: Case, monkeypatch) -> list[torch.Tensor]:
    """Run a case without launches that are kept."""
    with monkeypatch.context() as patch:
        patch.setattr(KeptKernel, "run", JITFunction.run)
        return case.triton()


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("options", CASES, ids=str)
def test_launches_again_have_the_bits_of_launches_through_triton(options, gated, monkeypatch):
    case = Case(t=300, gated=gated, **options)
    wanted = through_triton(case, monkeypatch)
    assert kept_launches() == 0
    first, kept_then = case.triton(), kept_launches()
    again = case.triton()
    assert kept_then == kept_launches() > 0  # the second call had nothing to keep
    for right, one, other in zip(wanted, first, again, strict=True):
        assert torch.equal(one, right) and torch.equal(other, right)


def test_lengths_and_types_by_turns(monkeypatch):
    cases = [Case(t=t, chunk=128, dtype=dtype) for t in (100, 300, 301) for dtype in (torch.bfloat16, torch.float32)]
    wanted = [through_triton(case, monkeypatch) for case in cases]
    for _ in range(3):
        for case, right in zip(cases, wanted, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(case.triton(), right, strict=True))


def results(inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return the output for q, k, v and gates as they lie in memory, and the gradient of each."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    y, _ = power_attention_triton(PowerInputs(*leaves, None), OPTIONS, keep_state=False)
    return [y.detach(), *torch.autograd.grad(y, leaves, torch.ones_like(y))]


def test_places_that_are_no_multiple_of_16_bytes(monkeypatch):
    aligned = Case(t=300, chunk=128).inputs[:4]
    moved = [torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape) for x in aligned]
    assert all(x.data_ptr() % 16 for x in moved)
    for inputs in (aligned, moved, aligned, moved):
        found = results(inputs)
        with monkeypatch.context() as patch:
            patch.setattr(KeptKernel, "run", JITFunction.run)
            wanted = results(inputs)
        assert all(torch.equal(x, y) for x, y in zip(found, wanted, strict=True))


def test_kept_launches_are_captured_and_run_on_the_current_stream():
    inputs = Case(t=300, chunk=128).inputs[:4]
    wanted, known = results(inputs), kept_launches()
    assert_replays(lambda: results(inputs))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = results(inputs)
    stream.synchronize()
    assert kept_launches() == known and all(torch.equal(x, y) for x, y in zip(found, wanted, strict=True))


def test_more_lengths_than_are_kept(monkeypatch):
    monkeypatch.setattr(kept, "MOST_LAUNCHES", 3)
    for t in (100, 101, 102, 103, 104, 100):
        case = Case(t=t, chunk=128)
        wanted = through_triton(case, monkeypatch)
        assert all(torch.equal(x, y) for x, y in zip(case.triton(), wanted, strict=True))
        assert all(len(kernel.launches) <= 3 for kernel in KERNELS)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_launches_are_kept_for_a_device_of_their_own_that_is_not_the_current_one():
    case = Case(t=300, chunk=128)
    here = [case.triton(), case.triton()][-1]
    known, case.inputs = kept_launches(), [None if x is None else x.to("cuda:1") for x in case.inputs]
    with torch.cuda.device(0):
        there = [case.triton(), case.triton()][-1]
    assert kept_launches() == 2 * known
    for one, other in zip(here, there, strict=True):
        assert other.device == torch.device("cuda:1") and torch.equal(one.cpu(), other.cpu())
