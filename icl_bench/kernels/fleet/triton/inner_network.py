"""Gradient descent of an inner network of two layers in Triton: one launch each way, a program a head of a sequence.

It is as that of a linear map in `inner_descent`, with GELU in its tanh form between the layers. The weights of the
second layer are transposed, so that no product has more than K rows: Triton 3.6 compiles wider ones wrong here.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.fleet.records import MINIBATCH
from icl_bench.kernels.fleet.triton.inner_descent import (
    FEWEST_COLUMNS,
    DescentSizes,
    head_of_member,
    inner_product,
    layer_norm,
    load_factors,
    load_minibatch,
    load_row,
    minibatch_at,
    store_row,
    taken_by_norm,
    through_slope,
)
from icl_bench.kernels.triton.common import padded, precision_of

NETWORK_WARPS = 8


@triton.jit
def gelu_parts(x):
    """Return GELU in its tanh form, its first and its second derivative."""
    inner: tl.constexpr = 0.7978845608028654
    t = 2.0 * tl.sigmoid(2.0 * inner * (x + 0.044715 * x * x * x)) - 1.0
    slope = inner * (1.0 + 0.134145 * x * x)
    rest = 1.0 - t * t
    value, first = 0.5 * x * (1.0 + t), 0.5 * (1.0 + t) + 0.5 * x * rest * slope
    return value, first, rest * (slope + x * (inner * 0.134145 * x - t * slope * slope))


@triton.jit
def load_inner_weights(pointer, place, columns, middle, width, hidden):
    """Load a matrix [K, hidden] at its place among others."""
    mask = (columns < width)[:, None] & (middle < hidden)[None, :]
    return tl.load(pointer + (place * width + columns)[:, None] * hidden + middle[None, :], mask=mask, other=0.0)


@triton.jit
def store_inner_weights(pointer, place, columns, middle, width, hidden, matrix):
    """Store a matrix [K, hidden] at its place among others."""
    mask = (columns < width)[:, None] & (middle < hidden)[None, :]
    tl.store(pointer + (place * width + columns)[:, None] * hidden + middle[None, :], matrix, mask=mask)


@triton.jit
def inner_network_kernel(
    q, k, v, rates, factors, first, first_bias, second, second_bias, gain, shift, firsts, first_biases, seconds,
    second_biases, out, sizes, hidden,
    C: tl.constexpr, PRECISION: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """Write y of a head of a sequence, and its inner network before each minibatch. Grid (M B H)."""
    columns, middle, places, head = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_H), tl.arange(0, C), head_of_member(sizes)
    inside, width = (columns < sizes.width)[None, :], sizes.width
    g, b = load_row(gain, head, columns, width), load_row(shift, head, columns, width)
    w, c = load_inner_weights(first, head, columns, middle, width, hidden), load_row(first_bias, head, middle, hidden)
    w2 = load_inner_weights(second, head, columns, middle, width, hidden)
    c2 = load_row(second_bias, head, columns, width)
    share, last = load_factors(factors, places, sizes, C)
    count = tl.cdiv(sizes.time, C)
    for index in range(count):
        kept = tl.program_id(0).to(tl.int64) * count + index
        store_inner_weights(firsts, kept, columns, middle, width, hidden, w)
        store_inner_weights(seconds, kept, columns, middle, width, hidden, w2)
        store_row(first_biases, kept, middle, hidden, c)
        store_row(second_biases, kept, columns, width, c2)
        at = minibatch_at(index, sizes, columns, C)
        query, key, value, rate = load_minibatch(q, k, v, rates, at)
        held, bend, _ = gelu_parts(inner_product(key, w, PRECISION) + c)
        normed, scale = layer_norm(inner_product(held, tl.trans(w2), PRECISION) + c2, inside, sizes)
        u = g * (g * normed + b - value + key)
        mean, along = taken_by_norm(u, normed, sizes)
        slope2 = tl.where(inside, scale * (u - mean - normed * along), 0.0)
        slope = inner_product(slope2, w2, PRECISION) * bend
        steps = tl.where(places[:, None] >= places[None, :], share[:, None] * rate[None, :], 0.0)
        y = (
            inner_product(query, w, PRECISION)
            + c
            - inner_product(steps * (inner_product(query, tl.trans(key), PRECISION) + 1.0), slope, PRECISION)
        )
        shown, _, _ = gelu_parts(y)
        y = inner_product(shown, tl.trans(w2), PRECISION) + c2
        y -= inner_product(steps * (inner_product(shown, tl.trans(held), PRECISION) + 1.0), slope2, PRECISION)
        normed, _ = layer_norm(y, inside, sizes)
        tl.store(out + at.tokens, (query + g * normed + b).to(out.dtype.element_ty), mask=at.mask)
        rate = last * rate
        slope *= rate[:, None]
        slope2 *= rate[:, None]
        w -= inner_product(tl.trans(key), slope, PRECISION)
        w2 -= inner_product(tl.trans(slope2), held, PRECISION)
        c -= tl.sum(slope, 0)[None, :]
        c2 -= tl.sum(slope2, 0)[None, :]


@triton.jit
def inner_network_gradient_kernel(
    q, k, v, rates, factors, gain, shift, firsts, first_biases, seconds, second_biases, gradient, dq, dk, dv, drates,
    dfactors, dfirst, dfirst_bias, dsecond, dsecond_bias, dgain, dshift, sizes, hidden,
    C: tl.constexpr, PRECISION: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """Write the gradients of the tokens of a head of a sequence, and its parts of those of parameters. Grid (M B H)."""
    columns, middle, places, head = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_H), tl.arange(0, C), head_of_member(sizes)
    inside, width = (columns < sizes.width)[None, :], sizes.width
    g, b = load_row(gain, head, columns, width), load_row(shift, head, columns, width)
    share, last = load_factors(factors, places, sizes, C)
    dw = tl.zeros([BLOCK_K, BLOCK_H], tl.float32)
    dc = tl.zeros([1, BLOCK_H], tl.float32)
    dw2 = tl.zeros([BLOCK_K, BLOCK_H], tl.float32)
    dc2 = tl.zeros([1, BLOCK_K], tl.float32)
    total_g = tl.zeros([C, BLOCK_K], tl.float32)
    total_b = total_g
    total_n = tl.zeros([C], tl.float32)
    count = tl.cdiv(sizes.time, C)
    for step in range(count):
        index = count - 1 - step
        kept = tl.program_id(0).to(tl.int64) * count + index
        w = load_inner_weights(firsts, kept, columns, middle, width, hidden)
        c = load_row(first_biases, kept, middle, hidden)
        w2 = load_inner_weights(seconds, kept, columns, middle, width, hidden)
        c2 = load_row(second_biases, kept, columns, width)
        at = minibatch_at(index, sizes, columns, C)
        query, key, value, rate = load_minibatch(q, k, v, rates, at)
        upstream = tl.load(gradient + at.tokens, mask=at.mask, other=0.0).to(tl.float32)
        # The minibatch again.
        held, bend, curve = gelu_parts(inner_product(key, w, PRECISION) + c)
        normed, scale = layer_norm(inner_product(held, tl.trans(w2), PRECISION) + c2, inside, sizes)
        error = tl.where(inside, g * normed + b - value + key, 0.0)
        u = g * error
        mean, along = taken_by_norm(u, normed, sizes)
        passed = tl.where(inside, u - mean - normed * along, 0.0)
        slope2 = scale * passed
        straight = inner_product(slope2, w2, PRECISION)
        slope = straight * bend
        seen = places[:, None] >= places[None, :]
        steps = tl.where(seen, share[:, None] * rate[None, :], 0.0)
        scores = inner_product(query, tl.trans(key), PRECISION) + 1.0
        y = inner_product(query, w, PRECISION) + c - inner_product(steps * scores, slope, PRECISION)
        hidden_y, bend_y, _ = gelu_parts(y)
        scores2 = inner_product(hidden_y, tl.trans(held), PRECISION) + 1.0
        y = inner_product(hidden_y, tl.trans(w2), PRECISION) + c2 - inner_product(steps * scores2, slope2, PRECISION)
        shown, spread = layer_norm(y, inside, sizes)
        # The norm of the output, and the second layer of the queries.
        total_g += upstream * shown
        total_b += upstream
        from_y = g * upstream
        mean_y, along_y = taken_by_norm(from_y, shown, sizes)
        dy2 = tl.where(inside, spread * (from_y - mean_y - shown * along_y), 0.0)
        onto = -inner_product(dy2, tl.trans(slope2), PRECISION)
        dsteps = tl.where(seen, onto * scores2, 0.0)
        onto *= steps
        dslope2 = -inner_product(tl.trans(steps * scores2), dy2, PRECISION)
        dheld = inner_product(tl.trans(onto), hidden_y, PRECISION)
        dy = (inner_product(dy2, w2, PRECISION) + inner_product(onto, held, PRECISION)) * bend_y
        # Their first layer.
        onto = -inner_product(dy, tl.trans(slope), PRECISION)
        dsteps += tl.where(seen, onto * scores, 0.0)
        onto *= steps
        dslope = -inner_product(tl.trans(steps * scores), dy, PRECISION)
        dkey = inner_product(tl.trans(onto), query, PRECISION)
        dquery = upstream + inner_product(dy, tl.trans(w), PRECISION) + inner_product(onto, key, PRECISION)
        # The step to the next minibatch.
        carried, carried2 = inner_product(key, dw, PRECISION) + dc, inner_product(held, tl.trans(dw2), PRECISION) + dc2
        told = tl.sum(slope * carried, 1) + tl.sum(slope2 * carried2, 1)
        total_n += tl.sum(dsteps * rate[None, :], 1) - tl.where(places == C - 1, tl.sum(rate * told), 0.0)
        drate = tl.sum(dsteps * share[:, None], 0) - last * told
        rated = (last * rate)[:, None]
        dslope -= rated * carried
        dslope2 -= rated * carried2
        dkey -= inner_product(rated * slope, tl.trans(dw), PRECISION)
        dheld -= inner_product(rated * slope2, dw2, PRECISION)
        dw += inner_product(tl.trans(query), dy, PRECISION)
        dw2 += inner_product(tl.trans(dy2), hidden_y, PRECISION)
        dc += tl.sum(dy, 0)[None, :]
        dc2 += tl.sum(dy2, 0)[None, :]
        # The gradient of the loss by the hidden layer, and by the output.
        dz = dslope * straight * curve
        dstraight = dslope * bend
        dslope2 += inner_product(dstraight, tl.trans(w2), PRECISION)
        dw2 += inner_product(tl.trans(slope2), dstraight, PRECISION)
        dz2, derror, total_g, total_b = through_slope(
            dslope2, passed, error, u, along, normed, scale, g, inside, sizes, total_g, total_b
        )
        dw2 += inner_product(tl.trans(dz2), held, PRECISION)
        dc2 += tl.sum(dz2, 0)[None, :]
        dz += (dheld + inner_product(dz2, w2, PRECISION)) * bend
        dw += inner_product(tl.trans(key), dz, PRECISION)
        dc += tl.sum(dz, 0)[None, :]
        dkey += derror + inner_product(dz, tl.trans(w), PRECISION)
        tl.store(dq + at.tokens, dquery.to(dq.dtype.element_ty), mask=at.mask)
        tl.store(dk + at.tokens, dkey.to(dk.dtype.element_ty), mask=at.mask)
        tl.store(dv + at.tokens, (-derror).to(dv.dtype.element_ty), mask=at.mask)
        tl.store(drates + at.rates, drate, mask=at.rows)
    own = tl.program_id(0).to(tl.int64)
    store_inner_weights(dfirst, own, columns, middle, width, hidden, dw)
    store_inner_weights(dsecond, own, columns, middle, width, hidden, dw2)
    store_row(dfirst_bias, own, middle, hidden, dc)
    store_row(dsecond_bias, own, columns, width, dc2)
    store_row(dgain, own, columns, width, tl.sum(total_g, 0)[None, :])
    store_row(dshift, own, columns, width, tl.sum(total_b, 0)[None, :])
    tl.store(dfactors + own * C + places, total_n)


class FusedInnerNetwork(torch.autograd.Function):
    """`inner_descent` of two layers: weights are [M, H, in, out], biases [M, H, 1, out], those of the norm alike."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, rates: Tensor, factors: Tensor, first: Tensor, first_bias: Tensor,
        second: Tensor, second_bias: Tensor, gain: Tensor, shift: Tensor, eps: float,
    ) -> Tensor:  # fmt: skip
        given = (q, k, v, rates, factors, first, first_bias, second.mT, second_bias, gain, shift)
        q, k, v, rates, factors, first, first_bias, second, second_bias, gain, shift = (x.contiguous() for x in given)
        (members, batch, time, heads, width), hidden = q.shape, first.shape[-1]
        rows = (members * batch * heads, -(-time // MINIBATCH))
        layers = [first.new_empty(*rows, *part.shape[2:]) for part in (first, first_bias, second, second_bias)]
        out, sizes = torch.empty_like(v), DescentSizes(batch, time, heads, width, eps)
        with launch_on(q):
            inner_network_kernel[rows[:1]](
                q, k, v, rates, factors, first, first_bias, second, second_bias, gain, shift, *layers, out, sizes,
                hidden, C=MINIBATCH, PRECISION=precision_of(v), BLOCK_K=padded(width, FEWEST_COLUMNS),
                BLOCK_H=padded(hidden, FEWEST_COLUMNS), num_warps=NETWORK_WARPS,
            )  # fmt: skip
        ctx.save_for_backward(q, k, v, rates, factors, gain, shift, *layers)
        ctx.eps = eps
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, rates, factors, gain, shift, *layers = ctx.saved_tensors
        (members, batch, time, heads, width), hidden = q.shape, layers[0].shape[-1]
        dq, dk, dv, drates = (torch.empty_like(x) for x in (q, k, v, rates))
        rows, sizes = (members, batch, heads), DescentSizes(batch, time, heads, width, ctx.eps)
        dfactors = gain.new_empty(*rows, MINIBATCH)
        parts = [gain.new_empty(*rows, *part.shape[2:]) for part in layers]
        parts += [gain.new_empty(*rows, 1, width) for _ in range(2)]
        with launch_on(q):
            inner_network_gradient_kernel[(members * batch * heads,)](
                q, k, v, rates, factors, gain, shift, *layers, gradient.contiguous(), dq, dk, dv, drates, dfactors,
                *parts, sizes, hidden, C=MINIBATCH, PRECISION=precision_of(v), BLOCK_K=padded(width, FEWEST_COLUMNS),
                BLOCK_H=padded(hidden, FEWEST_COLUMNS), num_warps=NETWORK_WARPS,
            )  # fmt: skip
        dfirst, dfirst_bias, dsecond, *others = (part.sum(1) for part in parts)
        return dq, dk, dv, drates, dfactors.sum((1, 2)), dfirst, dfirst_bias, dsecond.mT, *others, None
