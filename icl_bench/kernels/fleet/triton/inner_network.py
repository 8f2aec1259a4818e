"""Gradient descent of an inner network of two layers in Triton: one launch each way, a program a head of a sequence.

It is as that of a linear map in `inner_descent`, with GELU in its tanh form between the layers. The network lies in
memory, and each minibatch walks it once by tiles of the hidden layer. What reads the network that its steps change are
its queries, each after the steps up to its own, and the keys of the next minibatch, after all of them: 2 C readers, of
which nothing but sums over tiles goes from one layer to the other. The weights of the second layer are transposed, so
that no product has more than K rows: Triton 3.6 compiles wider ones wrong here. Widths are constants, since addresses
that depend on numbers would take most registers.
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
    in_units,
    inner_product,
    layer_norm,
    load_factors,
    load_row,
    minibatch_at,
    operand_type,
    products_of,
    step_product,
    taken_by_norm,
)
from icl_bench.kernels.fleet.triton.inner_layers import (
    Network,
    Seen,
    gelu_parts,
    load_minibatch_of,
    load_readers,
    load_shares,
    load_slice,
    reader_steps,
    store_slice,
)
from icl_bench.kernels.fleet.triton.inner_network_gradient import inner_network_gradient_kernel
from icl_bench.kernels.triton.common import padded

FORWARD_TILES = {16: (16, 1, 2), 32: (64, 4, 1), 64: (64, 4, 1), 128: (32, 4, 2)}
"""Columns of a tile of the hidden layer, warps of a program and stages of its loads, by padded width."""
GRADIENT_TILES = {16: (16, 1, 2), 32: (64, 4, 2), 64: (32, 4, 3), 128: (64, 8, 1)}
"""The same of the backward pass."""


@triton.jit
def keep_tile(state, kept, own, place, columns, WIDTH: tl.constexpr, middle, HIDDEN: tl.constexpr, w, there):
    """Store a tile of weights of a program, and as an operand of products at a place, or nothing where `there` is 0."""
    store_slice(state, own, columns, WIDTH, middle, HIDDEN, w, there)
    store_slice(kept, place, columns, WIDTH, middle, HIDDEN, w, there)


@triton.jit
def end_readers(
    y2, q, k, v, out, seen, place, at, g, b, readers, columns, inside, sizes, C: tl.constexpr, WIDTH: tl.constexpr
):
    """Keep the outputs of readers; write y of those that ask, and keep the slopes of the keys."""
    asks = (readers < C)[:, None]
    store_slice(seen.outputs, place, readers, 2 * C, columns, WIDTH, y2)
    normed, scale = layer_norm(y2, inside, sizes)
    shown = load_readers(q, k, at, asks) + g * normed + b
    tl.store(out + at.tokens, shown.to(out.dtype.element_ty), mask=at.mask & asks)
    u = g * tl.where(inside, shown - load_minibatch_of(v, at), 0.0)
    mean, along = taken_by_norm(u, normed, sizes)
    slopes = seen.slopes + place * C * WIDTH + ((readers - C)[:, None] * WIDTH + columns[None, :])
    tl.store(slopes, scale * (u - mean - normed * along), mask=inside & (asks == 0))


@triton.jit(do_not_specialize=["slots", "seen_slots"])
def inner_network_kernel(
    q, k, v, rates, factors, given, second_bias, gain, shift, state, kept, seen, scratch, out, sizes, slots, seen_slots,
    C: tl.constexpr, PRECISION: tl.constexpr, WIDTH: tl.constexpr, BLOCK_K: tl.constexpr, HIDDEN: tl.constexpr,
    BLOCK_H: tl.constexpr,
):  # fmt: skip
    """Write y of a head of a sequence, its inner network before each minibatch, and what is `seen`. Grid (M B H).

    Minibatch i has slot i % slots of the networks, and i % seen_slots of the others.
    """
    sizes = DescentSizes(sizes.batch, sizes.time, sizes.heads, WIDTH, sizes.eps)
    columns, places, readers = tl.arange(0, BLOCK_K), tl.arange(0, C), tl.arange(0, 2 * C)
    head, inside, asks = head_of_member(sizes), (columns < WIDTH)[None, :], (readers < C)[:, None]
    g, b = load_row(gain, head, columns, WIDTH), load_row(shift, head, columns, WIDTH)
    c2 = load_row(second_bias, head, columns, WIDTH)
    share, last = load_shares(factors, readers, sizes, C), load_factors(factors, places, sizes, C)[1]
    count, own = tl.cdiv(sizes.time, C), tl.program_id(0).to(tl.int64)
    at = minibatch_at(-1, sizes, columns, 2 * C, C)
    first = load_readers(q, k, at, asks)
    y2 = tl.zeros([2 * C, BLOCK_K], tl.float32) + c2
    for start in range(0, HIDDEN, BLOCK_H):
        middle = start + tl.arange(0, BLOCK_H)
        w = load_slice(given.first, head, columns, WIDTH, middle, HIDDEN)
        w2 = load_slice(given.second, head, columns, WIDTH, middle, HIDDEN)
        c = tl.load(given.bias + head * HIDDEN + middle, mask=middle < HIDDEN, other=0.0)
        keep_tile(state.first, kept.first, own, own * slots, columns, WIDTH, middle, HIDDEN, w, 1)
        keep_tile(state.second, kept.second, own, own * slots, columns, WIDTH, middle, HIDDEN, w2, 1)
        tl.store(kept.bias + own * slots * HIDDEN + middle, c, mask=middle < HIDDEN)
        z = inner_product(first, w, PRECISION) + c[None, :]
        y2 += inner_product(gelu_parts(z)[0], tl.trans(w2), PRECISION)
    end_readers(y2, q, k, v, out, seen, own * seen_slots, at, g, b, readers, columns, inside, sizes, C, WIDTH)
    for index in range(count):
        place, after = own * slots + index % slots, own * slots + (index + 1) % slots
        before, then = own * seen_slots + index % seen_slots, own * seen_slots + (index + 1) % seen_slots
        more = tl.where(index + 1 < count, 1, 0)
        at_keys, at = minibatch_at(index, sizes, columns, C, C), minibatch_at(index, sizes, columns, 2 * C, C)
        rate = tl.load(rates + at_keys.rates, mask=at_keys.rows, other=0.0)
        steps, moved = reader_steps(readers, places, share, rate), (last * rate)[:, None]
        tl.debug_barrier()  # other threads wrote the slopes
        slope2, key = load_slice(seen.slopes, before, places, C, columns, WIDTH), load_minibatch_of(k, at_keys)
        reader = load_readers(q, k, at, asks)
        weights, unit = in_units(steps * (inner_product(reader, tl.trans(key), PRECISION) + 1.0), PRECISION)
        store_slice(scratch, own, readers, 4 * C, columns, WIDTH, reader)
        store_slice(scratch, own, 2 * C + places, 4 * C, columns, WIDTH, key)
        store_slice(scratch, own, 3 * C + places, 4 * C, columns, WIDTH, slope2)
        tl.debug_barrier()
        scores2 = tl.full([C, 2 * C], 1.0, tl.float32)
        y2 = tl.zeros([2 * C, BLOCK_K], tl.float32) + c2
        c2 -= tl.sum(moved * slope2, 0)[None, :]
        for start in range(0, HIDDEN, BLOCK_H):
            middle = start + tl.arange(0, BLOCK_H)
            w = load_slice(kept.first, place, columns, WIDTH, middle, HIDDEN)
            w2 = load_slice(kept.second, place, columns, WIDTH, middle, HIDDEN)
            c = tl.load(kept.bias + place * HIDDEN + middle, mask=middle < HIDDEN, other=0.0)
            # Read again in each turn, tokens occupy no registers between products.
            heard = load_slice(scratch, own, readers, 4 * C, columns, WIDTH)
            keys = load_slice(scratch, own, 2 * C + places, 4 * C, columns, WIDTH)
            pulls = load_slice(scratch, own, 3 * C + places, 4 * C, columns, WIDTH)
            held, bend, _ = gelu_parts(inner_product(keys, w, PRECISION) + c[None, :])
            slope = inner_product(pulls, w2, PRECISION) * bend
            z = inner_product(heard, w, PRECISION) + c[None, :] - unit * inner_product(weights, slope, PRECISION)
            shown = gelu_parts(z)[0]
            y2 += inner_product(shown, tl.trans(w2), PRECISION)
            scores2 += inner_product(held, tl.trans(shown), PRECISION)
            slope *= moved
            wide = load_slice(state.first, own, columns, WIDTH, middle, HIDDEN)
            wide -= inner_product(tl.trans(keys), slope, PRECISION)
            keep_tile(state.first, kept.first, own, after, columns, WIDTH, middle, HIDDEN, wide, more)
            wide2 = load_slice(state.second, own, columns, WIDTH, middle, HIDDEN)
            wide2 -= inner_product(tl.trans(pulls), moved * held, PRECISION)
            keep_tile(state.second, kept.second, own, after, columns, WIDTH, middle, HIDDEN, wide2, more)
            tl.store(kept.bias + after * HIDDEN + middle, c - tl.sum(slope, 0), mask=middle < HIDDEN * more)
        slope2 = load_slice(seen.slopes, before, places, C, columns, WIDTH)
        y2 -= step_product(steps * tl.trans(scores2), slope2, PRECISION)
        end_readers(y2, q, k, v, out, seen, then, at, g, b, readers, columns, inside, sizes, C, WIDTH)


def empty_networks(
    given: tuple[Tensor, Tensor, Tensor], rows: int, slots: int, operands: torch.dtype
) -> tuple[Network, Network]:
    """Return room for a network of each row, and for so many as operands of products, of weights and a bias given."""
    first, bias, second = given
    biases = bias.new_empty(rows, slots, *bias.shape[2:])
    state = Network(first.new_empty(rows, *first.shape[2:]), biases, second.new_empty(rows, *second.shape[2:]))
    shapes = (rows, slots, *first.shape[2:])
    return state, Network(first.new_empty(shapes, dtype=operands), biases, first.new_empty(shapes, dtype=operands))


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
        slots, seen_slots = (count, count + 1) if keep else (min(count, 2), 2)
        state, kept = empty_networks((first, first_bias, second), rows, slots, operand_type(v))
        shapes = [(2 * MINIBATCH, width), (MINIBATCH, width)]
        scratch = first.new_empty(rows, 4 * MINIBATCH, width, dtype=operand_type(v))
        seen, out = Seen(*(first.new_empty(rows, seen_slots, *shape) for shape in shapes)), torch.empty_like(v)
        with launch_on(q):
            inner_network_kernel[(rows,)](
                q, k, v, rates, factors, Network(first, first_bias, second), second_bias, gain, shift, state, kept,
                seen, scratch, out, DescentSizes(batch, time, heads, width, eps), slots, seen_slots, C=MINIBATCH,
                PRECISION=products_of(v), WIDTH=width, HIDDEN=hidden, **network_tiles(FORWARD_TILES, width),
            )  # fmt: skip
        ctx.save_for_backward(q, k, v, rates, factors, gain, shift, *kept, *seen)
        ctx.eps = eps
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, rates, factors, gain, shift, first, first_bias, second, *seen = ctx.saved_tensors
        (members, batch, time, heads, width), hidden = q.shape, first.shape[-1]
        dq, dk, dv, drates = (torch.empty_like(x) for x in (q, k, v, rates))
        rows = (members, batch, heads)
        dfactors = gain.new_empty(*rows, MINIBATCH)
        dkeys, passed = (gain.new_zeros(*rows, 2 * MINIBATCH, size) for size in (width, hidden))
        scratch = gain.new_zeros(*rows, 6 * MINIBATCH, width, dtype=operand_type(v))
        # Zeros, as the last minibatch has no gradient by the network behind it.
        dfirst, dfirst_bias, dsecond = (gain.new_zeros(*rows, *part.shape[2:]) for part in (first, first_bias, second))
        dstate = Network(dfirst, dfirst_bias, dsecond)
        dkept = Network(*(torch.zeros_like(part, dtype=first.dtype) for part in (dfirst, dfirst_bias, dsecond)))
        dsecond_bias, dgain, dshift = (gain.new_empty(*rows, 1, width) for _ in range(3))
        with launch_on(q):
            inner_network_gradient_kernel[(members * batch * heads,)](
                q, k, v, rates, factors, gain, shift, Network(first, first_bias, second), Seen(*seen),
                gradient.contiguous(), dq, dk, dv, drates, dfactors, dstate, dkept, dsecond_bias, dgain, dshift,
                scratch, dkeys, passed, DescentSizes(batch, time, heads, width, ctx.eps), C=MINIBATCH,
                PRECISION=products_of(v), WIDTH=width, HIDDEN=hidden, **network_tiles(GRADIENT_TILES, width),
            )  # fmt: skip
        dfirst, dfirst_bias, dsecond, *others = (part.sum(1) for part in (*dstate, dsecond_bias, dgain, dshift))
        return dq, dk, dv, drates, dfactors.sum((1, 2)), dfirst, dfirst_bias, dsecond.mT, *others, None, None


def network_tiles(tiles: dict[int, tuple[int, int, int]], width: int) -> dict[str, int]:
    """Return the tiles, warps and stages of a kernel."""
    columns = padded(width, FEWEST_COLUMNS)
    tile, warps, stages = tiles[columns]
    return {"BLOCK_K": columns, "BLOCK_H": tile, "num_warps": warps, "num_stages": stages}
