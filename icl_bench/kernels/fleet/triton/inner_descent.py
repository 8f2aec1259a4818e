"""Gradient descent of a linear inner model in Triton: one launch each way, a program for each head of a sequence.

The forward pass keeps the inner model at the start of each minibatch; the backward pass makes all else of a minibatch
again. Products are in float16, since steps of training lose too much in bfloat16; in three parts of tf32 for
float32.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.fleet.records import MINIBATCH
from icl_bench.kernels.triton.common import padded, precision_of

FEWEST_COLUMNS = 16
WARPS = {16: 1, 32: 1, 64: 4, 128: 8}
"""Warps of a program by padded width: more of them repeat operands of products, fewer spill."""


class DescentSizes(NamedTuple):
    """Sequences of a member, tokens, heads and channels of a head, and what the variance of a norm is raised by."""

    batch: Any
    time: Any
    heads: Any
    width: Any
    eps: Any


class Minibatch(NamedTuple):
    """Offsets of the tokens of a minibatch, and which are inside."""

    tokens: Any
    """In [M, B, T, H, K]."""
    rates: Any
    """In [M, B, T, H]."""
    mask: Any
    rows: Any
    """Tokens that are inside."""


def products_of(x: Tensor) -> str:
    """Return how products are made for tokens of a type: "half" is float16, with the digits of tf32 up to 65,504."""
    return precision_of(x) if x.dtype == torch.float32 else "half"


def operand_type(x: Tensor) -> torch.dtype:
    """Return the type in which products for tokens of a type take their operands."""
    return torch.float16 if products_of(x) == "half" else torch.float32


@triton.jit
def inner_product(a, b, PRECISION: tl.constexpr):
    """Return a b in float32."""
    if PRECISION == "half":
        a, b = a.to(tl.float16), b.to(tl.float16)
    return tl.dot(a, b, input_precision="tf32" if PRECISION == "half" else PRECISION)


@triton.jit
def in_units(a, PRECISION: tl.constexpr):
    """Return a relative to the largest of its numbers, which may be of any size, and that one, for float16."""
    unit = 1.0
    if PRECISION == "half":
        largest = tl.max(tl.max(tl.abs(a), 1), 0)
        unit = tl.where(largest > 0.0, largest, 1.0)
        a = (a / unit).to(tl.float16)
    return a, unit


@triton.jit
def step_product(a, b, PRECISION: tl.constexpr):
    """Return a b for parts a of steps."""
    a, unit = in_units(a, PRECISION)
    return unit * inner_product(a, b, PRECISION)


@triton.jit
def parts_of_sums(count, PRECISION: tl.constexpr):
    """Return by what sums over so many minibatches are divided for products, as float16 may not hold them."""
    parts = 1.0
    if PRECISION == "half":
        parts = count * 1.0
    return parts


@triton.jit
def largest_of_head(gradient, count, sizes, columns, C: tl.constexpr, PRECISION: tl.constexpr):
    """Return the largest number of the gradient of the program's head, or 1 if there is none, as a unit for float16."""
    unit = 1.0
    if PRECISION == "half":
        largest = tl.zeros([C], tl.float32)
        for index in range(count):
            at = minibatch_at(index, sizes, columns, C, C)
            upstream = tl.load(gradient + at.tokens, mask=at.mask, other=0.0).to(tl.float32)
            largest = tl.maximum(largest, tl.max(tl.abs(upstream), 1))
        unit = tl.max(largest)
        unit = tl.where(unit > 0.0, unit, 1.0)
    return unit


@triton.jit
def minibatch_at(index, sizes, columns, ROWS: tl.constexpr, C: tl.constexpr):
    """Return the places of so many tokens from minibatch `index` on of the program's head."""
    tokens = index * C + tl.arange(0, ROWS)
    sequence, head = tl.program_id(0).to(tl.int64) // sizes.heads, tl.program_id(0) % sizes.heads
    rates = (sequence * sizes.time + tokens) * sizes.heads + head
    rows = (tokens >= 0) & (tokens < sizes.time)
    return Minibatch(
        rates[:, None] * sizes.width + columns[None, :], rates, rows[:, None] & (columns < sizes.width)[None, :], rows
    )


@triton.jit
def load_minibatch(q, k, v, rates, at):
    """Return queries, keys and values in float32, and the rates of a minibatch; zeros outside."""
    query = tl.load(q + at.tokens, mask=at.mask, other=0.0).to(tl.float32)
    key = tl.load(k + at.tokens, mask=at.mask, other=0.0).to(tl.float32)
    value = tl.load(v + at.tokens, mask=at.mask, other=0.0).to(tl.float32)
    return query, key, value, tl.load(rates + at.rates, mask=at.rows, other=0.0)


@triton.jit
def load_factors(factors, places, sizes, C: tl.constexpr):
    """Return n of all places of a minibatch, and that of the last one."""
    own = factors + tl.program_id(0) // (sizes.batch * sizes.heads) * C
    return tl.load(own + places), tl.load(own + C - 1)


@triton.jit
def head_of_member(sizes):
    """Return the index of the program's head in [M, H]."""
    return tl.program_id(0) // (sizes.batch * sizes.heads) * sizes.heads + tl.program_id(0) % sizes.heads


@triton.jit
def layer_norm(z, inside, sizes):
    """Return (z - mean) / sd of rows, 0 in columns outside, and 1 / sd."""
    centred = tl.where(inside, z - (tl.sum(z, 1) / sizes.width)[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, 1) / sizes.width + sizes.eps)[:, None]
    return centred * scale, scale


@triton.jit
def taken_by_norm(x, normed, sizes):
    """Return the mean of rows and their part along the normed rows, neither of which passes a layer norm's gradient."""
    mean, along = (tl.sum(x, 1) / sizes.width)[:, None], (tl.sum(x * normed, 1) / sizes.width)[:, None]
    return mean, along


@triton.jit
def parts_of_slope(normed, key, value, g, b, inside, sizes):
    """Return what `through_slope` takes of the gradient of the inner loss by the outputs of keys."""
    error = tl.where(inside, g * normed + b - value + key, 0.0)
    u = g * error
    mean, along = taken_by_norm(u, normed, sizes)
    return tl.where(inside, u - mean - normed * along, 0.0), error, u, along


@triton.jit
def through_slope(dslope, passed, error, u, along, normed, scale, g, inside, sizes, total_g, total_b):
    """Return the gradients by z and by the error LN(z) - target, and the sums of those of gain and shift with theirs.

    They come from that of the slope, scale times `passed`: u = g error without what the norm's gradient takes.
    """
    through = scale * dslope
    mean_p, along_p = taken_by_norm(through, normed, sizes)
    du = tl.where(inside, through - mean_p - normed * along_p, 0.0)
    derror = g * du
    dnormed = g * derror - along * through - u * along_p
    total_g += du * (error + g * normed)
    total_b += derror
    dscale = tl.sum(dslope * passed, 1)[:, None] + tl.sum(dnormed * normed, 1)[:, None] / scale
    dcentred = tl.where(inside, scale * dnormed - normed * scale * scale * dscale / sizes.width, 0.0)
    dz = tl.where(inside, dcentred - (tl.sum(dcentred, 1) / sizes.width)[:, None], 0.0)
    return dz, derror, total_g, total_b


@triton.jit
def load_row(pointer, place, columns, width):
    """Load a row [1, width] at its place among others."""
    return tl.load(pointer + place * width + columns[None, :], mask=(columns < width)[None, :], other=0.0)


@triton.jit
def store_row(pointer, place, columns, width, row):
    """Store a row [1, width] at its place among others."""
    tl.store(pointer + place * width + columns[None, :], row, mask=(columns < width)[None, :])


@triton.jit
def inner_descent_kernel(
    q, k, v, rates, factors, weight, bias, gain, shift, weights, biases, out, sizes,
    C: tl.constexpr, PRECISION: tl.constexpr, WIDTH: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Write y of a head of a sequence, and its inner model before each minibatch. Grid (M B H)."""
    sizes = DescentSizes(sizes.batch, sizes.time, sizes.heads, WIDTH, sizes.eps)
    columns, places, head = tl.arange(0, BLOCK_K), tl.arange(0, C), head_of_member(sizes)
    inside, square = (columns < WIDTH)[None, :], columns[:, None] * WIDTH + columns[None, :]
    whole = (columns < sizes.width)[:, None] & inside
    g = load_row(gain, head, columns, sizes.width)
    b = load_row(shift, head, columns, sizes.width)
    w = tl.load(weight + head * WIDTH * WIDTH + square, mask=whole, other=0.0)
    c = load_row(bias, head, columns, sizes.width)
    share, last = load_factors(factors, places, sizes, C)
    count = tl.cdiv(sizes.time, C)
    for index in range(count):
        kept = tl.program_id(0).to(tl.int64) * count + index
        tl.store(weights + kept * WIDTH * WIDTH + square, w.to(weights.dtype.element_ty), mask=whole)
        store_row(biases, kept, columns, sizes.width, c)
        at = minibatch_at(index, sizes, columns, C, C)
        query, key, value, rate = load_minibatch(q, k, v, rates, at)
        normed, scale = layer_norm(inner_product(key, w, PRECISION) + c, inside, sizes)
        u = g * (g * normed + b - value + key)
        mean, along = taken_by_norm(u, normed, sizes)
        slope = tl.where(inside, scale * (u - mean - normed * along), 0.0)
        steps = tl.where(places[:, None] >= places[None, :], share[:, None] * rate[None, :], 0.0)
        y = (
            inner_product(query, w, PRECISION)
            + c
            - step_product(steps * (inner_product(query, tl.trans(key), PRECISION) + 1.0), slope, PRECISION)
        )
        shown, _ = layer_norm(y, inside, sizes)
        tl.store(out + at.tokens, (query + g * shown + b).to(out.dtype.element_ty), mask=at.mask)
        slope *= rate[:, None]
        w -= last * inner_product(tl.trans(key), slope, PRECISION)
        c -= last * tl.sum(slope, 0)[None, :]


@triton.jit
def inner_descent_gradient_kernel(
    q, k, v, rates, factors, gain, shift, weights, biases, gradient, dq, dk, dv, drates, dfactors, dweight, dbias,
    dgain, dshift, sizes, C: tl.constexpr, PRECISION: tl.constexpr, WIDTH: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Write the gradients of the tokens of a head of a sequence, and its parts of those of parameters. Grid (M B H)."""
    sizes = DescentSizes(sizes.batch, sizes.time, sizes.heads, WIDTH, sizes.eps)
    columns, places, head = tl.arange(0, BLOCK_K), tl.arange(0, C), head_of_member(sizes)
    inside, square = (columns < WIDTH)[None, :], columns[:, None] * WIDTH + columns[None, :]
    whole = (columns < sizes.width)[:, None] & inside
    g = load_row(gain, head, columns, sizes.width)
    b = load_row(shift, head, columns, sizes.width)
    share, last = load_factors(factors, places, sizes, C)
    dw = tl.zeros([BLOCK_K, BLOCK_K], tl.float32)
    dc = tl.zeros([1, BLOCK_K], tl.float32)
    total_g = tl.zeros([C, BLOCK_K], tl.float32)
    total_b = total_g
    total_n = tl.zeros([C], tl.float32)
    count = tl.cdiv(sizes.time, C)
    unit, parts = largest_of_head(gradient, count, sizes, columns, C, PRECISION), parts_of_sums(count, PRECISION)
    for step in range(count):
        index = count - 1 - step
        kept = tl.program_id(0).to(tl.int64) * count + index
        w = tl.load(weights + kept * WIDTH * WIDTH + square, mask=whole, other=0.0)
        c = load_row(biases, kept, columns, sizes.width)
        at = minibatch_at(index, sizes, columns, C, C)
        query, key, value, rate = load_minibatch(q, k, v, rates, at)
        upstream = tl.load(gradient + at.tokens, mask=at.mask, other=0.0).to(tl.float32) / unit
        # The minibatch again.
        normed, scale = layer_norm(inner_product(key, w, PRECISION) + c, inside, sizes)
        passed, error, u, along = parts_of_slope(normed, key, value, g, b, inside, sizes)
        slope = scale * passed
        seen = places[:, None] >= places[None, :]
        scores = inner_product(query, tl.trans(key), PRECISION) + 1.0
        steps = tl.where(seen, share[:, None] * rate[None, :], 0.0)
        shown, spread = layer_norm(
            inner_product(query, w, PRECISION) + c - step_product(steps * scores, slope, PRECISION), inside, sizes
        )
        # The norm of the output.
        total_g += upstream * shown
        total_b += upstream
        from_y = g * upstream
        mean_y, along_y = taken_by_norm(from_y, shown, sizes)
        dy = tl.where(inside, spread * (from_y - mean_y - shown * along_y), 0.0)
        # Steps within the minibatch, and the one to the next.
        onto = -inner_product(dy, tl.trans(slope), PRECISION)
        dscores = onto * steps
        dsteps = tl.where(seen, onto * scores, 0.0)
        dslope = -step_product(tl.trans(steps * scores), dy, PRECISION)
        rated = rate[:, None] * slope
        summed = dw / parts
        carried = parts * inner_product(key, summed, PRECISION) + dc
        onto_rated = -last * carried
        to_last = -tl.sum(rated * carried)
        total_n += tl.sum(dsteps * rate[None, :], 1) + tl.where(places == C - 1, to_last, 0.0)
        drate = tl.sum(dsteps * share[:, None], 0) + tl.sum(onto_rated * slope, 1)
        dslope += rate[:, None] * onto_rated
        dkey = step_product(tl.trans(dscores), query, PRECISION)
        dkey -= last * parts * rate[:, None] * inner_product(slope, tl.trans(summed), PRECISION)
        dquery = upstream + inner_product(dy, tl.trans(w), PRECISION) + step_product(dscores, key, PRECISION)
        # The gradient of the loss by z.
        dz, derror, total_g, total_b = through_slope(
            dslope, passed, error, u, along, normed, scale, g, inside, sizes, total_g, total_b
        )
        dkey += derror + inner_product(dz, tl.trans(w), PRECISION)
        dw += inner_product(tl.trans(query), dy, PRECISION) + inner_product(tl.trans(key), dz, PRECISION)
        dc += tl.sum(dy + dz, 0)[None, :]
        tl.store(dq + at.tokens, (unit * dquery).to(dq.dtype.element_ty), mask=at.mask)
        tl.store(dk + at.tokens, (unit * dkey).to(dk.dtype.element_ty), mask=at.mask)
        tl.store(dv + at.tokens, (-unit * derror).to(dv.dtype.element_ty), mask=at.mask)
        tl.store(drates + at.rates, unit * drate, mask=at.rows)
    own = tl.program_id(0).to(tl.int64)
    tl.store(dweight + own * WIDTH * WIDTH + square, unit * dw, mask=whole)
    store_row(dbias, own, columns, sizes.width, unit * dc)
    store_row(dgain, own, columns, sizes.width, unit * tl.sum(total_g, 0)[None, :])
    store_row(dshift, own, columns, sizes.width, unit * tl.sum(total_b, 0)[None, :])
    tl.store(dfactors + own * C + places, unit * total_n)


class FusedInnerDescent(torch.autograd.Function):
    """`inner_descent` of a linear map: parameters are [M, H, K, K], [M, H, 1, K] and twice that for the norm."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, rates: Tensor, factors: Tensor, weight: Tensor, bias: Tensor,
        gain: Tensor, shift: Tensor, eps: float,
    ) -> Tensor:  # fmt: skip
        q, k, v, rates, factors, weight, bias, gain, shift = (
            x.contiguous() for x in (q, k, v, rates, factors, weight, bias, gain, shift)
        )
        members, batch, time, heads, width = q.shape
        count, columns = -(-time // MINIBATCH), padded(width, FEWEST_COLUMNS)
        weights = weight.new_empty(members * batch * heads, count, width, width, dtype=operand_type(v))
        biases, out = weight.new_empty(members * batch * heads, count, width), torch.empty_like(v)
        with launch_on(q):
            inner_descent_kernel[(members * batch * heads,)](
                q, k, v, rates, factors, weight, bias, gain, shift, weights, biases, out,
                DescentSizes(batch, time, heads, width, eps), C=MINIBATCH, PRECISION=products_of(v), WIDTH=width,
                BLOCK_K=columns, num_warps=WARPS[columns],
            )  # fmt: skip
        ctx.save_for_backward(q, k, v, rates, factors, gain, shift, weights, biases)
        ctx.eps = eps
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, rates, factors, gain, shift, weights, biases = ctx.saved_tensors
        members, batch, time, heads, width = q.shape
        dq, dk, dv, drates = (torch.empty_like(x) for x in (q, k, v, rates))
        rows, columns = (members, batch, heads), padded(width, FEWEST_COLUMNS)
        dfactors, dweight = gain.new_empty(*rows, MINIBATCH), gain.new_empty(*rows, width, width)
        dbias, dgain, dshift = (gain.new_empty(*rows, 1, width) for _ in range(3))
        with launch_on(q):
            inner_descent_gradient_kernel[(members * batch * heads,)](
                q, k, v, rates, factors, gain, shift, weights, biases, gradient.contiguous(), dq, dk, dv, drates,
                dfactors, dweight, dbias, dgain, dshift, DescentSizes(batch, time, heads, width, ctx.eps), C=MINIBATCH,
                PRECISION=products_of(v), WIDTH=width, BLOCK_K=columns, num_warps=WARPS[columns],
            )  # fmt: skip
        sums = (part.sum(1) for part in (dweight, dbias, dgain, dshift))
        return dq, dk, dv, drates, dfactors.sum((1, 2)), *sums, None
