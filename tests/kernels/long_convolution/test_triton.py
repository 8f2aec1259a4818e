"""The Triton long convolution in Triton's interpreter, at small sizes; on a device where there is one."""

import pytest
import torch

from icl_bench.errors import KernelUnavailableError
from icl_bench.kernels.long_convolution.api import long_convolution
from tests.kernels.long_convolution.convolution_oracle import (
    assert_close_to_exact,
    convolution_case,
    results,
)
from tests.kernels.numerics import poison

# Sums of up to 200 terms that cancel in part, each rounded to 6e-8.
FLOAT32_BOUND = 1e-5


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    poison(monkeypatch)


@pytest.mark.parametrize("t", [1, 7, 15, 16, 17, 63, 64, 65, 130], ids="T{}".format)
def test_output_and_gradients_are_those_of_the_definition(t):
    assert_close_to_exact(convolution_case(t, batch=1, extra=3), "triton", FLOAT32_BOUND)


@pytest.mark.parametrize("members, batch, channels", [(3, 5, 2), (1, 70, 1), (1, 1, 66)])
def test_any_number_of_members_sequences_and_channels(members, batch, channels):
    case = convolution_case(20, members=members, batch=batch, channels=channels)
    assert_close_to_exact(case, "triton", FLOAT32_BOUND)


@pytest.mark.parametrize("t", [33, 65, 200], ids="T{}".format)
def test_half_types_round_inputs_and_outputs_alone(t):
    """The interpreter multiplies bfloat16 wrongly, so float16 stands for both here."""
    assert_close_to_exact(convolution_case(t, dtype=torch.float16), "triton", torch.finfo(torch.float16).eps)


def test_cached_tokens_come_first():
    assert_close_to_exact(convolution_case(9, past=10), "triton", FLOAT32_BOUND)


def test_views_of_wider_tensors_are_read_in_place():
    """Tokens around the sequences, and channels beside theirs, are NaN: nothing of them is read."""
    case = convolution_case(20)
    wide = torch.full((4, 23, 5), torch.nan, device=case["u"].device)
    wide[:, 1:-2, 1:-1] = case["u"]
    views = case | {"u": wide[:, 1:-2, 1:-1]}
    assert torch.equal(long_convolution(**views, impl="triton"), long_convolution(**case, impl="triton"))
    assert_close_to_exact(views, "triton", FLOAT32_BOUND)


def test_later_tokens_change_no_bit_of_earlier_outputs():
    case = convolution_case(70, members=1, batch=1)
    before = long_convolution(**case, impl="triton")
    changed = case["u"].clone()
    changed[:, 66:] -= 1.0
    assert torch.equal(long_convolution(changed, case["filters"], impl="triton")[:, :66], before[:, :66])


def test_gradients_are_the_same_bits_again():
    case = convolution_case(40)
    first, second = results(case, "triton"), results(case, "triton")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_operators_are_sound(monkeypatch):
    monkeypatch.undo()  # torch's own fake tensors use torch.empty too
    names = ("test_schema", "test_autograd_registration", "test_faketensor")
    leaves = tuple(x.requires_grad_() for x in convolution_case(9, extra=2).values())
    torch.library.opcheck(torch.ops.icl_bench.long_convolution_forward.default, leaves, test_utils=names)


def test_traces_without_a_break(monkeypatch):
    monkeypatch.undo()
    leaves = [x.requires_grad_() for x in convolution_case(9).values()]
    traced = torch.compile(lambda *x: long_convolution(*x, impl="triton"), fullgraph=True, backend="aot_eager")
    y, wanted = traced(*leaves), long_convolution(*leaves, impl="triton")
    gradients = (torch.autograd.grad(out.sum(), leaves) for out in (y, wanted))
    assert torch.equal(y, wanted) and all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_refuses_what_it_cannot_run():
    with pytest.raises(KernelUnavailableError, match="impl='triton'"):
        long_convolution(**convolution_case(4, dtype=torch.float64), impl="triton")
