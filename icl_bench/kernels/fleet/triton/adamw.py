"""AdamW in two launches: squared norms of gradients by tile, then the update, in which every program sums the norms."""

import triton
import triton.language as tl
from torch import Tensor, empty, float32

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.fleet.layout import ADAMW_TILE, AdamWOptions, MemberState, OptimiserBuffers, ParameterLayout

SUMS = 1024
"""Sums of tiles that a program of the update adds at once."""


@triton.jit
def _tile(tiles, member, BLOCK: tl.constexpr, ALIGNMENT: tl.constexpr):
    """Return the offsets of this program's elements, and a mask of those that the member has."""
    row = tiles + tl.program_id(0) * 4
    start, size, inner = tl.load(row), tl.load(row + 1), tl.load(row + 2)
    within = tl.multiple_of(inner, ALIGNMENT) + tl.arange(0, BLOCK)
    base = tl.multiple_of(start + member * size, ALIGNMENT)
    return base + within, within < tl.multiple_of(size, ALIGNMENT)


@triton.jit
def squared_norms_kernel(gradients, tiles, sums, steps, BLOCK: tl.constexpr, ALIGNMENT: tl.constexpr):
    """Sum the squares of a tile, [M, tiles]; the first program counts the step. Grid (tiles, M)."""
    member = tl.program_id(1)
    offsets, mask = _tile(tiles, member, BLOCK, ALIGNMENT)
    gradient = tl.load(gradients + offsets, mask=mask, other=0.0).to(tl.float32)
    tl.store(sums + member * tl.num_programs(0) + tl.program_id(0), tl.sum(gradient * gradient))
    if (tl.program_id(0) == 0) & (member == 0):
        tl.store(steps, tl.load(steps) + 1)


@triton.jit
def adamw_update_kernel(
    parameters, gradients, means, squares, working, tiles, sums, losses, steps, table, last, peak, decay, active,
    diverged_at, fresh1, fresh2, clip, eps, CLIPPED: tl.constexpr, WORKING: tl.constexpr, EXEMPT: tl.constexpr,
    BLOCK: tl.constexpr, ALIGNMENT: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """Update a tile of a member. Grid (tiles, M). All programs find the norm and divergence; the first writes them."""
    tile, member, count = tl.program_id(0), tl.program_id(1), tl.num_programs(0)
    total = tl.zeros([SUMS], tl.float32)
    for first in range(0, count, SUMS):
        which = first + tl.arange(0, SUMS)
        total += tl.load(sums + member * count + which, mask=which < count, other=0.0)
    norm = tl.sqrt_rn(tl.sum(total))
    loss = tl.load(losses + member)
    # A difference with itself is 0 for finite numbers alone.
    finite = (norm - norm == 0.0) & (loss - loss == 0.0)
    # Other programs may read this after the first program wrote it: the result is the same, as it includes `finite`.
    before = tl.load(active + member).to(tl.int1)
    updated = before & finite
    step = tl.load(steps)
    if tile == 0:
        tl.store(active + member, updated.to(active.dtype.element_ty))
        if before & (finite == 0):
            tl.store(diverged_at + member, step)
    offsets, mask = _tile(tiles, member, BLOCK, ALIGNMENT)
    if updated:
        factor = 1.0
        if CLIPPED:
            factor = tl.minimum(tl.div_rn(clip, norm), 1.0)
        row = table + tl.minimum(step, last) * 3
        rate = tl.load(peak + member) * tl.load(row)
        bias1, bias2 = tl.load(row + 1), tl.load(row + 2)
        gradient = tl.load(gradients + offsets, mask=mask, other=0.0).to(tl.float32) * factor
        mean = tl.load(means + offsets, mask=mask, other=0.0)
        square = tl.load(squares + offsets, mask=mask, other=0.0)
        parameter = tl.load(parameters + offsets, mask=mask, other=0.0)
        mean += (gradient - mean) * fresh1
        square += (gradient * gradient - square) * fresh2
        weight_decay = tl.load(decay + member)
        if EXEMPT:
            weight_decay *= tl.load(tiles + tile * 4 + 3).to(tl.float32)
        change = mean / bias1 / (tl.sqrt(square / bias2) + eps) + weight_decay * parameter
        parameter -= rate * change
        tl.store(means + offsets, mean, mask=mask)
        tl.store(squares + offsets, square, mask=mask)
        tl.store(parameters + offsets, parameter, mask=mask)
        if WORKING:
            tl.store(working + offsets, parameter.to(working.dtype.element_ty), mask=mask)


def adamw_triton(
    buffers: OptimiserBuffers, members: MemberState, layout: ParameterLayout, tiles: Tensor, options: AdamWOptions
) -> None:
    """Launch both kernels of `adamw_step`."""
    (beta1, beta2, clip, eps), grid = options, (tiles.shape[0], layout.members)
    sums = empty(layout.members, tiles.shape[0], device=tiles.device, dtype=float32)
    shape = {"BLOCK": ADAMW_TILE, "ALIGNMENT": layout.alignment, "num_warps": 8}
    working = buffers.parameters if buffers.working is None else buffers.working
    with launch_on(buffers.parameters):
        squared_norms_kernel[grid](buffers.gradients, tiles, sums, members.steps, **shape)
        adamw_update_kernel[grid](
            buffers.parameters, buffers.gradients, buffers.means, buffers.squares, working, tiles, sums, members.losses,
            members.steps, members.table, members.table.shape[0] - 1, members.peak, members.decay, members.active,
            members.diverged_at, 1 - beta1, 1 - beta2, 1.0 if clip is None else clip, eps, CLIPPED=clip is not None,
            WORKING=buffers.working is not None, EXEMPT=bool(layout.exempt), SUMS=SUMS, **shape,
        )  # fmt: skip
