"""Gradient descent of inner models against its definition in float64."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from icl_bench.errors import ArgumentError
from icl_bench.kernels.fleet.inner_descent import InnerLayer, InnerNorm, inner_descent
from tests.kernels.numerics import assert_forms_match_reference, draw


def operands(members: int, batch: int, time: int, heads: int, width: int, dtype: torch.dtype) -> list[Tensor]:
    q, k, v = (0.7 * draw(members, batch, time, heads, width, dtype=dtype, seed=i) for i in range(3))
    rates, factors = draw(members, batch, time, heads, seed=3).sigmoid() / width, draw(members, 16, seed=4).abs() / 4
    weight, bias = 0.3 * draw(members, 1, heads, width, width, seed=5), 0.3 * draw(members, 1, heads, 1, width, seed=6)
    gain, shift = 1 + 0.3 * draw(members, 1, heads, 1, width, seed=7), 0.3 * draw(members, 1, heads, 1, width, seed=8)
    return [q, k, v, rates, factors, weight, bias, gain, shift]


def descend(*given: Tensor, impl: str) -> Tensor:
    q, k, v, rates, factors, weight, bias, gain, shift = given
    return inner_descent(q, k, v, rates, factors, ((InnerLayer(weight, bias),), InnerNorm(gain, shift)), impl=impl)


def assert_within_tf32(function: Callable[..., Tensor], inputs: Sequence[Tensor], layers: int) -> None:
    """Outputs and gradients of "triton" err, by their Frobenius norms, as products in tf32 one behind the other do.

    Tokens in half precision are exact operands; the other ones are cut to 10 bits, both of them at most, in the model
    of keys and of queries, there and back.
    """
    bound, made = 2 * (2 + 2 * layers) * 2**-10, []
    for impl in ("triton", "reference"):
        leaves = [
            part.detach().to(torch.float64 if impl == "reference" else part.dtype).requires_grad_() for part in inputs
        ]
        y = function(*leaves, impl=impl)
        along = draw(*y.shape, seed=7).to(inputs[0].dtype).to(y.dtype)
        made.append([y, *torch.autograd.grad(y, leaves, along)])
    for i, (found, exact) in enumerate(zip(*made, strict=True)):
        error = float((found.detach().double() - exact.detach()).norm() / exact.detach().norm())
        assert error <= bound, f"result {i}: {error:.3g} over {bound:.3g}"


@pytest.mark.parametrize(("time", "heads", "width"), [(35, 2, 6), (1, 1, 16), (32, 1, 20), (17, 2, 64)])
def test_inner_descent(time, heads, width):
    assert_forms_match_reference(descend, operands(2, 2, time, heads, width, torch.float32))
    assert_within_tf32(descend, operands(2, 2, time, heads, width, torch.bfloat16), 1)


def descend_network(*given: Tensor, impl: str) -> Tensor:
    q, k, v, rates, factors, first, first_bias, second, second_bias, gain, shift = given
    layers = (InnerLayer(first, first_bias), InnerLayer(second, second_bias))
    return inner_descent(q, k, v, rates, factors, (layers, InnerNorm(gain, shift)), impl=impl)


@pytest.mark.parametrize(("time", "heads", "width"), [(35, 2, 6), (1, 1, 16), (32, 1, 32)])
def test_inner_descent_of_a_network(time, heads, width):
    layers = [
        0.3 * draw(2, 1, heads, *shape, seed=10 + i)
        for i, shape in enumerate([(width, 4 * width), (1, 4 * width), (4 * width, width), (1, width)])
    ]
    for dtype in (torch.float32, torch.bfloat16):
        q, k, v, rates, factors, _, _, gain, shift = operands(2, 2, time, heads, width, dtype)
        given = [q, k, v, rates, factors, *layers, gain, shift]
        if dtype == torch.float32:
            assert_forms_match_reference(descend_network, given)
        else:
            assert_within_tf32(descend_network, given, 2)


def test_shapes_are_checked():
    given = operands(1, 2, 5, 2, 4, torch.float32)
    with pytest.raises(ArgumentError, match="rates must be"):
        descend(*given[:3], given[3][:, :, 1:], *given[4:], impl="torch")
    with pytest.raises(ArgumentError, match="factors must be"):
        descend(*given[:4], given[4][:, 1:], *given[5:], impl="torch")
