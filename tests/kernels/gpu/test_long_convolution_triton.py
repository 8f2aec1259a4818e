"""The Triton long convolution on the device: every type, lengths around the blocks, far offsets, graphs."""

import pytest
import torch

from icl_bench.kernels.long_convolution.api import long_convolution
from tests.kernels.long_convolution.convolution_oracle import assert_close_to_exact, convolution_case, results
from tests.kernels.numerics import assert_replays, poison

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

LENGTHS = [1, 7, 15, 16, 17, 63, 64, 65, 255, 1000, 4097]
# Half types round outputs. The error of one is at most eps / 2 (3.9e-3 in bfloat16), that of many in the mean square
# .42 of it (1.66e-3); a few may lie anywhere between. Filters keep 16 bits beside bfloat16 inputs, 10 beside float16.
BOUNDS = {torch.bfloat16: 2e-3, torch.float16: 1e-3, torch.float32: 1e-5}
FEW_BOUNDS = {torch.bfloat16: 2**-8 + 2**-16, torch.float16: 2**-11 + 2**-10, torch.float32: 1e-5}
FEW_TOKENS = 10
"""Tokens up to which a case has under a hundred and twenty outputs."""
TYPES = pytest.mark.parametrize("dtype", BOUNDS, ids=str)


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    poison(monkeypatch)


@TYPES
@pytest.mark.parametrize("t", LENGTHS, ids="T{}".format)
def test_output_and_gradients_match_the_definition(t, dtype):
    bound = (FEW_BOUNDS if t <= FEW_TOKENS else BOUNDS)[dtype]
    assert_close_to_exact(convolution_case(t, batch=3, channels=2, extra=5, dtype=dtype), "triton", bound)


@TYPES
@pytest.mark.parametrize("batch", [1, 16, 33, 64, 65, 128, 200])
def test_any_number_of_sequences(batch, dtype):
    case = convolution_case(150, batch=batch, channels=20, past=7, dtype=dtype)
    assert_close_to_exact(case, "triton", BOUNDS[dtype])


def test_more_sequences_than_a_grid_axis_holds():
    n = 70_000
    case = convolution_case(5, members=2, batch=2)
    many = case["u"].repeat_interleave(n // 4, 0).requires_grad_()
    y = long_convolution(many, case["filters"], impl="triton")
    wanted = long_convolution(**case, impl="triton").repeat_interleave(n // 4, 0)
    torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-5)  # tiles of other sizes add in another order
    (found,) = torch.autograd.grad(y.sum(), many)
    assert torch.equal(found[0], found[n // 2 - 1]) and torch.equal(found[-1], found[n // 2])


@pytest.mark.memory(30, in_turn=True)
def test_offsets_beyond_32_bits(monkeypatch):
    monkeypatch.undo()
    n, t, c = 2100, 1024, 1024
    generator = torch.Generator("cuda").manual_seed(0)
    u = torch.randn(n, t, c, device="cuda", dtype=torch.bfloat16, generator=generator).requires_grad_()
    filters = torch.randn(1, c, t, device="cuda", generator=generator)
    y = long_convolution(u, filters, impl="triton")
    alone = u[-128:].detach().requires_grad_()
    wanted = long_convolution(alone, filters, impl="triton")
    assert torch.equal(y[-128:], wanted)
    along = torch.randn(1, t, c, device="cuda", dtype=torch.bfloat16, generator=generator)
    (found,) = torch.autograd.grad(y, u, along.expand(n, t, c))
    (exact,) = torch.autograd.grad(wanted, alone, along.expand(128, t, c))
    assert torch.equal(found[-128:], exact)


def test_gradients_are_the_same_bits_again():
    case = convolution_case(300, batch=90, channels=70, dtype=torch.bfloat16)
    first, second = results(case, "triton"), results(case, "triton")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_captured_graph_gives_the_same_bits():
    u, filters = (x.requires_grad_() for x in convolution_case(100, channels=40).values())

    def step():
        return torch.autograd.grad(long_convolution(u, filters, impl="triton").square().sum(), (u, filters))

    assert_replays(step)


def test_compiles_without_a_break(monkeypatch):
    monkeypatch.undo()  # torch's own fake tensors use torch.empty too
    leaves = [x.requires_grad_() for x in convolution_case(100, channels=40).values()]
    compiled = torch.compile(lambda *x: long_convolution(*x, impl="triton"), fullgraph=True, backend="aot_eager")
    y, wanted = compiled(*leaves), long_convolution(*leaves, impl="triton")
    torch.testing.assert_close(y, wanted)
    found, exact = (torch.autograd.grad(out.sum(), leaves) for out in (y, wanted))
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
def test_tensors_of_a_device_that_is_not_the_current_one():
    case = convolution_case(50, channels=20)
    y = long_convolution(**{name: x.to("cuda:1") for name, x in case.items()}, impl="triton")
    assert y.device.index == 1 and torch.equal(y.cpu(), long_convolution(**case, impl="triton").cpu())
