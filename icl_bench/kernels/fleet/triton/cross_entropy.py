"""Cross-entropy in Triton: the forward kernel computes dloss / dx too, so that the backward pass makes logits once.

Forward: two products a tile (logits, and the mean row of the vocabulary under the softmax, as attention would with that
table as keys and values). Backward: two products a tile for the gradient of the table. Nothing is added atomically.

Logits are in base 2: multiplied by log2(e). The target's own logit stays out of the sums: the sum of the others is then
exact in relative terms even where the target has almost all of the probability, and the gradient (the share of the
other tokens) does not come from a difference.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.fleet.triton import entropy_tiles
from icl_bench.kernels.fleet.triton.logits import LogitCrossEntropy
from icl_bench.kernels.triton.common import padded

TO_BASE_2 = tl.constexpr(1.4426950408889634)
FROM_BASE_2 = tl.constexpr(0.6931471805599453)
FAR_LOGIT = tl.constexpr(80.0)
"""Largest logit, base 2, up to which sums need no base: they and their rows are finite, and as exact."""
WIDEST_ROW = 256
FULL_DEVICE = 128
"""Programs that fill a device, about; twice as many hide the waits of one another."""
JOINED_ROWS, FEW_JOINED_ROWS = 32, 8
"""Rows of a program that joins the parts of the vocabulary, and where there are few rows in all."""


@triton.jit
def _load_tile(
    base, left, width, stride_row, stride_column, ROWS: tl.constexpr, BLOCK_C: tl.constexpr, WHOLE: tl.constexpr
):
    """Load [ROWS, BLOCK_C] from `base` on; zeros past the `left` rows and the columns, unless WHOLE excludes them."""
    rows, columns = tl.arange(0, ROWS), tl.arange(0, BLOCK_C)
    pointers = base + (rows[:, None] * stride_row + columns[None, :] * stride_column)
    if WHOLE:
        return tl.load(pointers)
    return tl.load(pointers, mask=(rows < left)[:, None] & (columns < width)[None, :], other=0.0)


@triton.jit
def _held(tile):
    """Return the tile by a product with ones on the diagonal, whose results are registers: the left operand of others.

    From shared memory, the left operand of a product of 64 rows would be read as often as the right one.
    """
    columns = tl.arange(0, tile.shape[1])
    ones = (columns[:, None] == columns[None, :]).to(tile.dtype)
    return tl.dot(tile, ones, input_precision="ieee").to(tile.dtype)


@triton.jit
def _reduce_others(
    a, weight, table, begin, target, first, last, width, stride_word, stride_column, BLOCK_W: tl.constexpr,
    GRADIENT: tl.constexpr, WHOLE: tl.constexpr, COPIED: tl.constexpr, RESCALED: tl.constexpr,
):  # fmt: skip
    """Return the largest logit of the tokens but the target, the sum of 2^(logit - base), and the mix of their rows.

    The base is the largest logit up to each tile where RESCALED, else 0. Where COPIED, the table is one of all members,
    whose rows are those from `begin` on.
    """
    top = tl.full([a.shape[0]], float("-inf"), tl.float32)
    total = tl.zeros([a.shape[0]], tl.float32)
    mix = tl.zeros(a.shape, tl.float32)
    for start in range(first, last, BLOCK_W):
        tokens = tl.arange(0, BLOCK_W)
        if COPIED:
            b = table.load([begin + start, 0])
        else:
            tile = weight + tl.cast(start, tl.int64) * stride_word
            b = _load_tile(tile, last - start, width, stride_word, stride_column, BLOCK_W, a.shape[1], WHOLE)
        logits = tl.dot(a, tl.trans(b), input_precision="ieee")
        out = tokens[None, :] == (target - start)[:, None]
        if not WHOLE:
            out |= (tokens >= last - start)[None, :]
        logits = tl.where(out, float("-inf"), logits)
        above = tl.maximum(top, tl.max(logits, 1))
        if RESCALED:
            # The scale to base 2 goes into the subtraction, as one fused multiplication and addition.
            base = tl.where(above == float("-inf"), 0.0, above) * TO_BASE_2
            shares = tl.exp2(logits * TO_BASE_2 - base[:, None])
            shrink = tl.exp2(top * TO_BASE_2 - base)
            total *= shrink
            if GRADIENT:
                mix *= shrink[:, None]
        else:
            shares = tl.exp2(logits * TO_BASE_2)
        total += tl.sum(shares, 1)
        if GRADIENT:
            mix = tl.dot(shares.to(b.dtype), b, mix, input_precision="ieee")
        top = above
    return top * TO_BASE_2, total, mix


@triton.jit
def _finish_rows(
    x, weight, target, top, base, total, mix, losses, hits, facts, directions, own, count, width, rows,
    stride_word, stride_column, BLOCK_C: tl.constexpr, GRADIENT: tl.constexpr,
):  # fmt: skip
    """Write loss, hit, dloss / dx, and side by side log-sum-exp, the share of the other tokens, and the target."""
    columns = tl.arange(0, BLOCK_C)
    mask = (rows < count)[:, None] & (columns < width)[None, :]
    a = tl.load(x + own[:, None] * width + columns[None, :], mask=mask, other=0.0).to(tl.float32)
    right = weight + target[:, None] * stride_word + columns[None, :] * stride_column
    b = tl.load(right, mask=mask, other=0.0).to(tl.float32)
    logit = tl.sum(a * b, 1) * TO_BASE_2
    some = tl.where(total == 0.0, 1.0, total)
    gap = tl.where(total == 0.0, float("-inf"), base + tl.log2(some)) - logit
    softplus = tl.maximum(gap, 0.0) + tl.log2(1.0 + tl.exp2(-tl.abs(gap)))
    tl.store(losses + own, softplus * FROM_BASE_2, mask=rows < count)
    tl.store(hits + own, (logit > top).to(tl.float32), mask=rows < count)
    if GRADIENT:
        share = 1.0 / (1.0 + tl.exp2(-gap))
        # Exact in float32 up to 2^24 tokens; the fourth place only pads the three to 16 bytes.
        name = target.to(tl.float32)
        row = tl.reshape(tl.join(tl.join(logit + softplus, name), tl.join(share, name)), [target.shape[0], 4])
        tl.store(facts + own[:, None] * 4 + tl.arange(0, 4)[None, :], row, mask=(rows < count)[:, None])
        direction = (mix / some[:, None] - b) * share[:, None]
        pointers = directions + own[:, None] * width + columns[None, :]
        tl.store(pointers, direction.to(directions.dtype.element_ty), mask=mask)


@triton.jit
def entropy_parts_kernel(
    x, weight, table, targets, tops, sums, mixes, losses, hits, facts, directions, count, words, width, each,
    stride_member, stride_word, stride_column, BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
    GRADIENT: tl.constexpr, WHOLE: tl.constexpr, COPIED: tl.constexpr, RESCALED: tl.constexpr, ALONE: tl.constexpr,
):  # fmt: skip
    """Reduce `each` tokens but the target: largest logit, sum of 2^(logit - largest), and the mix of their rows.

    Grid (rows, parts of the vocabulary, M). The mix, whose weights are the terms of the sum, serves the gradient alone.
    WHOLE says that the tiles of the table have no end inside of them, COPIED that the hardware copies them by what the
    table describes, RESCALED that sums follow the largest logit, which else is done where logits are too large or small
    for sums without a base, and ALONE that there is one part, which then writes the results of its rows.
    """
    part, member = tl.program_id(1), tl.program_id(2)
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    own = member.to(tl.int64) * count + rows
    begin = member.to(tl.int64) * count + tl.program_id(0) * BLOCK_R
    a = _load_tile(x + begin * width, count - tl.program_id(0) * BLOCK_R, width, width, 1, BLOCK_R, BLOCK_C, False)
    first = part * each
    target = tl.load(targets + own, mask=rows < count, other=-1).to(tl.int32)
    weight += member.to(tl.int64) * stride_member
    last = tl.minimum(first + each, words)
    top, total, mix = _reduce_others(
        a, weight, table, member * words, target, first, last, width, stride_word, stride_column, BLOCK_W, GRADIENT,
        WHOLE, COPIED, RESCALED,
    )  # fmt: skip
    base = tl.where(top == float("-inf"), 0.0, top)
    if not RESCALED:
        far = (rows < count) & ~(tl.abs(top) <= FAR_LOGIT)
        if tl.max(far.to(tl.int32), 0) > 0:
            top, total, mix = _reduce_others(
                a, weight, table, member * words, target, first, last, width, stride_word, stride_column, BLOCK_W,
                GRADIENT, WHOLE, COPIED, True,
            )  # fmt: skip
            base = tl.where(top == float("-inf"), 0.0, top)
        else:
            shrink = tl.exp2(-base)
            total *= shrink
            if GRADIENT:
                mix *= shrink[:, None]
    if ALONE:
        chosen = tl.where(rows < count, target, 0)
        _finish_rows(
            x, weight, chosen, top, base, total, mix, losses, hits, facts, directions, own, count, width, rows,
            stride_word, stride_column, BLOCK_C, GRADIENT,
        )  # fmt: skip
    else:
        offsets = (part.to(tl.int64) * tl.num_programs(2) + member) * count + rows
        tl.store(tops + offsets, top, mask=rows < count)
        tl.store(sums + offsets, total, mask=rows < count)
        if GRADIENT:
            columns = tl.arange(0, BLOCK_C)
            mask = (rows < count)[:, None] & (columns < width)[None, :]
            tl.store(mixes + offsets[:, None] * width + columns[None, :], mix, mask=mask)


@triton.jit
def entropy_kernel(
    x, weight, targets, tops, sums, mixes, losses, hits, facts, directions, count, width, parts,
    stride_member, stride_word, stride_column, PARTS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
    GRADIENT: tl.constexpr,
):  # fmt: skip
    """Join the parts with the logit of the target, and write the results. Grid (rows, M).

    Nothing waits for one part before the next is read: a loop of unknown length took 6.9 us for 16 parts of 1,024 rows.
    """
    member = tl.program_id(1)
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    columns = tl.arange(0, BLOCK_C)
    own = member.to(tl.int64) * count + rows
    target = tl.load(targets + own, mask=rows < count, other=0).to(tl.int32)
    part = tl.arange(0, PARTS)
    places = (part * tl.num_programs(1) + member).to(tl.int64)[:, None] * count + rows[None, :]
    inside = (part < parts)[:, None] & (rows < count)[None, :]
    each_top = tl.load(tops + places, mask=inside, other=float("-inf"))
    each_sum = tl.load(sums + places, mask=inside, other=0.0)
    top = tl.max(each_top, 0)
    base = tl.where(top == float("-inf"), 0.0, top)
    total = tl.sum(each_sum * tl.exp2(each_top - base[None, :]), 0)
    mix = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    if GRADIENT:
        for i in tl.static_range(PARTS):
            offsets = (i * tl.num_programs(1) + member).to(tl.int64) * count + rows
            live = rows < tl.where(i < parts, count, 0)
            factor = tl.exp2(tl.load(tops + offsets, mask=live, other=float("-inf")) - base)
            pointers = mixes + offsets[:, None] * width + columns[None, :]
            mix += tl.load(pointers, mask=live[:, None] & (columns < width)[None, :], other=0.0) * factor[:, None]
    _finish_rows(
        x, weight + member.to(tl.int64) * stride_member, target, top, base, total, mix, losses, hits, facts, directions,
        own, count, width, rows, stride_word, stride_column, BLOCK_C, GRADIENT,
    )  # fmt: skip


@triton.jit
def entropy_row_gradient_kernel(
    directions, gradients, dx, count, width, stride_gradient_member, stride_gradient_row,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write dx: the directions times the gradients of their losses. Grid (rows, M)."""
    member = tl.program_id(1)
    rows, columns = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_C)
    mask = (rows < count)[:, None] & (columns < width)[None, :]
    offsets = (member.to(tl.int64) * count + rows)[:, None] * width + columns[None, :]
    gradient = tl.load(
        gradients + member * stride_gradient_member + rows * stride_gradient_row, mask=rows < count, other=0.0
    )
    value = tl.load(directions + offsets, mask=mask, other=0.0).to(tl.float32) * gradient.to(tl.float32)[:, None]
    tl.store(dx + offsets, value.to(dx.dtype.element_ty), mask=mask)


@triton.jit
def entropy_table_gradient_kernel(
    x, rows_of_members, weight, facts, gradients, out, count, words, width, stride_member, stride_word, stride_column,
    out_member, out_word, out_column, stride_gradient_member, stride_gradient_row,
    EVEN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr, WHOLE: tl.constexpr,
    COPIED: tl.constexpr, HELD: tl.constexpr,
):  # fmt: skip
    """Write the gradient of a tile of the table over all rows, whose logits are computed again. Grid (tokens, M).

    EVEN says that the losses of a member have one gradient, by which the sum is multiplied; WHOLE that the tiles of
    rows have no end inside of them; COPIED that the hardware copies them from the rows of all members; HELD that the
    tile of the table stays in registers.
    """
    member = tl.program_id(1)
    tokens = tl.program_id(0) * BLOCK_W + tl.arange(0, BLOCK_W)
    first = tl.program_id(0) * BLOCK_W
    tile = weight + member.to(tl.int64) * stride_member + tl.cast(first, tl.int64) * stride_word
    b = _load_tile(tile, words - first, width, stride_word, stride_column, BLOCK_W, BLOCK_C, False)
    if HELD:
        b = _held(b)
    names = tokens.to(tl.float32)
    total = tl.zeros([BLOCK_W, BLOCK_C], tl.float32)
    begin = member.to(tl.int64) * count
    for start in range(0, count, BLOCK_R):
        if COPIED:
            a = rows_of_members.load([member * count + start, 0])
        else:
            a = _load_tile(x + (begin + start) * width, count - start, width, width, 1, BLOCK_R, BLOCK_C, WHOLE)
        rows = tl.arange(0, BLOCK_R)
        pointers = facts + (begin + start) * 4 + (rows[:, None] * 4 + tl.arange(0, 4)[None, :])
        # One tile of four numbers a row: vectors would be copied to shared memory once by every thread.
        row = tl.load(pointers) if WHOLE else tl.load(pointers, mask=(rows < count - start)[:, None], other=0.0)
        even, odd = tl.split(tl.reshape(row, [BLOCK_R, 2, 2]))
        whole, target = tl.split(even)
        share, _ = tl.split(odd)
        logits = tl.dot(b, tl.trans(a), input_precision="ieee") * TO_BASE_2
        factors = tl.exp2(logits - whole[None, :])
        factors = tl.where(names[:, None] == target[None, :], -share[None, :], factors)
        # Rows past the end are zeros: a finite factor adds nothing.
        if not EVEN:
            upstream = tl.load(
                gradients + member * stride_gradient_member + (start + rows) * stride_gradient_row,
                mask=rows < count - start, other=0.0,
            )  # fmt: skip
            factors *= upstream.to(tl.float32)[None, :]
        total = tl.dot(factors.to(a.dtype), a, total, input_precision="ieee")
    if EVEN:
        total *= tl.load(gradients + member * stride_gradient_member).to(tl.float32)
    columns = tl.arange(0, BLOCK_C)
    mask = (tokens < words)[:, None] & (columns < width)[None, :]
    pointers = out + member.to(tl.int64) * out_member + tokens[:, None] * out_word + columns[None, :] * out_column
    tl.store(pointers, total.to(out.dtype.element_ty), mask=mask)


def cross_entropy_triton(x: Tensor, weight: Tensor, targets: Tensor, at_once: int) -> tuple[Tensor, Tensor]:
    """Run `cross_entropy` on float32, bfloat16 or float16.

    Rows of more than 256 columns do not fit on chip with their products: their logits are made in chunks of `at_once`.
    """
    result: tuple[Tensor, Tensor]
    if x.shape[-1] > WIDEST_ROW:
        result = LogitCrossEntropy.apply(x, weight, targets, at_once)
    else:
        result = _FusedCrossEntropy.apply(x, weight, targets)
    return result


class _FusedCrossEntropy(torch.autograd.Function):
    """Losses and hits, [M, R] float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        result = launch_entropy(x.contiguous(), weight, targets.contiguous(), any(ctx.needs_input_grad))
        if result.directions is not None:
            ctx.save_for_backward(x, weight, result.facts, result.directions)
        ctx.mark_non_differentiable(result.hits)
        ctx.set_materialize_grads(False)
        return result.losses, result.hits

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _hits: None) -> tuple[Tensor | None, ...]:
        x, weight, facts, directions = ctx.saved_tensors
        dweight = launch_table_gradient(x.contiguous(), weight, facts, gradient)
        members, count, width = directions.shape
        dx = torch.empty_like(directions)
        with launch_on(directions):
            entropy_row_gradient_kernel[(-(-count // 32), members)](
                directions, gradient, dx, count, width, *gradient.stride(), BLOCK_R=32, BLOCK_C=padded(width, 16)
            )
        return dx, dweight, None


class ForwardResult(NamedTuple):
    """The results of the forward kernels."""

    losses: Tensor
    """[M, R]."""
    hits: Tensor
    """[M, R]."""
    facts: Tensor | None = None
    """For each row the log-sum-exp, base 2, the probability of all tokens but the target, and the target twice,
    [M, R, 4]."""
    directions: Tensor | None = None
    """Gradient of the loss of a row with respect to that row, in the type of x, [M, R, C]."""


def launch_entropy(x: Tensor, weight: Tensor, targets: Tensor, gradient: bool) -> ForwardResult:
    """Launch the forward kernels; where there are few rows, several programs share the vocabulary."""
    (members, count, width), words = x.shape, weight.shape[1]
    tile = entropy_tiles.entropy_tile(x.dtype, width, gradient)
    block_c = padded(width, 16)
    row_tiles = -(-count // tile.stationary)
    word_tiles = -(-words // tile.moving)
    parts = max(1, min(word_tiles, 16, 2 * FULL_DEVICE // (row_tiles * members)))
    each = -(-word_tiles // parts) * tile.moving
    alone = parts == 1
    tops, sums = x.new_empty(2, 0 if alone else parts, members, count, dtype=torch.float32)
    mixes = x.new_empty(parts, members, count, width, dtype=torch.float32) if gradient and not alone else tops
    losses, hits = x.new_empty(2, members, count, dtype=torch.float32)
    facts = x.new_empty(members, count, 4, dtype=torch.float32) if gradient else tops
    directions = torch.empty_like(x) if gradient else tops
    results = losses, hits, facts, directions
    whole = words % tile.moving == 0 and width == block_c
    table = entropy_tiles.described(weight, tile.moving) if whole else None
    with launch_on(x):
        entropy_parts_kernel[(row_tiles, parts, members)](
            x, weight, table or weight, targets, tops, sums, mixes, *results, count, words, width, each,
            *weight.stride(), BLOCK_R=tile.stationary, BLOCK_W=tile.moving, BLOCK_C=block_c, GRADIENT=gradient,
            WHOLE=whole, COPIED=table is not None, RESCALED=x.dtype == torch.float16, ALONE=alone, num_warps=tile.warps,
            num_stages=tile.stages, maxnreg=tile.registers,
        )  # fmt: skip
        if not alone:
            joined = JOINED_ROWS if -(-count // JOINED_ROWS) * members >= 2 * FULL_DEVICE else FEW_JOINED_ROWS
            entropy_kernel[(-(-count // joined), members)](
                x, weight, targets, tops, sums, mixes, *results, count, width, parts,
                *weight.stride(), PARTS=padded(parts), BLOCK_R=joined, BLOCK_C=block_c, GRADIENT=gradient, num_warps=4,
            )  # fmt: skip
    return ForwardResult(losses, hits, facts, directions) if gradient else ForwardResult(losses, hits)


def launch_table_gradient(x: Tensor, weight: Tensor, facts: Tensor, gradient: Tensor) -> Tensor:
    """Launch the gradient of the table, with the strides of the table."""
    (members, count, width), words = x.shape, weight.shape[1]
    tile, block_c = entropy_tiles.table_tile(x.dtype, width), padded(width, 16)
    out = torch.empty_like(weight)
    whole = count % tile.moving == 0 and width == block_c
    rows = entropy_tiles.described(x, tile.moving) if whole else None
    with launch_on(x):
        entropy_table_gradient_kernel[(-(-words // tile.stationary), members)](
            x, rows or x, weight, facts, gradient, out, count, words, width, *weight.stride(), *out.stride(),
            *gradient.stride(), EVEN=gradient.stride(1) == 0, BLOCK_R=tile.moving, BLOCK_W=tile.stationary,
            BLOCK_C=block_c, WHOLE=whole, COPIED=rows is not None, HELD=tile.held, num_warps=tile.warps,
            num_stages=tile.stages, maxnreg=tile.registers,
        )  # fmt: skip
    return out
