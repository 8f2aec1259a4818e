"""Norms, short convolutions, look-ups and sums in Triton against their plain forms in float64."""

import os

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    # Read when the kernels are defined: it must be set before anything imports them.
    os.environ["TRITON_INTERPRET"] = "1"

from icl_bench.errors import ArgumentError  # noqa: E402
from icl_bench.kernels.fleet.convolution import gated_convolution, short_convolution  # noqa: E402
from icl_bench.kernels.fleet.embedding import embed  # noqa: E402
from icl_bench.kernels.fleet.gated_unit import gated_unit  # noqa: E402
from icl_bench.kernels.fleet.norm import add_rms_norm, rms_norm  # noqa: E402
from icl_bench.kernels.fleet.places import find_places  # noqa: E402
from icl_bench.kernels.fleet.rows import take_rows  # noqa: E402
from icl_bench.kernels.triton.parts import MOST_PARTS, add_parts  # noqa: E402
from tests.kernels.numerics import assert_within_rounding  # noqa: E402

TYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)


def assert_like_plain(function, inputs, walk=0.0) -> None:
    """Outputs and gradients within rounding of float64; `walk` bounds the terms that are summed into a gradient."""
    made = {}
    for name, dtype, impl in (("triton", None, "triton"), ("plain", None, "torch"), ("exact", torch.float64, "torch")):
        leaves = [part.detach().to(dtype or part.dtype).requires_grad_() for part in inputs]
        outs = function(*leaves, impl=impl)
        outs = outs if isinstance(outs, tuple) else (outs,)
        pulls = [draw(*out.shape, seed=7 + i).to(inputs[0].dtype).to(out.dtype) for i, out in enumerate(outs)]
        made[name] = [*outs, *torch.autograd.grad(outs, leaves, pulls)]
    for i, rows in enumerate(zip(made["triton"], made["exact"], made["plain"], strict=True)):
        assert_within_rounding(f"result {i}", *rows, walk=walk)


@TYPES
@pytest.mark.parametrize("shape", [(2, 3, 5, 12), (1, 1, 1, 1), (2, 70, 2, 64), (1, 3, 130)], ids=str)
def test_norm(shape, dtype):
    x, weight = draw(*shape, dtype=dtype), draw(shape[0], shape[-1], seed=1)
    assert_like_plain(rms_norm, [x, weight], walk=(x.numel() / x.shape[-1]) ** 0.5)


@TYPES
def test_norm_after_a_sum(dtype):
    x, y = draw(2, 3, 11, 20, dtype=dtype), draw(2, 3, 11, 20, dtype=dtype, seed=1)
    assert_like_plain(add_rms_norm, [x, y, draw(2, 20, seed=2)], walk=6.0)


@TYPES
def test_norm_and_its_input(dtype):
    inputs = [draw(2, 3, 11, 20, dtype=dtype), draw(2, 20, seed=2)]
    assert_like_plain(lambda x, weight, impl: add_rms_norm(x, None, weight, impl=impl), inputs, walk=6.0)


@TYPES
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize(("time", "width", "length"), [(7, 12, 3), (1, 5, 4), (40, 130, 4), (9, 16, 1), (12, 20, 9)])
def test_convolution(time, width, length, gated, dtype):
    inputs = [draw(2, 3, time, width, dtype=dtype), draw(2, length, width, dtype=dtype, seed=1)]
    inputs += [draw(2, 3, time, width, dtype=dtype, seed=2)] * gated
    assert_like_plain(short_convolution, inputs, walk=(6 * time) ** 0.5)


@TYPES
@pytest.mark.parametrize(("time", "width"), [(7, 12), (1, 5)])
def test_gated_convolution(time, width, dtype):
    inputs = [draw(2, 3, time, width, dtype=dtype), draw(2, 3, width, dtype=dtype, seed=1)]
    inputs.append(draw(2, width, width, dtype=dtype, seed=2))
    assert_like_plain(gated_convolution, inputs, walk=3 * (6 * time * width) ** 0.5)


def test_plain_convolution_is_differentiated_as_defined():
    inputs = [part.cpu().requires_grad_() for part in (draw(2, 2, 5, 3).double(), draw(2, 4, 3, seed=1).double())]
    assert torch.autograd.gradcheck(short_convolution, inputs)
    impulse = torch.zeros(1, 1, 6, 1)
    impulse[0, 0, 1] = 1.0
    answer = short_convolution(impulse, torch.tensor([[[2.0], [3.0], [5.0]]]))
    assert answer.flatten().tolist() == [0.0, 2.0, 3.0, 5.0, 0.0, 0.0]


@TYPES
@pytest.mark.parametrize("shape", [(2, 3, 7, 40), (1, 2), (5, 260)], ids=str)
def test_gated_unit(shape, dtype):
    assert_like_plain(gated_unit, [draw(*shape, dtype=dtype) * 3], walk=10.0)


@TYPES
@pytest.mark.parametrize(("words", "width"), [(5, 3), (16, 16), (70, 130)])
@pytest.mark.parametrize("known", [False, True])
def test_embedding(words, width, known, dtype):
    ids = torch.randint(words, (2, 5, 17), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    ids[0, 1:4] = words - 1  # one word far more often than the tile holds
    places = find_places(ids, words) if known else None
    run = lambda weight, impl: embed(ids, weight, places, impl=impl)  # noqa: E731
    assert_like_plain(run, [draw(2, words, width, dtype=dtype)], walk=ids[0].numel() ** 0.5)


def test_places_list_each_word_in_order():
    ids = torch.tensor([[[2, 0], [2, 5]], [[1, 1], [0, 1]]])
    places = find_places(ids, 6)
    assert places.order.tolist() == [[1, 0, 2, 3], [2, 0, 1, 3]]
    assert places.starts.tolist() == [[0, 1, 1, 3, 3, 3, 4], [0, 1, 4, 4, 4, 4, 4]]


@TYPES
@pytest.mark.parametrize(("time", "taken", "width"), [(7, 3, 12), (1, 1, 3), (130, 70, 20), (66, 5, 130)])
def test_rows(time, taken, width, dtype):
    positions = torch.randint(time, (2, 3, taken), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    positions[0, 0] = time - 1  # one row taken by all
    run = lambda x, impl: take_rows(x, positions, impl=impl)  # noqa: E731
    assert_like_plain(run, [draw(2, 3, time, width, dtype=dtype)], walk=taken**0.5)


@pytest.mark.parametrize("shape", [(2, 1, 5), (1, MOST_PARTS + 3, 3), (3, 20, 4, 70)], ids=str)
def test_parts_are_added(shape):
    partial = draw(*shape)
    found = add_parts(partial, torch.float32)
    # Partial sums grow to the root of their number, and their roundings add up as a random walk of as many steps.
    assert_within_rounding("sum", found, partial.double().sum(1), partial.sum(1), walk=shape[1])
    assert torch.equal(add_parts(partial, torch.float16), found.half())


def test_shapes_are_checked():
    with pytest.raises(ArgumentError, match="weight must be"):
        rms_norm(draw(2, 3, 4), draw(2, 3))
    with pytest.raises(ArgumentError, match="even number of columns"):
        gated_unit(draw(2, 3))
    with pytest.raises(ArgumentError, match=r"positions \[M, B, S\]"):
        take_rows(draw(1, 2, 3, 4), torch.zeros(2, 2, 3, dtype=torch.int64))
    with pytest.raises(ArgumentError, match="gate must be"):
        short_convolution(draw(1, 2, 3, 4), draw(1, 2, 4), draw(1, 2, 3, 5))
