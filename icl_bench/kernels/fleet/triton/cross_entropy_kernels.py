"""Tiles of a vocabulary product and of its gradient. Logits are in base 2: multiplied by log2(e).

The target's own logit stays out of the sums: what is left is then exact in relative terms even where the target has
almost all of the probability, and the gradient (the share of the others) does not come from a difference.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _load_words(weight, words, end, width, stride_word, stride_column, BLOCK_C: tl.constexpr):
    columns = tl.arange(0, BLOCK_C)
    kept = (words < end)[:, None] & (columns < width)[None, :]
    return tl.load(weight + words[:, None] * stride_word + columns[None, :] * stride_column, mask=kept, other=0.0)


@triton.jit
def _load_rows(x, member, rows, count, width, BLOCK_C: tl.constexpr):
    columns = tl.arange(0, BLOCK_C)
    kept = (rows < count)[:, None] & (columns < width)[None, :]
    start = x + member.to(tl.int64) * count * width
    return tl.load(start + rows[:, None] * width + columns[None, :], mask=kept, other=0.0)


@triton.jit
def others_kernel(
    x, weight, targets, tops, sums, mixes, count, words, width, each, stride_member, stride_word, stride_column,
    BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr, GRADIENT: tl.constexpr,
):  # fmt: skip
    """Over `each` words but the target: the largest logit, the sum of 2^(logit - largest), and the mix of their rows.

    Grid (rows, parts of the vocabulary, M); the mix, whose weights are the terms of the sum, for the gradient alone.
    """
    part, member = tl.program_id(1), tl.program_id(2)
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    own = member.to(tl.int64) * count + rows
    a = _load_rows(x, member, rows, count, width, BLOCK_C)
    target = tl.load(targets + own, mask=rows < count, other=-1).to(tl.int32)
    weight += member.to(tl.int64) * stride_member
    first = part * each
    last = tl.minimum(first + each, words)
    top = tl.full([BLOCK_R], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_R], tl.float32)
    mix = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for start in range(first, last, BLOCK_W):
        names = start + tl.arange(0, BLOCK_W)
        b = _load_words(weight, names, last, width, stride_word, stride_column, BLOCK_C)
        logits = tl.dot(a, tl.trans(b), input_precision="ieee")
        out = (names[None, :] == target[:, None]) | (names >= last)[None, :]
        logits = tl.where(out, float("-inf"), logits)
        above = tl.maximum(top, tl.max(logits, 1))
        # The scale to base 2 goes into the subtraction, as one fused multiplication and addition.
        base = tl.where(above == float("-inf"), 0.0, above) * LOG2E
        shares = tl.exp2(logits * LOG2E - base[:, None])
        shrink = tl.exp2(top * LOG2E - base)
        total = total * shrink + tl.sum(shares, 1)
        if GRADIENT:
            mix = mix * shrink[:, None]
            mix = tl.dot(shares.to(b.dtype), b, mix, input_precision="ieee")
        top = above
    place = (part.to(tl.int64) * tl.num_programs(2) + member) * count + rows
    tl.store(tops + place, top * LOG2E, mask=rows < count)
    tl.store(sums + place, total, mask=rows < count)
    if GRADIENT:
        columns = tl.arange(0, BLOCK_C)
        kept = (rows < count)[:, None] & (columns < width)[None, :]
        tl.store(mixes + place[:, None] * width + columns[None, :], mix, mask=kept)


@triton.jit
def finish_kernel(
    x, weight, targets, tops, sums, mixes, losses, hits, wholes, shares, directions, count, width, parts,
    stride_member, stride_word, stride_column, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, GRADIENT: tl.constexpr,
):  # fmt: skip
    """Join the parts with the target's logit: loss, hit, log-sum-exp, the share of the others, and dloss / dx."""
    member = tl.program_id(1)
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    columns = tl.arange(0, BLOCK_C)
    own = member.to(tl.int64) * count + rows
    kept = (rows < count)[:, None] & (columns < width)[None, :]
    target = tl.load(targets + own, mask=rows < count, other=0)
    a = tl.load(x + own[:, None] * width + columns[None, :], mask=kept, other=0.0).to(tl.float32)
    right = weight + member.to(tl.int64) * stride_member + target[:, None] * stride_word
    b = tl.load(right + columns[None, :] * stride_column, mask=kept, other=0.0).to(tl.float32)
    logit = tl.sum(a * b, 1) * LOG2E
    top = tl.full([BLOCK_R], float("-inf"), tl.float32)
    for part in range(parts):
        place = (part * tl.num_programs(1) + member).to(tl.int64) * count + rows
        top = tl.maximum(top, tl.load(tops + place, mask=rows < count, other=0.0))
    base = tl.where(top == float("-inf"), 0.0, top)
    total = tl.zeros([BLOCK_R], tl.float32)
    mix = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for part in range(parts):
        place = (part * tl.num_programs(1) + member).to(tl.int64) * count + rows
        factor = tl.exp2(tl.load(tops + place, mask=rows < count, other=0.0) - base)
        total += tl.load(sums + place, mask=rows < count, other=0.0) * factor
        if GRADIENT:
            own_mix = tl.load(mixes + place[:, None] * width + columns[None, :], mask=kept, other=0.0)
            mix += own_mix * factor[:, None]
    some = tl.where(total == 0.0, 1.0, total)
    gap = tl.where(total == 0.0, float("-inf"), base + tl.log2(some)) - logit
    softplus = tl.maximum(gap, 0.0) + tl.log2(1.0 + tl.exp2(-tl.abs(gap)))
    tl.store(losses + own, softplus * LN2, mask=rows < count)
    tl.store(hits + own, (logit > top).to(tl.float32), mask=rows < count)
    if GRADIENT:
        share = 1.0 / (1.0 + tl.exp2(-gap))
        tl.store(wholes + own, logit + softplus, mask=rows < count)
        tl.store(shares + own, share, mask=rows < count)
        direction = (mix / some[:, None] - b) * share[:, None]
        spot = directions + own[:, None] * width + columns[None, :]
        tl.store(spot, direction.to(directions.dtype.element_ty), mask=kept)


@triton.jit
def scale_kernel(
    directions, gradients, dx, count, width, pull_member, pull_row, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):
    """dx: the directions times the gradients of their losses. Grid (rows, M)."""
    member = tl.program_id(1)
    rows, columns = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_C)
    kept = (rows < count)[:, None] & (columns < width)[None, :]
    place = (member.to(tl.int64) * count + rows)[:, None] * width + columns[None, :]
    gradient = tl.load(gradients + member * pull_member + rows * pull_row, mask=rows < count, other=0.0)
    value = tl.load(directions + place, mask=kept, other=0.0).to(tl.float32) * gradient.to(tl.float32)[:, None]
    tl.store(dx + place, value.to(dx.dtype.element_ty), mask=kept)


@triton.jit
def weight_gradient_kernel(
    x, weight, targets, wholes, shares, gradients, out, count, words, width, stride_member, stride_word, stride_column,
    out_member, out_word, out_column, pull_member, pull_row, EVEN: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The gradient of a tile of words over all rows, whose logits are made again. Grid (words, M).

    EVEN: the losses of a member have one gradient, by which the sum is multiplied.
    """
    member = tl.program_id(1)
    names = tl.program_id(0) * BLOCK_W + tl.arange(0, BLOCK_W)
    weight += member.to(tl.int64) * stride_member
    b = _load_words(weight, names, words, width, stride_word, stride_column, BLOCK_C)
    total = tl.zeros([BLOCK_W, BLOCK_C], tl.float32)
    begin = member.to(tl.int64) * count
    for start in range(0, count, BLOCK_R):
        rows = start + tl.arange(0, BLOCK_R)
        a = _load_rows(x, member, rows, count, width, BLOCK_C)
        target = tl.load(targets + begin + rows, mask=rows < count, other=-1).to(tl.int32)
        whole = tl.load(wholes + begin + rows, mask=rows < count, other=0.0)
        share = tl.load(shares + begin + rows, mask=rows < count, other=0.0)
        logits = tl.dot(b, tl.trans(a), input_precision="ieee") * LOG2E
        pulls = tl.exp2(logits - whole[None, :])
        pulls = tl.where(names[:, None] == target[None, :], -share[None, :], pulls)
        # Rows past the end are zeros: a finite pull at them adds nothing.
        if not EVEN:
            pull = tl.load(gradients + member * pull_member + rows * pull_row, mask=rows < count, other=0.0)
            pulls *= pull.to(tl.float32)[None, :]
        total = tl.dot(pulls.to(a.dtype), a, total, input_precision="ieee")
    if EVEN:
        total *= tl.load(gradients + member * pull_member).to(tl.float32)
    columns = tl.arange(0, BLOCK_C)
    kept = (names < words)[:, None] & (columns < width)[None, :]
    spot = out + member.to(tl.int64) * out_member + names[:, None] * out_word + columns[None, :] * out_column
    tl.store(spot, total.to(out.dtype.element_ty), mask=kept)


@triton.jit
def means_kernel(losses, hits, means, sums, course, count, times, plus, patience, BLOCK: tl.constexpr):
    """Means over the rows of a member, added to its running sums, infinite once too high for too long. Grid (M)."""
    member = tl.program_id(0).to(tl.int64)
    loss, hit = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for start in range(0, count, BLOCK):
        rows = start + tl.arange(0, BLOCK)
        loss += tl.load(losses + member * count + rows, mask=rows < count, other=0.0)
        hit += tl.load(hits + member * count + rows, mask=rows < count, other=0.0)
    mean, share = tl.sum(loss) / count, tl.sum(hit) / count
    first, above = tl.load(course + member), tl.load(course + tl.num_programs(0) + member)
    first = tl.where(first < 0, mean, first)
    above = tl.where(mean > times * first + plus, above + 1, 0.0)
    tl.store(course + member, first)
    tl.store(course + tl.num_programs(0) + member, above)
    tl.store(means + member, tl.where(above >= patience, float("inf"), mean))
    tl.store(sums + member, tl.load(sums + member) + mean.to(tl.float64))
    spot = sums + tl.num_programs(0) + member
    tl.store(spot, tl.load(spot) + share.to(tl.float64))
