"""The backward pass of an inner network of two layers in Triton: a program a head of a sequence."""

import triton
import triton.language as tl

from icl_bench.kernels.fleet.triton.inner_descent import (
    DescentSizes,
    head_of_member,
    in_units,
    inner_product,
    largest_of_head,
    layer_norm,
    load_factors,
    load_row,
    minibatch_at,
    parts_of_slope,
    parts_of_sums,
    step_product,
    store_row,
    taken_by_norm,
    through_slope,
)
from icl_bench.kernels.fleet.triton.inner_layers import (
    gelu_parts,
    load_minibatch_of,
    load_readers,
    load_shares,
    load_slice,
    reader_steps,
    store_slice,
)


@triton.jit
def inner_network_gradient_kernel(
    q, k, v, rates, factors, gain, shift, kept, seen, gradient, dq, dk, dv, drates, dfactors, dstate, dkept,
    dsecond_bias, dgain, dshift, scratch, dkeys, passed, sizes, C: tl.constexpr, PRECISION: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK_K: tl.constexpr, HIDDEN: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """Write the gradients of the tokens of a head of a sequence, and its parts of those of parameters. Grid (M B H).

    Each turn is that of a minibatch and its readers; before the first one there is one more, of its keys alone, which
    takes no steps. From turn to turn go the gradients by the network in `dstate`, by the outputs of readers in
    `scratch`, by keys in `dkeys`, and by the hidden layer of keys but through their outputs in `passed`.
    """
    sizes = DescentSizes(sizes.batch, sizes.time, sizes.heads, WIDTH, sizes.eps)
    columns, places, readers = tl.arange(0, BLOCK_K), tl.arange(0, C), tl.arange(0, 2 * C)
    head, inside, asks = head_of_member(sizes), (columns < WIDTH)[None, :], (readers < C)[:, None]
    g, b = load_row(gain, head, columns, WIDTH), load_row(shift, head, columns, WIDTH)
    share, last = load_shares(factors, readers, sizes, C), load_factors(factors, places, sizes, C)[1]
    count, own = tl.cdiv(sizes.time, C), tl.program_id(0).to(tl.int64)
    unit, parts = largest_of_head(gradient, count, sizes, columns, C, PRECISION), parts_of_sums(count, PRECISION)
    part = 1.0 / parts
    dc2 = tl.zeros([1, BLOCK_K], tl.float32)
    total_g, total_b, total_n = dc2, dc2, tl.zeros([2 * C], tl.float32)
    for step in range(count + 1):
        index = count - 1 - step
        place, before = own * count + tl.maximum(index, 0), own * (count + 1) + tl.maximum(index, 0)
        then = own * (count + 1) + index + 1
        at_keys, at = minibatch_at(index, sizes, columns, C, C), minibatch_at(index, sizes, columns, 2 * C, C)
        # The norm of the output.
        upstream = load_minibatch_of(gradient, at_keys) / unit
        y, spread = layer_norm(load_slice(seen.outputs, then, places, 2 * C, columns, WIDTH), inside, sizes)
        total_g += tl.sum(upstream * y, 0)[None, :]
        total_b += tl.sum(upstream, 0)[None, :]
        from_y = g * upstream
        mean_y, along_y = taken_by_norm(from_y, y, sizes)
        dy2 = tl.where(inside, spread * (from_y - mean_y - y * along_y), 0.0)
        store_slice(scratch, own, 4 * C + places, 6 * C, columns, WIDTH, dy2)
        # Steps.
        rate = tl.load(rates + at_keys.rates, mask=at_keys.rows, other=0.0)
        steps, moved = reader_steps(readers, places, share, rate), (last * rate)[:, None]
        slope2, key = load_slice(seen.slopes, before, places, C, columns, WIDTH), load_minibatch_of(k, at_keys)
        reader = load_readers(q, k, at, asks)
        scores = inner_product(reader, tl.trans(key), PRECISION) + 1.0
        weights, weight_unit = in_units(steps * scores, PRECISION)
        store_slice(scratch, own, readers, 6 * C, columns, WIDTH, reader)
        store_slice(scratch, own, 2 * C + places, 6 * C, columns, WIDTH, key)
        store_slice(scratch, own, 3 * C + places, 6 * C, columns, WIDTH, slope2)
        told, told2 = tl.zeros([C, BLOCK_H], tl.float32), tl.sum(slope2 * dc2, 1)
        dslope2, moved_sums = -moved * dc2, parts * moved
        dmoved = tl.zeros([C, BLOCK_K], tl.float32)
        onto, scores2 = tl.zeros([C, 2 * C], tl.float32), tl.full([C, 2 * C], 1.0, tl.float32)
        tl.debug_barrier()  # other threads wrote what this minibatch reads
        douts2 = load_slice(scratch, own, 4 * C + readers, 6 * C, columns, WIDTH)
        dc2 += tl.sum(douts2.to(tl.float32), 0)[None, :]
        onto2 = -inner_product(douts2, tl.trans(slope2), PRECISION)
        stepped2, stepped_unit = in_units(steps * onto2, PRECISION)
        dreaders = load_slice(dkeys, own, readers, 2 * C, columns, WIDTH)
        dreaders += tl.load(gradient + at.tokens, mask=at.mask & asks, other=0.0).to(tl.float32) / unit
        back = tl.where(index < 0, unit, 1.0)
        for start in range(0, HIDDEN, BLOCK_H):
            middle = start + tl.arange(0, BLOCK_H)
            w = load_slice(kept.first, place, columns, WIDTH, middle, HIDDEN)
            w2 = load_slice(kept.second, place, columns, WIDTH, middle, HIDDEN)
            dw = load_slice(dkept.first, own, columns, WIDTH, middle, HIDDEN)
            dw2 = load_slice(dkept.second, own, columns, WIDTH, middle, HIDDEN)
            dc = tl.load(dstate.bias + own * HIDDEN + middle, mask=middle < HIDDEN, other=0.0)
            # Read again in each turn, tokens occupy no registers between products.
            heard = load_slice(scratch, own, readers, 6 * C, columns, WIDTH)
            keys = load_slice(scratch, own, 2 * C + places, 6 * C, columns, WIDTH)
            pulls = load_slice(scratch, own, 3 * C + places, 6 * C, columns, WIDTH)
            douts = load_slice(scratch, own, 4 * C + readers, 6 * C, columns, WIDTH)
            c = tl.load(kept.bias + place * HIDDEN + middle, mask=middle < HIDDEN, other=0.0)
            held, bend, curve = gelu_parts(inner_product(keys, w, PRECISION) + c[None, :])
            straight = inner_product(pulls, w2, PRECISION)
            slope = straight * bend
            # Readers.
            z = inner_product(heard, w, PRECISION) + c[None, :] - weight_unit * inner_product(weights, slope, PRECISION)
            shown, bend_shown, _ = gelu_parts(z)
            dz = inner_product(douts, w2, PRECISION) + stepped_unit * inner_product(stepped2, held, PRECISION)
            dz = dz * bend_shown + load_slice(passed, own, readers, 2 * C, middle, HIDDEN)
            dreaders += inner_product(dz, tl.trans(w), PRECISION)
            onto -= inner_product(slope, tl.trans(dz), PRECISION)
            scores2 += inner_product(held, tl.trans(shown), PRECISION)
            # The step to the next network.
            carried = inner_product(keys, dw, PRECISION) + (part * dc)[None, :]
            pulled = inner_product(pulls, dw2, PRECISION)
            told += slope * carried + held * pulled
            dmoved += inner_product(slope, tl.trans(dw), PRECISION)
            dslope2 -= moved_sums * inner_product(held, tl.trans(dw2), PRECISION)
            # Keys, up to their outputs.
            dslope = -weight_unit * inner_product(tl.trans(weights), dz, PRECISION) - moved_sums * carried
            dheld = stepped_unit * inner_product(tl.trans(stepped2), shown, PRECISION) - moved_sums * pulled
            dstraight = dslope * bend
            dslope2 += inner_product(dstraight, tl.trans(w2), PRECISION)
            own_passed = dslope * straight * curve + dheld * bend
            store_slice(passed, own, C + places, 2 * C, middle, HIDDEN, own_passed)
            wide = load_slice(dstate.first, own, columns, WIDTH, middle, HIDDEN)
            wide += inner_product(tl.trans(heard), dz, PRECISION)
            store_slice(dstate.first, own, columns, WIDTH, middle, HIDDEN, back * wide)
            store_slice(dkept.first, own, columns, WIDTH, middle, HIDDEN, part * wide)
            wide2 = load_slice(dstate.second, own, columns, WIDTH, middle, HIDDEN)
            wide2 += inner_product(tl.trans(douts), shown, PRECISION)
            wide2 += inner_product(tl.trans(pulls), dstraight, PRECISION)
            store_slice(dstate.second, own, columns, WIDTH, middle, HIDDEN, back * wide2)
            store_slice(dkept.second, own, columns, WIDTH, middle, HIDDEN, part * wide2)
            tl.store(dstate.bias + own * HIDDEN + middle, back * (dc + tl.sum(dz, 0)), mask=middle < HIDDEN)
        told2 += parts * tl.sum(told, 1)
        onto, scores2 = tl.trans(onto), tl.trans(scores2)
        dsteps = tl.where(readers[:, None] >= places[None, :], onto2 * scores2 + onto * scores, 0.0)
        total_n += tl.sum(dsteps * rate[None, :], 1) - tl.where(readers == 2 * C - 1, tl.sum(rate * told2), 0.0)
        drate = tl.sum(dsteps * share[:, None], 0) - last * told2
        onto *= steps
        key = load_minibatch_of(k, at_keys)
        dreaders += step_product(onto, key, PRECISION)
        dkey = -moved_sums * dmoved
        dkey += step_product(tl.trans(onto), load_readers(q, k, at, asks), PRECISION)
        douts2 = load_slice(scratch, own, 4 * C + readers, 6 * C, columns, WIDTH)
        dslope2 -= step_product(tl.trans(steps * scores2), douts2, PRECISION)
        tl.store(dq + at.tokens, (unit * dreaders).to(dq.dtype.element_ty), mask=at.mask & asks)
        tl.store(dk + at.tokens, (unit * dreaders).to(dk.dtype.element_ty), mask=at.mask & (asks == 0))
        # The norm of the inner loss.
        normed, scale = layer_norm(load_slice(seen.outputs, before, C + places, 2 * C, columns, WIDTH), inside, sizes)
        key, value = load_minibatch_of(k, at_keys), load_minibatch_of(v, at_keys)
        passes, error, u, along = parts_of_slope(normed, key, value, g, b, inside, sizes)
        nothing = tl.zeros([C, BLOCK_K], tl.float32)
        dz2, derror, own_g, own_b = through_slope(
            dslope2, passes, error, u, along, normed, scale, g, inside, sizes, nothing, nothing
        )
        total_g += tl.sum(own_g, 0)[None, :]
        total_b += tl.sum(own_b, 0)[None, :]
        store_slice(scratch, own, 5 * C + places, 6 * C, columns, WIDTH, dz2)
        store_slice(dkeys, own, C + places, 2 * C, columns, WIDTH, dkey + derror)
        tl.store(dv + at_keys.tokens, (-unit * derror).to(dv.dtype.element_ty), mask=at_keys.mask)
        tl.store(drates + at_keys.rates, unit * drate, mask=at_keys.rows)
    store_row(dsecond_bias, own, columns, WIDTH, unit * dc2)
    store_row(dgain, own, columns, WIDTH, unit * total_g)
    store_row(dshift, own, columns, WIDTH, unit * total_b)
    of_next = tl.sum(tl.where(readers < C, 0.0, total_n))  # whose factor is that of the last place
    total_n += tl.where(readers == C - 1, of_next, 0.0)
    tl.store(dfactors + own * C + readers, unit * total_n, mask=readers < C)
