"""Gradients are added up over ranks bucket by bucket, while the backward pass goes on."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from icl_bench.harness.training import gradient_sums
from icl_bench.harness.training.gradient_sums import GradientSums, buckets_of
from icl_bench.kernels.fleet.layout import ParameterLayout

SHAPES = [(1, 3), (1, 4, 2), (1, 5), (1, 2, 6)]
LAYOUT = ParameterLayout(1, tuple(torch.Size(shape).numel() for shape in SHAPES), (), 4)


class Twins:
    """Ranks of which the other one has the same gradients; keeps what it was asked for, in order."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def begin_to_add(self, values: Tensor) -> Callable[[], None]:
        self.events.append(f"add {values.numel()}")
        return lambda: (self.events.append("end"), values.mul_(2))[0]


@pytest.mark.parametrize(("least", "cuts"), [(1, [1, 1, 1, 1]), (40, [1, 2, 1]), (1 << 20, [4])])
def test_buckets_are_neighbours_from_the_end_on(least: int, cuts: list[int]) -> None:
    flat = torch.arange(float(LAYOUT.elements))
    buckets = buckets_of(LAYOUT, flat, least)
    assert [bucket.end - bucket.first for bucket in buckets] == cuts
    assert torch.equal(torch.cat([bucket.values for bucket in reversed(buckets)]), flat)
    assert all(bucket.values.nbytes >= least for bucket in buckets[:-1])


def test_sums_begin_while_the_pass_goes_on_and_have_ended_after_it(monkeypatch) -> None:
    """The loss does not depend on the third parameter, whose bucket waits for the end of the pass."""
    monkeypatch.setattr(gradient_sums, "BUCKET_BYTES", 1)
    torch.manual_seed(0)
    working = [torch.randn(shape, requires_grad=True) for shape in SHAPES]
    flat, ranks = torch.full((LAYOUT.elements,), 7.0), Twins()
    hidden = working[0].sum() * working[1].sum()
    hidden.register_hook(lambda gradient: ranks.events.append("first layers"))
    loss = (hidden * working[3]).square().sum()

    def differentiate() -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss, working, materialize_grads=True)

    expected = torch.autograd.grad(loss, working, retain_graph=True, allow_unused=True)
    ranks.events.clear()
    views = LAYOUT.views(flat, [torch.Size(shape) for shape in SHAPES])
    GradientSums(ranks, LAYOUT, flat, views).add_arriving(working, differentiate)
    assert ranks.events[:2] == ["add 12", "first layers"] and ranks.events[-4:] == ["end"] * 4
    assert sorted(ranks.events[2:5]) == ["add 4", "add 8", "add 8"]
    for view, gradient in zip(views, expected, strict=True):
        assert torch.equal(view, torch.zeros_like(view) if gradient is None else 2 * gradient)
    assert not any(tensor._backward_hooks for tensor in working)
