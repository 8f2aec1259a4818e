"""AdamW over a fleet in two launches: squared norms by tile, then the update, in which every program sums the norms."""

import triton
import triton.language as tl
from torch import Tensor, empty, float32

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.fleet.layout import TILE, Fleet, Layout, Slots

SUMS = 1024


@triton.jit
def _tile(tiles, member, BLOCK: tl.constexpr, ALIGNMENT: tl.constexpr):
    """Offsets of this program's elements, and which of them the member has."""
    row = tiles + tl.program_id(0) * 3
    start, size, inner = tl.load(row), tl.load(row + 1), tl.load(row + 2)
    within = tl.multiple_of(inner, ALIGNMENT) + tl.arange(0, BLOCK)
    base = tl.multiple_of(start + member * size, ALIGNMENT)
    return base + within, within < tl.multiple_of(size, ALIGNMENT)


@triton.jit
def norm_kernel(gradients, tiles, sums, steps, BLOCK: tl.constexpr, ALIGNMENT: tl.constexpr):
    """Sum of squares of a tile, [M, tiles]; the first program counts the step."""
    member = tl.program_id(1)
    offsets, kept = _tile(tiles, member, BLOCK, ALIGNMENT)
    gradient = tl.load(gradients + offsets, mask=kept, other=0.0).to(tl.float32)
    tl.store(sums + member * tl.num_programs(0) + tl.program_id(0), tl.sum(gradient * gradient))
    if (tl.program_id(0) == 0) & (member == 0):
        tl.store(steps, tl.load(steps) + 1)


@triton.jit
def update_kernel(
    parameters, gradients, means, squares, working, tiles, sums, losses, steps, table, last, peak, decay, alive,
    died_at, fresh1, fresh2, clip, eps, CLIPPED: tl.constexpr, WORKING: tl.constexpr, BLOCK: tl.constexpr,
    ALIGNMENT: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """One tile; every program of a member finds the same norm and the same fate, and the first one writes the fate."""
    tile, member, count = tl.program_id(0), tl.program_id(1), tl.num_programs(0)
    total = tl.zeros([SUMS], tl.float32)
    for first in range(0, count, SUMS):
        which = first + tl.arange(0, SUMS)
        total += tl.load(sums + member * count + which, mask=which < count, other=0.0)
    norm = tl.sqrt_rn(tl.sum(total))
    loss = tl.load(losses + member)
    # A difference with itself is 0 for finite numbers alone.
    finite = (norm - norm == 0.0) & (loss - loss == 0.0)
    # Others may read this after the first program wrote it: it is then the same, as `finite` is in it already.
    before = tl.load(alive + member).to(tl.int1)
    lives = before & finite
    step = tl.load(steps)
    if tile == 0:
        tl.store(alive + member, lives.to(alive.dtype.element_ty))
        if before & (finite == 0):
            tl.store(died_at + member, step)
    offsets, kept = _tile(tiles, member, BLOCK, ALIGNMENT)
    if lives:
        factor = 1.0
        if CLIPPED:
            factor = tl.minimum(tl.div_rn(clip, norm), 1.0)
        row = table + tl.minimum(step, last) * 3
        rate = tl.load(peak + member) * tl.load(row)
        bias1, bias2 = tl.load(row + 1), tl.load(row + 2)
        gradient = tl.load(gradients + offsets, mask=kept, other=0.0).to(tl.float32) * factor
        mean = tl.load(means + offsets, mask=kept, other=0.0)
        square = tl.load(squares + offsets, mask=kept, other=0.0)
        parameter = tl.load(parameters + offsets, mask=kept, other=0.0)
        mean += (gradient - mean) * fresh1
        square += (gradient * gradient - square) * fresh2
        change = mean / bias1 / (tl.sqrt(square / bias2) + eps) + tl.load(decay + member) * parameter
        parameter -= rate * change
        tl.store(means + offsets, mean, mask=kept)
        tl.store(squares + offsets, square, mask=kept)
        tl.store(parameters + offsets, parameter, mask=kept)
        if WORKING:
            tl.store(working + offsets, parameter.to(working.dtype.element_ty), mask=kept)


def adamw_triton(
    slots: Slots,
    fleet: Fleet,
    layout: Layout,
    tiles: Tensor,
    beta1: float,
    beta2: float,
    clip: float | None,
    eps: float,
) -> None:
    """`api.adamw_step` in two launches."""
    grid = (tiles.shape[0], layout.members)
    sums = empty(layout.members, tiles.shape[0], device=tiles.device, dtype=float32)
    shape = {"BLOCK": TILE, "ALIGNMENT": layout.alignment, "num_warps": 8}
    working = slots.parameters if slots.working is None else slots.working
    with launch_on(slots.parameters):
        norm_kernel[grid](slots.gradients, tiles, sums, fleet.steps, **shape)
        update_kernel[grid](
            slots.parameters, slots.gradients, slots.means, slots.squares, working, tiles, sums, fleet.losses,
            fleet.steps, fleet.table, fleet.table.shape[0] - 1, fleet.peak, fleet.decay, fleet.alive, fleet.died_at,
            1 - beta1, 1 - beta2, 1.0 if clip is None else clip, eps, CLIPPED=clip is not None,
            WORKING=slots.working is not None, SUMS=SUMS, **shape,
        )  # fmt: skip
