"""Gradient descent of an inner network of two layers in Triton: one launch each way, a program a head of a sequence.

It is as that of a linear map in `inner_descent`, with GELU in its tanh form between the layers. The network lies in
memory, and each minibatch walks it once by tiles of the hidden layer: a tile ends one minibatch, takes the step to the
next and begins that one, since nothing but sums over tiles goes from one layer to the other. The weights of the second
layer are transposed, so that no product has more than K rows: Triton 3.6 compiles wider ones wrong here.
"""

from typing import Any, NamedTuple

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
    load_row,
    minibatch_at,
    store_row,
    taken_by_norm,
    through_slope,
)
from icl_bench.kernels.triton.common import padded, precision_of

NETWORK_TILES = {16: (16, 1), 32: (16, 1), 64: (32, 4), 128: (64, 8)}
"""Columns of a tile of the hidden layer, and warps of a program, by padded width."""


class Network(NamedTuple):
    """Networks, or gradients of networks."""

    first: Any
    """[.., K, hidden]."""
    bias: Any
    """Of the first layer, [.., hidden]."""
    second: Any
    """[.., K, hidden]."""


class Outputs(NamedTuple):
    """Outputs of the network for keys and for queries of minibatches, [.., C, K]."""

    keys: Any
    queries: Any


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
def load_slice(pointer, place, rows, height, columns, width, there):
    """Load a tile of a matrix [height, width] at its place among others, zeros outside and where `there` is 0."""
    mask = (rows < height * there)[:, None] & (columns < width)[None, :]
    tile = pointer + place * height * width + (rows[:, None] * width + columns[None, :])
    return tl.load(tile, mask=mask, other=0.0)


@triton.jit
def store_slice(pointer, place, rows, height, columns, width, there, tile):
    """Store a tile of a matrix [height, width] at its place among others, or nothing where `there` is 0."""
    mask = (rows < height * there)[:, None] & (columns < width)[None, :]
    tl.store(pointer + place * height * width + (rows[:, None] * width + columns[None, :]), tile, mask=mask)


@triton.jit
def load_minibatch_of(pointer, at):
    """Load tokens of a minibatch in float32."""
    return tl.load(pointer + at.tokens, mask=at.mask, other=0.0).to(tl.float32)


@triton.jit
def key_slopes(z2, k, v, at, g, b, inside, sizes):
    """Return the gradient of the inner loss by the outputs of keys, and what `through_slope` takes of its parts."""
    normed, scale = layer_norm(z2, inside, sizes)
    error = tl.where(inside, g * normed + b - load_minibatch_of(v, at) + load_minibatch_of(k, at), 0.0)
    u = g * error
    mean, along = taken_by_norm(u, normed, sizes)
    passes = tl.where(inside, u - mean - normed * along, 0.0)
    return scale * passes, passes, error, u, along, normed, scale


@triton.jit
def begin_minibatch(key, w, w2, c, kept, after, columns, width, middle, hidden, there, PRECISION: tl.constexpr):
    """Keep a tile of the network; return its part of the outputs of keys."""
    store_slice(kept.first, after, columns, width, middle, hidden, there, w)
    store_slice(kept.second, after, columns, width, middle, hidden, there, w2)
    tl.store(kept.bias + after * hidden + middle, c, mask=middle < hidden * there)
    held = gelu_parts(inner_product(key, w, PRECISION) + c[None, :])[0]
    return inner_product(held, tl.trans(w2), PRECISION)


@triton.jit
def inner_network_kernel(
    q, k, v, rates, factors, given, second_bias, gain, shift, kept, outputs, slopes, out, sizes, hidden, slots,
    C: tl.constexpr, PRECISION: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """Write y of a head of a sequence, its inner network before each minibatch, and its outputs. Grid (M B H).

    Minibatch i is kept at slot i % slots. `slopes` holds the gradient by the outputs of keys of the current one.
    """
    columns, places, head = tl.arange(0, BLOCK_K), tl.arange(0, C), head_of_member(sizes)
    inside, width = (columns < sizes.width)[None, :], sizes.width
    g, b = load_row(gain, head, columns, width), load_row(shift, head, columns, width)
    c2 = load_row(second_bias, head, columns, width)
    share, last = load_factors(factors, places, sizes, C)
    count, program = tl.cdiv(sizes.time, C), tl.program_id(0).to(tl.int64)
    key = load_minibatch_of(k, minibatch_at(0, sizes, columns, C))
    z2 = tl.zeros([C, BLOCK_K], tl.float32) + c2
    for start in range(0, hidden, BLOCK_H):
        middle = start + tl.arange(0, BLOCK_H)
        w = load_slice(given.first, head, columns, width, middle, hidden, 1)
        w2 = load_slice(given.second, head, columns, width, middle, hidden, 1)
        c = tl.load(given.bias + head * hidden + middle, mask=middle < hidden, other=0.0)
        z2 += begin_minibatch(key, w, w2, c, kept, program * slots, columns, width, middle, hidden, 1, PRECISION)
    for index in range(count):
        place, after = program * slots + index % slots, program * slots + (index + 1) % slots
        more = tl.where(index + 1 < count, 1, 0)
        at, at_next = minibatch_at(index, sizes, columns, C), minibatch_at(index + 1, sizes, columns, C)
        query, key = load_minibatch_of(q, at), load_minibatch_of(k, at)
        rate = tl.load(rates + at.rates, mask=at.rows, other=0.0)
        store_slice(outputs.keys, place, places, C, columns, width, 1, z2)
        slope2 = key_slopes(z2, k, v, at, g, b, inside, sizes)[0]
        steps = tl.where(places[:, None] >= places[None, :], share[:, None] * rate[None, :], 0.0)
        weights = steps * (inner_product(query, tl.trans(key), PRECISION) + 1.0)
        y2 = c2 - inner_product(steps, slope2, PRECISION)
        moved = (last * rate)[:, None]
        c2 -= tl.sum(moved * slope2, 0)[None, :]
        store_slice(slopes, program, places, C, columns, width, 1, slope2)
        z2 = tl.zeros([C, BLOCK_K], tl.float32) + c2
        tl.debug_barrier()  # other threads wrote what this minibatch reads
        for start in range(0, hidden, BLOCK_H):
            middle = start + tl.arange(0, BLOCK_H)
            w = load_slice(kept.first, place, columns, width, middle, hidden, 1)
            w2 = load_slice(kept.second, place, columns, width, middle, hidden, 1)
            c = tl.load(kept.bias + place * hidden + middle, mask=middle < hidden, other=0.0)
            # Read again in each turn, they occupy no registers between products.
            slope2, query, key = (
                load_slice(slopes, program, places, C, columns, width, 1),
                load_minibatch_of(q, at),
                load_minibatch_of(k, at),
            )
            held, bend, _ = gelu_parts(inner_product(key, w, PRECISION) + c[None, :])
            slope = inner_product(slope2, w2, PRECISION) * bend
            y = inner_product(query, w, PRECISION) + c[None, :] - inner_product(weights, slope, PRECISION)
            shown = gelu_parts(y)[0]
            y2 += inner_product(shown, tl.trans(w2), PRECISION)
            y2 -= inner_product(steps * inner_product(shown, tl.trans(held), PRECISION), slope2, PRECISION)
            slope *= moved
            w -= inner_product(tl.trans(key), slope, PRECISION)
            w2 -= inner_product(tl.trans(slope2), moved * held, PRECISION)
            c -= tl.sum(slope, 0)
            z2 += begin_minibatch(
                load_minibatch_of(k, at_next), w, w2, c, kept, after, columns, width, middle, hidden, more, PRECISION
            )
        store_slice(outputs.queries, place, places, C, columns, width, 1, y2)
        normed = layer_norm(y2, inside, sizes)[0]
        tl.store(out + at.tokens, (load_minibatch_of(q, at) + g * normed + b).to(out.dtype.element_ty), mask=at.mask)


@triton.jit
def inner_network_gradient_kernel(
    q, k, v, rates, factors, gain, shift, kept, outputs, gradient, dq, dk, dv, drates, dfactors, dkept, dsecond_bias,
    dgain, dshift, slopes, passed, sizes, hidden,
    C: tl.constexpr, PRECISION: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """Write the gradients of the tokens of a head of a sequence, and its parts of those of parameters. Grid (M B H).

    Each turn ends the gradients of the minibatch after and begins those of its own; in the last there is only the
    first one to end. Three rows of `slopes` hold the gradient of the inner loss by the outputs of keys, and those of
    the loss by the outputs of queries and of keys; of `passed`, what the hidden layer of keys gets but through their
    outputs, its values, and the slopes of GELU.
    """
    columns, places, head = tl.arange(0, BLOCK_K), tl.arange(0, C), head_of_member(sizes)
    inside, width = (columns < sizes.width)[None, :], sizes.width
    g, b = load_row(gain, head, columns, width), load_row(shift, head, columns, width)
    share, last = load_factors(factors, places, sizes, C)
    seen = places[:, None] >= places[None, :]
    count, own = tl.cdiv(sizes.time, C), tl.program_id(0).to(tl.int64)
    dc2 = tl.zeros([1, BLOCK_K], tl.float32)
    total_g, total_b, total_n = dc2, dc2, tl.zeros([C], tl.float32)
    dkey_after = tl.zeros([C, BLOCK_K], tl.float32)
    for step in range(count + 1):
        index = count - 1 - step
        place, place_after = own * count + tl.maximum(index, 0), own * count + tl.minimum(index + 1, count - 1)
        there, started = tl.where(index >= 0, 1, 0), tl.minimum(step, 1)
        at, at_after = minibatch_at(index, sizes, columns, C), minibatch_at(index + 1, sizes, columns, C)
        query, key, upstream = load_minibatch_of(q, at), load_minibatch_of(k, at), load_minibatch_of(gradient, at)
        rate = tl.load(rates + at.rates, mask=at.rows, other=0.0)
        z2 = load_slice(outputs.keys, place, places, C, columns, width, there)
        slope2 = key_slopes(z2, k, v, at, g, b, inside, sizes)[0]
        # The norm of the output.
        shown, spread = layer_norm(load_slice(outputs.queries, place, places, C, columns, width, there), inside, sizes)
        total_g += tl.sum(upstream * shown, 0)[None, :]
        total_b += tl.sum(upstream, 0)[None, :]
        from_y = g * upstream
        mean_y, along_y = taken_by_norm(from_y, shown, sizes)
        dy2 = tl.where(inside, spread * (from_y - mean_y - shown * along_y), 0.0)
        # Steps within the minibatch.
        steps = tl.where(seen, share[:, None] * rate[None, :], 0.0)
        weights = steps * (inner_product(query, tl.trans(key), PRECISION) + 1.0)
        rated_onto2 = -inner_product(dy2, tl.trans(slope2), PRECISION) * steps
        moved = (last * rate)[:, None]
        store_slice(slopes, own * 3, places, C, columns, width, 1, slope2)
        store_slice(slopes, own * 3 + 1, places, C, columns, width, 1, dy2)
        dc2_after = dc2
        dc2 += tl.sum(dy2, 0)[None, :]
        dquery = upstream
        dkey = tl.zeros([C, BLOCK_K], tl.float32)
        dslope2 = dkey - moved * dc2_after
        onto, scores2 = tl.zeros([C, C], tl.float32), tl.full([C, C], 1.0, tl.float32)
        told = tl.sum(slope2 * dc2_after, 1)
        tl.debug_barrier()  # other threads wrote what this minibatch reads
        for start in range(0, hidden, BLOCK_H):
            middle = start + tl.arange(0, BLOCK_H)
            w = load_slice(kept.first, place, columns, width, middle, hidden, 1)
            w2 = load_slice(kept.second, place, columns, width, middle, hidden, 1)
            c = tl.load(kept.bias + place * hidden + middle, mask=middle < hidden, other=0.0)
            dw = load_slice(dkept.first, own, columns, width, middle, hidden, started)
            dw2 = load_slice(dkept.second, own, columns, width, middle, hidden, started)
            dc = tl.load(dkept.bias + own * hidden + middle, mask=middle < hidden * started, other=0.0)
            dz = load_slice(passed, own * 3, places, C, middle, hidden, started)
            held_after = load_slice(passed, own * 3 + 1, places, C, middle, hidden, started)
            bend_after = load_slice(passed, own * 3 + 2, places, C, middle, hidden, started)
            # Read again in each turn, they occupy no registers between products.
            slope2 = load_slice(slopes, own * 3, places, C, columns, width, 1)
            dy2 = load_slice(slopes, own * 3 + 1, places, C, columns, width, 1)
            dz2 = load_slice(slopes, own * 3 + 2, places, C, columns, width, started)
            query, key, key_after = load_minibatch_of(q, at), load_minibatch_of(k, at), load_minibatch_of(k, at_after)
            held, bend, curve = gelu_parts(inner_product(key, w, PRECISION) + c[None, :])
            straight = inner_product(slope2, w2, PRECISION)
            slope = straight * bend
            # The end of the minibatch after, by its weights.
            w_after = load_slice(kept.first, place_after, columns, width, middle, hidden, 1)
            w2_after = load_slice(kept.second, place_after, columns, width, middle, hidden, 1)
            dz += inner_product(dz2, w2_after, PRECISION) * bend_after
            dkey_after += inner_product(dz, tl.trans(w_after), PRECISION)
            dw += inner_product(tl.trans(key_after), dz, PRECISION)
            dw2 += inner_product(tl.trans(dz2), held_after, PRECISION)
            dc += tl.sum(dz, 0)
            # The step to it.
            carried, pulled = inner_product(key, dw, PRECISION) + dc[None, :], inner_product(slope2, dw2, PRECISION)
            told += tl.sum(slope * carried + held * pulled, 1)
            dkey -= inner_product(moved * slope, tl.trans(dw), PRECISION)
            dslope2 -= inner_product(moved * held, tl.trans(dw2), PRECISION)
            # Queries, second layer first.
            y = inner_product(query, w, PRECISION) + c[None, :] - inner_product(weights, slope, PRECISION)
            hidden_y, bend_y, _ = gelu_parts(y)
            scores2 += inner_product(hidden_y, tl.trans(held), PRECISION)
            dheld = inner_product(tl.trans(rated_onto2), hidden_y, PRECISION) - moved * pulled
            dy = (inner_product(dy2, w2, PRECISION) + inner_product(rated_onto2, held, PRECISION)) * bend_y
            onto -= inner_product(dy, tl.trans(slope), PRECISION)
            dslope = -inner_product(tl.trans(weights), dy, PRECISION) - moved * carried
            dquery += inner_product(dy, tl.trans(w), PRECISION)
            # Keys, up to their outputs.
            dstraight = dslope * bend
            dslope2 += inner_product(dstraight, tl.trans(w2), PRECISION)
            dw += inner_product(tl.trans(query), dy, PRECISION)
            dw2 += inner_product(tl.trans(dy2), hidden_y, PRECISION)
            dw2 += inner_product(tl.trans(slope2), dstraight, PRECISION)
            dc += tl.sum(dy, 0)
            dz = dslope * straight * curve + dheld * bend
            store_slice(passed, own * 3, places, C, middle, hidden, 1, dz)
            store_slice(passed, own * 3 + 1, places, C, middle, hidden, 1, held)
            store_slice(passed, own * 3 + 2, places, C, middle, hidden, 1, bend)
            store_slice(dkept.first, own, columns, width, middle, hidden, 1, dw)
            store_slice(dkept.second, own, columns, width, middle, hidden, 1, dw2)
            tl.store(dkept.bias + own * hidden + middle, dc, mask=middle < hidden)
        tl.store(dk + at_after.tokens, dkey_after.to(dk.dtype.element_ty), mask=at_after.mask)
        # The rest of the step, of whose parts none was kept beside the tiles.
        query, key = load_minibatch_of(q, at), load_minibatch_of(k, at)
        slope2 = load_slice(slopes, own * 3, places, C, columns, width, 1)
        dy2 = load_slice(slopes, own * 3 + 1, places, C, columns, width, 1)
        scores = inner_product(query, tl.trans(key), PRECISION) + 1.0
        onto2 = -inner_product(dy2, tl.trans(slope2), PRECISION)
        dsteps = tl.where(seen, onto2 * scores2 + onto * scores, 0.0)
        total_n += tl.sum(dsteps * rate[None, :], 1) - tl.where(places == C - 1, tl.sum(rate * told), 0.0)
        drate = tl.sum(dsteps * share[:, None], 0) - last * told
        onto *= steps
        dquery += inner_product(onto, key, PRECISION)
        dkey += inner_product(tl.trans(onto), query, PRECISION)
        dslope2 -= inner_product(tl.trans(steps * scores2), dy2, PRECISION)
        z2 = load_slice(outputs.keys, place, places, C, columns, width, there)
        slope2, passes, error, u, along, normed, scale = key_slopes(z2, k, v, at, g, b, inside, sizes)
        nothing = tl.zeros([C, BLOCK_K], tl.float32)
        dz2, derror, own_g, own_b = through_slope(
            dslope2, passes, error, u, along, normed, scale, g, inside, sizes, nothing, nothing
        )
        total_g += tl.sum(own_g, 0)[None, :]
        total_b += tl.sum(own_b, 0)[None, :]
        store_slice(slopes, own * 3 + 2, places, C, columns, width, 1, dz2)
        dc2 += tl.sum(dz2, 0)[None, :]
        dkey_after = dkey + derror
        tl.store(dq + at.tokens, dquery.to(dq.dtype.element_ty), mask=at.mask)
        tl.store(dv + at.tokens, (-derror).to(dv.dtype.element_ty), mask=at.mask)
        tl.store(drates + at.rates, drate, mask=at.rows)
    store_row(dsecond_bias, own, columns, width, dc2)
    store_row(dgain, own, columns, width, total_g)
    store_row(dshift, own, columns, width, total_b)
    tl.store(dfactors + own * C + places, total_n)


class FusedInnerNetwork(torch.autograd.Function):
    """`inner_descent` of two layers: weights are [M, H, in, out], biases [M, H, 1, out], those of the norm alike."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, rates: Tensor, factors: Tensor, first: Tensor, first_bias: Tensor,
        second: Tensor, second_bias: Tensor, gain: Tensor, shift: Tensor, eps: float, keep: bool,
    ) -> Tensor:  # fmt: skip
        given = (q, k, v, rates, factors, first, first_bias, second.mT, second_bias, gain, shift)
        q, k, v, rates, factors, first, first_bias, second, second_bias, gain, shift = (x.contiguous() for x in given)
        (members, batch, time, heads, width), hidden = q.shape, first.shape[-1]
        rows, count = members * batch * heads, -(-time // MINIBATCH)
        slots = count if keep else min(count, 2)
        kept = Network(*(first.new_empty(rows, slots, *part.shape[2:]) for part in (first, first_bias, second)))
        outputs = Outputs(*(first.new_empty(rows, slots, MINIBATCH, width) for _ in range(2)))
        out, slopes = torch.empty_like(v), first.new_empty(rows, MINIBATCH, width)
        with launch_on(q):
            inner_network_kernel[(rows,)](
                q, k, v, rates, factors, Network(first, first_bias, second), second_bias, gain, shift, kept, outputs,
                slopes, out, DescentSizes(batch, time, heads, width, eps), hidden, slots, C=MINIBATCH,
                PRECISION=precision_of(v), **network_tiles(width),
            )  # fmt: skip
        ctx.save_for_backward(q, k, v, rates, factors, gain, shift, *kept, *outputs)
        ctx.eps = eps
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, rates, factors, gain, shift, first, first_bias, second, *outputs = ctx.saved_tensors
        (members, batch, time, heads, width), hidden = q.shape, first.shape[-1]
        dq, dk, dv, drates = (torch.empty_like(x) for x in (q, k, v, rates))
        rows = (members, batch, heads)
        dfactors, slopes = gain.new_empty(*rows, MINIBATCH), gain.new_empty(*rows, 3, MINIBATCH, width)
        passed = gain.new_empty(*rows, 3, MINIBATCH, hidden)
        dkept = Network(*(gain.new_empty(*rows, *part.shape[2:]) for part in (first, first_bias, second)))
        dsecond_bias, dgain, dshift = (gain.new_empty(*rows, 1, width) for _ in range(3))
        with launch_on(q):
            inner_network_gradient_kernel[(members * batch * heads,)](
                q, k, v, rates, factors, gain, shift, Network(first, first_bias, second), Outputs(*outputs),
                gradient.contiguous(), dq, dk, dv, drates, dfactors, dkept, dsecond_bias, dgain, dshift, slopes, passed,
                DescentSizes(batch, time, heads, width, ctx.eps), hidden, C=MINIBATCH, PRECISION=precision_of(v),
                **network_tiles(width),
            )  # fmt: skip
        dfirst, dfirst_bias, dsecond, *others = (part.sum(1) for part in (*dkept, dsecond_bias, dgain, dshift))
        return dq, dk, dv, drates, dfactors.sum((1, 2)), dfirst, dfirst_bias, dsecond.mT, *others, None, None


def network_tiles(width: int) -> dict[str, int]:
    """Return the tiles and warps of both kernels."""
    columns = padded(width, FEWEST_COLUMNS)
    tile, warps = NETWORK_TILES[columns]
    return {"BLOCK_K": columns, "BLOCK_H": tile, "num_warps": warps, "num_stages": 1}
