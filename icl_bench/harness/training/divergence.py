"""Mean loss of each member, counted along with its hits, and watched: a loss that explodes ends its member."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from icl_bench.kernels.arguments import check_shape
from icl_bench.kernels.backends import has_triton

TIMES, PLUS, PATIENCE = 10.0, 10.0, 50
"""A loss above TIMES its first + PLUS for PATIENCE steps in a row has exploded."""


class Watch(NamedTuple):
    """What is kept of the losses of a fleet; all of it is written in place."""

    sums: Tensor
    """Of mean losses and of mean hits over the steps, [2, M] float64."""
    course: Tensor
    """The first mean loss (-1 before it), and how many steps in a row the loss has been too high, [2, M] float32."""


def make_watch(members: int, device: torch.device) -> Watch:
    """Before the first step."""
    course = torch.zeros(2, members, device=device)
    course[0] = -1.0
    return Watch(torch.zeros(2, members, device=device, dtype=torch.float64), course)


def mean_losses(losses: Tensor, hits: Tensor, watch: Watch) -> Tensor:
    """Means by member, infinite where the losses of a member have exploded; counts them in place.

    Args:
        losses: [M, R], differentiable.
        hits: [M, R].
        watch: What is kept.

    Returns:
        The mean losses [M]. The gradient of an infinite one is that of the mean.

    Raises:
        ArgumentError: A shape does not fit.
    """
    check_shape("hits", hits, tuple(losses.shape), "[M, R]")
    check_shape("sums", watch.sums, (2, losses.shape[0]), "[2, M]")
    means: Tensor = MeanLosses.apply(losses, hits, *watch)
    return means


class MeanLosses(torch.autograd.Function):
    """The means; the gradient of a loss is one number a member, which is not written out."""

    @staticmethod
    def forward(ctx: Any, losses: Tensor, hits: Tensor, sums: Tensor, course: Tensor) -> Tensor:
        """One launch on a GPU."""
        ctx.shape = losses.shape
        if has_triton(losses) and losses.dtype == torch.float32:
            from icl_bench.kernels.fleet.triton.cross_entropy import mean_losses_triton

            return mean_losses_triton(losses, hits, sums, course, (TIMES, PLUS, PATIENCE))
        means = losses.mean(1)
        sums += torch.stack([means, hits.mean(1)])
        first, above = course
        first.copy_(torch.where(first < 0, means, first))
        above.add_(1).mul_(means > TIMES * first + PLUS)
        return means.masked_fill(above >= PATIENCE, torch.inf)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """A view of as many numbers as there are members."""
        return (gradient / ctx.shape[1])[:, None].expand(ctx.shape), None, None, None
