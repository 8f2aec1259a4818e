"""Gradient descent of inner models against its definition in float64."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from icl_bench.errors import ArgumentError, KernelUnavailableError
from icl_bench.kernels.fleet.inner_descent import InnerLayer, InnerNorm, inner_descent, widest_keys
from tests.kernels.numerics import assert_within_tf32, draw


def operands(members: int, batch: int, time: int, heads: int, width: int, dtype: torch.dtype) -> list[Tensor]:
    q, k, v = (0.7 * draw(members, batch, time, heads, width, dtype=dtype, seed=i) for i in range(3))
    rates, factors = draw(members, batch, time, heads, seed=3).sigmoid() / width, draw(members, 16, seed=4).abs() / 4
    weight, bias = 0.3 * draw(members, 1, heads, width, width, seed=5), 0.3 * draw(members, 1, heads, 1, width, seed=6)
    gain, shift = 1 + 0.3 * draw(members, 1, heads, 1, width, seed=7), 0.3 * draw(members, 1, heads, 1, width, seed=8)
    return [q, k, v, rates, factors, weight, bias, gain, shift]


def descend(*given: Tensor, impl: str) -> Tensor:
    q, k, v, rates, factors, weight, bias, gain, shift = given
    return inner_descent(q, k, v, rates, factors, ((InnerLayer(weight, bias),), InnerNorm(gain, shift)), impl=impl)


DEPTH = {1: 4, 2: 6}
"""Products one behind the other in a minibatch, by layers: the model of keys and of queries, there and back."""


@pytest.mark.parametrize(("time", "heads", "width"), [(35, 2, 6), (1, 1, 16), (32, 1, 20), (17, 2, 64), (17, 1, 128)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_inner_descent(time, heads, width, dtype):
    assert_within_tf32(descend, operands(2, 2, time, heads, width, dtype), DEPTH[1])


def descend_network(*given: Tensor, impl: str) -> Tensor:
    q, k, v, rates, factors, first, first_bias, second, second_bias, gain, shift = given
    layers = (InnerLayer(first, first_bias), InnerLayer(second, second_bias))
    return inner_descent(q, k, v, rates, factors, (layers, InnerNorm(gain, shift)), impl=impl)


def network_operands(batch: int, time: int, heads: int, width: int, dtype: torch.dtype) -> list[Tensor]:
    q, k, v, rates, factors, _, _, gain, shift = operands(2, batch, time, heads, width, dtype)
    scale = 0.3 * min(1.0, (16 / width) ** 0.5)  # wide keys would reach values of which the interpreter has no exp
    layers = [
        scale * draw(2, 1, heads, *shape, seed=10 + i)
        for i, shape in enumerate([(width, 4 * width), (1, 4 * width), (4 * width, width), (1, width)])
    ]
    return [q, k, v, rates, factors, *layers, gain, shift]


NETWORKS = [(2, 35, 2, 6), (2, 1, 1, 16), (2, 32, 1, 32), (1, 33, 1, 64), (1, 17, 1, 128)]
"""Batch, tokens, heads and width; the interpreter takes 20 s for a batch of two with wide keys."""


@pytest.mark.parametrize(("batch", "time", "heads", "width"), NETWORKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_inner_descent_of_a_network(batch, time, heads, width, dtype):
    assert_within_tf32(descend_network, network_operands(batch, time, heads, width, dtype), DEPTH[2])


def test_a_network_whose_gradients_nobody_wants_gives_the_same_bits():
    given = [part.requires_grad_() for part in network_operands(2, 52, 1, 8, torch.bfloat16)]
    with torch.no_grad():
        alone = descend_network(*given, impl="triton")
    assert torch.equal(alone, descend_network(*given, impl="triton"))


@pytest.mark.parametrize("layers", [1, 2])
def test_gradients_are_as_exact_for_small_ones(layers):
    given = operands(1, 2, 20, 1, 8, torch.bfloat16) if layers == 1 else network_operands(2, 20, 1, 8, torch.bfloat16)
    given = [part.requires_grad_() for part in given]
    y = (descend if layers == 1 else descend_network)(*given, impl="triton")
    upstream, small = draw(*y.shape, dtype=y.dtype, seed=20), 2.0**-30
    large = torch.autograd.grad(y, given, upstream, retain_graph=True)
    assert all(map(torch.equal, torch.autograd.grad(y, given, small * upstream), [small * part for part in large]))


@pytest.mark.filterwarnings("ignore:overflow encountered in exp2")
@pytest.mark.parametrize("layers", [1, 2])
def test_steps_of_large_tokens_are_exact(layers):
    """Factors of gradients grow with the square of tokens; float16 ends at 65,504."""
    if layers == 1:
        q, k, *others = operands(1, 1, 36, 1, 16, torch.bfloat16)
        assert_within_tf32(descend, [64 * q, 64 * k, *others], DEPTH[1])
    else:
        q, k, *others = network_operands(1, 40, 1, 32, torch.bfloat16)
        assert_within_tf32(descend_network, [16 * q, 16 * k, *others], DEPTH[2])


def test_shapes_are_checked():
    given = operands(1, 2, 5, 2, 4, torch.float32)
    with pytest.raises(ArgumentError, match="rates must be"):
        descend(*given[:3], given[3][:, :, 1:], *given[4:], impl="torch")
    with pytest.raises(ArgumentError, match="factors must be"):
        descend(*given[:4], given[4][:, 1:], *given[5:], impl="torch")


def test_kernels_refuse_what_they_do_not_take():
    given = operands(1, 1, 2, 1, 130, torch.float32)
    with pytest.raises(KernelUnavailableError, match="got K=130 and 1 layers"):
        descend(*given, impl="triton")
    q, k, v, rates, factors, weight, bias, gain, shift = operands(1, 1, 2, 1, 4, torch.float32)
    model = ((InnerLayer(weight, bias),) * 3, InnerNorm(gain, shift))
    with pytest.raises(KernelUnavailableError, match="got K=4 and 3 layers"):
        inner_descent(q, k, v, rates, factors, model, impl="triton")


def test_wide_keys_need_the_shared_memory_of_hopper(monkeypatch):
    cards = {"cuda:0": 228 << 10, "cuda:1": 100 << 10}
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda device: SimpleNamespace(shared_memory_per_multiprocessor=cards[str(device)]),
    )
    assert [widest_keys(torch.device(name)) for name in ("cpu", *cards)] == [128, 128, 64]
