"""Triton backward pass of the delta rule: a program walks the chunks of a head, or of a segment, from the last on.

Or it takes one chunk, where a walk of its own (`segments`) has found the gradients of all states before.

With D the gradient of the state after a chunk, dY that of its outputs, and the names of `forward`,

    delta:    dW = (q k^T E)^T dY + k~ D,   g = (I + B P)^{-T} dW,   dv = Z = B g,   dB = rowsum(g (v - p~ S - P W))
              d(q k^T E) = dY W^T,   dP = -Z W^T,   dq~ = dY S^T,   dp~ = -Z S^T,   dk~ = W D^T
              dS = q~^T dY - p~^T Z + D(exp(Gam_C)) D
    untied:   the same with R for W, g for Z and opposite signs, and the terms of k and v besides

The gradient of the cumulated log decays is q dq + p dp - k dk - b db by row (the terms of the diagonal cancel and are
left out), and that of their sum over the chunk is rowsum(S' D); both are exact within a chunk. Nothing is added
atomically: each program writes its own part.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from icl_bench.kernels.delta.triton.decays import (
    decay_state,
    from_start,
    load_chunk,
    load_vectors_again,
    lower_part,
    onto_keys,
    onto_rows,
    scores,
    sum_rows,
    to_end,
    total_decay,
    upper_part,
)
from icl_bench.kernels.delta.triton.forward import SIZES, decays_are_mild, head_views, segment_of_program
from icl_bench.kernels.delta.triton.tiles import (
    CHANNELS,
    HEADS,
    NONE,
    in_pairs,
    inverse_pointers,
    load_edge,
    load_transposed,
    ones_of_pairs,
    product,
    product_in_parts,
    saved_pointers,
    store_edge,
    store_numbers,
    store_substeps,
    store_transposed,
)
from icl_bench.kernels.triton.common import View


class DeltaGradients(NamedTuple):
    """Contiguous tensors for the gradients, with a head for each program where programs share an input."""

    q: Any
    k: Any
    v: Any
    beta: Any
    log_decay: Any
    read: Any
    erase: Any
    log_value_decay: Any
    state: Any


@triton.jit
def rows_of_part(ptr, n, part, T, PARTS, WIDTH: tl.constexpr):
    """Return the view of head `part` of sequence n of a contiguous tensor [N, T, PARTS, WIDTH]."""
    return View(ptr + (n * T * PARTS + part) * WIDTH, 0, PARTS * WIDTH, 0)


@triton.jit
def output_gradient(dy, start, end, first, scale, C: tl.constexpr):
    """Return the gradients of the outputs of a chunk, before their scale, as an operand [BLOCK_V, ROWS]."""
    rows = load_transposed(dy, start, end, first, C.SUB - 1, C.SUB, C.V, C.ROWS, C.BLOCK_V)
    return rows.to(tl.float32) * scale


@triton.jit
def channel_sums(x, GATE: tl.constexpr):
    """Return x [ROWS, channels] as decays have it: summed over channels for HEADS."""
    if GATE == HEADS:
        x = tl.sum(x, 1)
    return x


@triton.jit
def sum_later(x, INCLUSIVE: tl.constexpr, GATE: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr):
    """Return the sums of the rows after each row, and of the row itself where INCLUSIVE: x is [ROWS] for HEADS."""
    i = tl.arange(0, ROWS)[:, None]
    j = tl.arange(0, ROWS)[None, :]
    if GATE == HEADS:
        x = tl.sum(tl.where(i + INCLUSIVE > j, x[:, None], 0.0), 0)
    else:
        x = sum_rows((j + INCLUSIVE > i).to(tl.float32), x, PRECISION)
    return x


@triton.jit(do_not_specialize=SIZES)
def delta_backward_kernel(
    x, dy, dlast, states, inverses, out, T, H, G, length, scale, LAST: tl.constexpr, C: tl.constexpr,
    MILD: tl.constexpr,
):  # fmt: skip
    """Write the gradients of all inputs; LAST says that the last state has one. The grid is that of the forward pass.

    Of q, k, read, erase, beta and log_decay a program writes its own part, [N, T or T / SUB, G * blocks, ...]. Where
    SEGMENTED, `dlast` holds the gradients of the states after segments [N, G, segments, V, K]. Where SINGLE these are
    chunks: nothing is carried from one to another, and the gradient of the first state has been written before. Decays
    without a bound are taken as MILD says where they are.
    """
    mild = False
    if C.GATE == CHANNELS or C.VALUE_GATE == CHANNELS:
        mild = decays_are_mild(x, T, H, G, length, C)
    if mild:
        backward_walk(x, dy, dlast, states, inverses, out, T, H, G, length, scale, LAST, MILD)
    else:
        backward_walk(x, dy, dlast, states, inverses, out, T, H, G, length, scale, LAST, C)


@triton.jit
def backward_walk(x, dy, dlast, states, inverses, out, T, H, G, length, scale, LAST: tl.constexpr, C: tl.constexpr):
    """Walk the chunks of a program, as `delta_backward_kernel` says."""
    PRECISION: tl.constexpr = C.PRECISION
    ROWS: tl.constexpr = C.ROWS
    SUB: tl.constexpr = C.SUB
    GATE: tl.constexpr = C.GATE
    VALUE_GATE: tl.constexpr = C.VALUE_GATE
    AGAIN: tl.constexpr = C.SINGLE and C.UNTIED
    DIAGONAL: tl.constexpr = GATE == NONE and not C.AHEAD
    BLOCK_K: tl.constexpr = C.BLOCK_K
    BLOCK_V: tl.constexpr = C.BLOCK_V
    BLOCKS: tl.constexpr = (C.V + C.BLOCK_V - 1) // C.BLOCK_V
    pid = tl.program_id(0)
    first = (pid % BLOCKS) * C.BLOCK_V
    head, segment, first_chunk, end_chunk = segment_of_program(pid // BLOCKS, T, length, C)
    n = head // G
    g = head % G
    part = g * BLOCKS + pid % BLOCKS
    parts = G * BLOCKS
    x = head_views(x, n, g, g // (G // H))
    dy = View(dy.ptr + n * dy.n + g * dy.h, dy.n, dy.t, dy.h)
    tokens = T // SUB
    chunks = tl.cdiv(T, ROWS)
    ones = ones_of_pairs(x.q, ROWS)
    dv_view = rows_of_part(out.v, n, g, T, G, C.V)
    i = tl.arange(0, ROWS)[:, None]
    j = tl.arange(0, ROWS)[None, :]

    steps = end_chunk - first_chunk
    if C.SINGLE:
        steps = 1
    if C.SEGMENTED:
        place = head * tl.cdiv(T, length) + segment
        ends, end_mask = saved_pointers(dlast + place * (C.K * C.V), first, C)
        d = tl.load(ends, mask=end_mask, other=0.0).to(tl.float32)
    else:
        d = load_edge(dlast, head, first, LAST, C)
    for step in range(0, steps):
        chunk = end_chunk - 1 - step
        start = chunk * ROWS
        pointers, mask = saved_pointers(states + (head * chunks + chunk) * (C.K * C.V), first, C)
        state = tl.load(pointers, mask=mask, other=0.0)
        c = load_chunk(x, start, T, T, first, ones, C)
        u_t = output_gradient(dy, start, T, first, scale, C)
        u = tl.trans(u_t)
        v_t = c.v.to(tl.float32)
        v = tl.trans(v_t)
        p_q = scores(c.q, c.k, c.gates, C.AHEAD, not C.AHEAD, GATE, PRECISION, ROWS)
        queries = from_start(c.q, c.gates, C.AHEAD, GATE)
        keys = to_end(c.k, c.gates, GATE)

        if VALUE_GATE != NONE:
            u_start = from_start(u, c.value_gates, False, VALUE_GATE)
            v_end = to_end(v, c.value_gates, VALUE_GATE)
            own = tl.sum(tl.where(i == j, p_q, 0.0), 1)
            p_q = tl.where(i == j, 0.0, p_q)
            onto_v = onto_keys(tl.trans(p_q), u, c.value_gates, False, VALUE_GATE, PRECISION, ROWS)
            v_from_end = product(keys, tl.trans(d), PRECISION)
            v_from_end = to_end(v_from_end, c.value_gates, VALUE_GATE)
            dv_t = tl.trans(onto_v + own[:, None] * u + v_from_end)
            store_transposed(dv_view, dv_t, start, T, first, 0, 1, C.V, ROWS, BLOCK_V)
            y_state = product(queries, tl.trans(state), PRECISION)
            y = from_start(y_state, c.value_gates, False, VALUE_GATE)
            y += onto_rows(p_q, v, c.value_gates, False, VALUE_GATE, PRECISION, ROWS)
            decay = total_decay(c.value_gates, VALUE_GATE)
            held = tl.sum(state * d, 1) * decay + tl.sum(v * v_from_end, 0)
            upto = u * y - v * (onto_v + v_from_end)
            dgate = sum_later(upto, True, VALUE_GATE, PRECISION, ROWS) + held[None, :]
            dlog = rows_of_part(out.log_value_decay, n, g, tokens, G, C.V)
            store_substeps(dlog, dgate, start, T, first, 0, SUB, C.V, ROWS, BLOCK_V)
            dp_q = scores(u, v, c.value_gates, False, True, VALUE_GATE, PRECISION, ROWS)
            dq = product(u_start, state, PRECISION)
            dq = product(dp_q, c.k.to(tl.float32), PRECISION, dq)
            dk = product(v_end, d, PRECISION)
            dk = product(tl.trans(dp_q), c.q.to(tl.float32), PRECISION, dk)
            d = product(tl.trans(u_start), queries, PRECISION, d * decay[:, None])
            dq_view = rows_of_part(out.q, n, part, tokens, parts, C.K)
            store_substeps(dq_view, dq, start, T, 0, SUB - 1, SUB, C.K, ROWS, BLOCK_K)
            store_substeps(rows_of_part(out.k, n, part, T, parts, C.K), dk, start, T, 0, 0, 1, C.K, ROWS, BLOCK_K)
        else:
            # All that reads the state, but for one product, comes first: it need not be kept in registers.
            if GATE != NONE:
                total = tl.sum(decay_state(state * d, c.gates, GATE), 0)
            if C.TIED or C.UNTIED:
                reading = from_start(c.read, c.gates, C.UNDECAYED, GATE)
                seen = product(state, tl.trans(reading), PRECISION)
            dq = from_start(product(u, state, PRECISION), c.gates, C.AHEAD, GATE)

            # Written rows w, and their gradient; for "untied" the values, and rows r beside them.
            ended_d = d
            dw_t = product(u_t, p_q, PRECISION)
            dw_t = product(ended_d, tl.trans(keys), PRECISION, dw_t)
            w = v
            dv_t = dw_t
            if C.TIED or C.UNTIED:
                inverse = in_pairs(tl.load(inverse_pointers(inverses, head * chunks + chunk, ROWS)), ones)
            if C.TIED:
                rest = v_t - seen
                if C.RATED:
                    p_a = scores(c.read, c.k, c.gates, C.UNDECAYED, False, GATE, PRECISION, ROWS)
                    rated = rest * c.beta[None, :]
                    w = product_in_parts(inverse, in_pairs(tl.trans(rated), ones), PRECISION)
                    w_t = product_in_parts(in_pairs(tl.trans(inverse), ones), rated, PRECISION, RIGHT=True)
                    z_t = product_in_parts(inverse, dw_t, PRECISION, RIGHT=True)
                    error = rest - product(w_t, in_pairs(tl.trans(p_a), ones), PRECISION)
                    dbeta = rows_of_part(out.beta, n, part, T, parts, 1)
                    store_numbers(dbeta, tl.sum(z_t * error, 0), start, T, 0, 1, ROWS)
                    dv_t = z_t * c.beta[None, :]
                    z = product_in_parts(tl.trans(inverse), in_pairs(tl.trans(dw_t), ones), PRECISION)
                    z = z * -c.beta[:, None]
                else:
                    w = product_in_parts(inverse, in_pairs(tl.trans(rest), ones), PRECISION)
                    dv_t = product_in_parts(inverse, dw_t, PRECISION, RIGHT=True)
                    z = -product_in_parts(tl.trans(inverse), in_pairs(tl.trans(dw_t), ones), PRECISION)
                z_t = -dv_t
            if C.UNTIED:
                fresh = scores(c.read, c.k, c.gates, C.UNDECAYED, False, GATE, PRECISION, ROWS)
                p_b = scores(c.q, c.erase, c.gates, False, True, GATE, PRECISION, ROWS)
                erasing = to_end(c.erase, c.gates, GATE)
                rest = product(v_t, in_pairs(tl.trans(fresh), ones), PRECISION, seen)
                r = product_in_parts(inverse, in_pairs(tl.trans(rest), ones), PRECISION)
                dr_t = product(u_t, p_b, PRECISION)
                dr_t = product(ended_d, tl.trans(erasing), PRECISION, dr_t)
                z_t = product_in_parts(inverse, dr_t, PRECISION, RIGHT=True)
                z = product_in_parts(tl.trans(inverse), in_pairs(tl.trans(dr_t), ones), PRECISION)
                dv_t = product(z_t, fresh, PRECISION, dw_t)

            store_transposed(dv_view, dv_t, start, T, first, 0, 1, C.V, ROWS, BLOCK_V)
            if AGAIN:
                c = load_chunk(x, start, T, T, first, ones, C)
                u_t = output_gradient(dy, start, T, first, scale, C)
                u = tl.trans(u_t)
                w = tl.trans(c.v.to(tl.float32))
            else:
                c = load_vectors_again(c, x, start, T, C)
                queries = from_start(c.q, c.gates, C.AHEAD, GATE)

            # Gradients of the vectors, one after the other: of the scores (dp, and dp_t transposed by a product of its
            # own), then of what they were made of. `upto` and `before` gather those of the cumulated decays.
            w_right = tl.trans(w) * ones[None, :]
            if C.UNTIED:
                r_right = tl.trans(r) * ones[None, :]
            dp = lower_part(product(u, w_right, PRECISION), DIAGONAL, ROWS)
            dq += onto_rows(dp, c.k, c.gates, C.AHEAD, GATE, PRECISION, ROWS)
            if C.UNTIED:
                dp = lower_part(product(u, r_right, PRECISION), DIAGONAL, ROWS)
                dq += onto_rows(dp, c.erase, c.gates, False, GATE, PRECISION, ROWS)
            if GATE != NONE:
                if C.AHEAD:
                    before = channel_sums(dq * c.q.to(tl.float32), GATE)
                else:
                    upto = channel_sums(dq * c.q.to(tl.float32), GATE)
                    own = tl.sum(u * w, 1)[:, None]
                    dq += own * c.k.to(tl.float32)
                    if C.UNTIED:
                        own_r = tl.sum(u * r, 1)[:, None]
                        dq += own_r * c.erase.to(tl.float32)
            dq_view = rows_of_part(out.q, n, part, tokens, parts, C.K)
            store_substeps(dq_view, dq, start, T, 0, SUB - 1, SUB, C.K, ROWS, BLOCK_K)

            if C.TIED or C.UNTIED:
                dp = lower_part(product(z, w_right, PRECISION), False, ROWS)
                state = tl.load(pointers, mask=mask, other=0.0)
                reading = from_start(c.read, c.gates, C.UNDECAYED, GATE)
                dread = product(in_pairs(z, ones), state, PRECISION)
                dread = from_start(dread, c.gates, C.UNDECAYED, GATE)
                dread += onto_rows(dp, c.k, c.gates, C.UNDECAYED, GATE, PRECISION, ROWS)
                if C.UNTIED:
                    dp = lower_part(product(z, r_right, PRECISION), False, ROWS)
                    dread += onto_rows(dp, c.erase, c.gates, C.UNDECAYED, GATE, PRECISION, ROWS)
                if GATE != NONE:
                    if C.UNDECAYED:
                        before = channel_sums(dread * c.read.to(tl.float32), GATE)
                    else:
                        upto += channel_sums(dread * c.read.to(tl.float32), GATE)
                if C.READ:
                    dread_view = rows_of_part(out.read, n, part, T, parts, C.K)
                    store_substeps(dread_view, dread, start, T, 0, 0, 1, C.K, ROWS, BLOCK_K)

            if AGAIN:
                c = load_chunk(x, start, T, T, first, ones, C)
                u_t = output_gradient(dy, start, T, first, scale, C)
                w = tl.trans(c.v.to(tl.float32))
            if C.SINGLE:
                ended_d = tl.load(ends, mask=end_mask, other=0.0)
            dp_t = upper_part(product(w, u_t, PRECISION), DIAGONAL, ROWS)
            dk = to_end(product(in_pairs(w, ones), ended_d, PRECISION), c.gates, GATE)
            if GATE != NONE:
                ended = tl.sum(dk * c.k.to(tl.float32), 0)
            dk += onto_keys(dp_t, c.q, c.gates, C.AHEAD, GATE, PRECISION, ROWS)
            if C.TIED or C.UNTIED:
                z_right = tl.trans(z) * ones[None, :]
                dp_t = upper_part(product(w, z_right, PRECISION), False, ROWS)
                dk += onto_keys(dp_t, c.read, c.gates, C.UNDECAYED, GATE, PRECISION, ROWS)
            if GATE != NONE:
                if C.AHEAD:
                    upto = -channel_sums(dk * c.k.to(tl.float32), GATE)
                else:
                    upto -= channel_sums(dk * c.k.to(tl.float32), GATE)
                    dk += own * c.q.to(tl.float32)
            if C.TIED and not C.READ:
                dk += dread
            store_substeps(rows_of_part(out.k, n, part, T, parts, C.K), dk, start, T, 0, 0, 1, C.K, ROWS, BLOCK_K)

            if C.UNTIED:
                dp_t = upper_part(product(r, u_t, PRECISION), DIAGONAL, ROWS)
                derase = to_end(product(in_pairs(r, ones), ended_d, PRECISION), c.gates, GATE)
                if GATE != NONE:
                    ended += tl.sum(derase * c.erase.to(tl.float32), 0)
                derase += onto_keys(dp_t, c.q, c.gates, False, GATE, PRECISION, ROWS)
                dp_t = upper_part(product(r, z_right, PRECISION), False, ROWS)
                derase += onto_keys(dp_t, c.read, c.gates, C.UNDECAYED, GATE, PRECISION, ROWS)
                if GATE != NONE:
                    upto -= channel_sums(derase * c.erase.to(tl.float32), GATE)
                    derase += own_r * c.q.to(tl.float32)
                derase_view = rows_of_part(out.erase, n, part, T, parts, C.K)
                store_substeps(derase_view, derase, start, T, 0, 0, 1, C.K, ROWS, BLOCK_K)

            if GATE != NONE:
                total += ended
                dgate = sum_later(upto, True, GATE, PRECISION, ROWS)
                if C.AHEAD or (C.UNDECAYED and (C.TIED or C.UNTIED)):
                    dgate += sum_later(before, False, GATE, PRECISION, ROWS)
                if GATE == HEADS:
                    dlog = rows_of_part(out.log_decay, n, part, tokens, parts, 1)
                    store_numbers(dlog, dgate + tl.sum(total, 0), start, T, 0, SUB, ROWS)
                else:
                    dlog = rows_of_part(out.log_decay, n, part, tokens, parts, C.K)
                    store_substeps(dlog, dgate + total[None, :], start, T, 0, 0, SUB, C.K, ROWS, BLOCK_K)
            if not C.SINGLE:
                d = decay_state(d, c.gates, GATE)
                d = product(u_t, queries, PRECISION, d)
                if C.TIED or C.UNTIED:
                    d = product(z_t, reading, PRECISION, d)
    if C.INITIAL and (not C.SINGLE) and segment == 0:
        store_edge(out.state, head, first, d, C)
