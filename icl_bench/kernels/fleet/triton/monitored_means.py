"""Monitored means in Triton, in one launch."""

import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.backends import launch_on


@triton.jit
def monitored_means_kernel(losses, hits, means, sums, history, count, factor, margin, patience, BLOCK: tl.constexpr):
    """Mean over the rows of a member, added to its running sums, infinite once too high for too long. Grid (M)."""
    member = tl.program_id(0).to(tl.int64)
    loss, hit = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for start in range(0, count, BLOCK):
        rows = start + tl.arange(0, BLOCK)
        loss += tl.load(losses + member * count + rows, mask=rows < count, other=0.0)
        hit += tl.load(hits + member * count + rows, mask=rows < count, other=0.0)
    mean, share = tl.sum(loss) / count, tl.sum(hit) / count
    first, above = tl.load(history + member), tl.load(history + tl.num_programs(0) + member)
    first = tl.where(first < 0, mean, first)
    above = tl.where(mean > factor * first + margin, above + 1, 0.0)
    tl.store(history + member, first)
    tl.store(history + tl.num_programs(0) + member, above)
    tl.store(means + member, tl.where(above >= patience, float("inf"), mean))
    tl.store(sums + member, tl.load(sums + member) + mean.to(tl.float64))
    spot = sums + tl.num_programs(0) + member
    tl.store(spot, tl.load(spot) + share.to(tl.float64))


def monitored_means_triton(
    losses: Tensor, hits: Tensor, sums: Tensor, history: Tensor, limit: tuple[float, float, int]
) -> Tensor:
    """Launch the forward pass of `monitored_means` for contiguous sums and history."""
    members, count = losses.shape
    means = losses.new_empty(members)
    with launch_on(losses):
        monitored_means_kernel[(members,)](
            losses.contiguous(), hits.contiguous(), means, sums, history, count, *limit, BLOCK=4096, num_warps=8
        )
    return means
