"""Mean loss of each member over its rows, added to running sums; infinite once it has been too high for too long.

mean_m = sum_r losses_mr / R,   infinite once mean_m > factor first_m + margin for `patience` steps in a row
"""

from typing import NamedTuple

import torch
from torch import Tensor

from icl_bench.kernels.arguments import check_shape
from icl_bench.kernels.backends import FleetImpl, takes_triton


class LossLimit(NamedTuple):
    """The limit above which a loss counts as too high: factor times the first loss, plus margin."""

    factor: float
    margin: float
    patience: int
    """Steps in a row above the limit after which the mean becomes infinite."""


@torch.no_grad()
def monitored_means(
    losses: Tensor, hits: Tensor, sums: Tensor, history: Tensor, limit: LossLimit, *, impl: FleetImpl = "auto"
) -> Tensor:
    """Return the mean losses, without a gradient, and count them in place: losses and hits [M, R] -> [M].

    `sums`, [2, M] float64, are running sums of the mean losses and of the mean hits; `history`, [2, M] float32, is the
    first mean loss (-1 before it) and the number of steps in a row above the limit. "reference" is the same as "torch".
    """
    check_shape("hits", hits, tuple(losses.shape), "[M, R]")
    for name, part in (("sums", sums), ("history", history)):
        check_shape(name, part, (2, losses.shape[0]), "[2, M]")
    if takes_triton(impl, losses):
        from icl_bench.kernels.fleet.triton.monitored_means import monitored_means_triton

        return monitored_means_triton(losses, hits, sums, history, limit)
    means = losses.mean(1)
    sums += torch.stack([means, hits.mean(1)])
    first, above = history
    first.copy_(torch.where(first < 0, means, first))
    above.add_(1).mul_(means > limit.factor * first + limit.margin)
    return means.masked_fill(above >= limit.patience, torch.inf)
