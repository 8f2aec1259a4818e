"""Mean loss of each member, counted along with its hits."""

from typing import Any

import torch
from torch import Tensor

from icl_bench.kernels.arguments import check_shape
from icl_bench.kernels.backends import has_triton


def mean_losses(losses: Tensor, hits: Tensor, sums: Tensor) -> Tensor:
    """Means by member; adds them, and the means of the hits, to running sums in place.

    Args:
        losses: [M, R], differentiable.
        hits: [M, R].
        sums: Of losses and of hits, [2, M] float64.

    Returns:
        The mean losses [M].

    Raises:
        ArgumentError: A shape does not fit.
    """
    check_shape("hits", hits, tuple(losses.shape), "[M, R]")
    check_shape("sums", sums, (2, losses.shape[0]), "[2, M]")
    means: Tensor = MeanLosses.apply(losses, hits, sums)
    return means


class MeanLosses(torch.autograd.Function):
    """The means; the gradient of a loss is one number a member, which is not written out."""

    @staticmethod
    def forward(ctx: Any, losses: Tensor, hits: Tensor, sums: Tensor) -> Tensor:
        """One launch on a GPU."""
        ctx.shape = losses.shape
        if has_triton(losses) and losses.dtype == torch.float32:
            from icl_bench.kernels.cross_entropy.triton_api import mean_losses_triton

            return mean_losses_triton(losses, hits, sums)
        means = losses.mean(1)
        sums += torch.stack([means, hits.mean(1)])
        return means

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """A view of as many numbers as there are members."""
        return (gradient / ctx.shape[1])[:, None].expand(ctx.shape), None, None
