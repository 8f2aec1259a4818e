"""Triton forward pass of the delta rule: a program walks the chunks of one head with the state in registers.

The state and whatever has value channels is kept transposed, S^T [V, K], w^T [V, ROWS]. A product leaves its result in
registers in the order in which the next one reads a left operand, or the transpose of a right operand: in this form no
result has to be moved between threads before it is used.
"""

import triton
import triton.language as tl

from icl_bench.kernels.delta.triton.decays import (
    decay_state,
    end_operand,
    from_start,
    load_chunk,
    onto_rows,
    scores,
    start_operand,
    to_end,
    total_decay,
    unit_lower_inverse,
)
from icl_bench.kernels.delta.triton.tiles import (
    NONE,
    DeltaViews,
    in_pairs,
    inverse_pointers,
    nearest_tf32,
    ones_of_pairs,
    saved_pointers,
    state_pointers,
    store_transposed,
)
from icl_bench.kernels.triton.common import View, at_head

SIZES = ("T", "H", "G")


@triton.jit
def head_views(x, n, g, h):
    """Return the views of the inputs of value head g of sequence n, which reads key head h."""
    return DeltaViews(
        at_head(x.q, n, h), at_head(x.k, n, h), at_head(x.v, n, g), at_head(x.beta, n, g),
        at_head(x.log_decay, n, g), at_head(x.read, n, h), at_head(x.erase, n, h), at_head(x.log_value_decay, n, g),
    )  # fmt: skip


@triton.jit
def found_rows(c, state, C: tl.constexpr):
    """Return R^T [BLOCK_V, ROWS], what is written by keys ("delta") or by the vectors of their own, and the inverse.

    delta: R = (I + B P)^{-1} B (v - p~ S), P = p k^T E, B = D(beta);   untied: R = (I - P)^{-1} (a~ S + (a k^T E) v)
    """
    PRECISION: tl.constexpr = C.PRECISION
    reading = start_operand(c.read, c.gates, C.UNDECAYED, C.GATE, PRECISION)
    seen = tl.dot(nearest_tf32(state, PRECISION), tl.trans(reading), input_precision=PRECISION)
    if C.TIED:
        p = scores(c.read, c.k, c.gates, C.UNDECAYED, False, C.GATE, PRECISION, C.ROWS)
        rest = c.v.to(tl.float32) - seen
        if C.RATED:
            p = p * c.beta[:, None]
            rest = rest * c.beta[None, :]
    else:
        p = -scores(c.read, c.erase, c.gates, C.UNDECAYED, False, C.GATE, PRECISION, C.ROWS)
        fresh = scores(c.read, c.k, c.gates, C.UNDECAYED, False, C.GATE, PRECISION, C.ROWS)
        rest = tl.dot(c.v.to(tl.float32), in_pairs(tl.trans(fresh), c.ones), seen, input_precision=PRECISION)
    inverse = nearest_tf32(unit_lower_inverse(p, C.ROWS), PRECISION)
    rest = nearest_tf32(rest, PRECISION)
    r = tl.dot(rest, in_pairs(tl.trans(inverse), c.ones), input_precision=PRECISION)
    return nearest_tf32(r, PRECISION), inverse


@triton.jit
def next_state(c, state, r, C: tl.constexpr):
    """Return S' = D(exp(Gam_C)) S + k~^T w (delta: w = R; linear: w = v), for untied + b~^T R, transposed."""
    PRECISION: tl.constexpr = C.PRECISION
    if C.VALUE_GATE != NONE:
        new = state * total_decay(c.value_gates, C.VALUE_GATE)[:, None]
        written = tl.trans(to_end(tl.trans(c.v), c.value_gates, C.VALUE_GATE))
    else:
        new = decay_state(state, c.gates, C.GATE)
        written = c.v.to(tl.float32)
        if C.TIED:
            written = r
    new = tl.dot(written, end_operand(c.k, c.gates, C.GATE, PRECISION), new, input_precision=PRECISION)
    if C.UNTIED:
        new = tl.dot(r, end_operand(c.erase, c.gates, C.GATE, PRECISION), new, input_precision=PRECISION)
    return new


@triton.jit
def chunk_outputs(c, state, r, C: tl.constexpr):
    """Return Y = q~ S + (q k^T E) w, for untied + (q b^T E) R, transposed [BLOCK_V, ROWS] and without the scale."""
    PRECISION: tl.constexpr = C.PRECISION
    p = scores(c.q, c.k, c.gates, C.AHEAD, not C.AHEAD, C.GATE, PRECISION, C.ROWS)
    p = nearest_tf32(p, PRECISION)
    queries = start_operand(c.q, c.gates, C.AHEAD, C.GATE, PRECISION)
    y = tl.dot(nearest_tf32(state, PRECISION), tl.trans(queries), input_precision=PRECISION)
    if C.VALUE_GATE != NONE:
        i = tl.arange(0, C.ROWS)
        v = tl.trans(c.v).to(tl.float32)
        own = tl.sum(tl.where(i[:, None] == i[None, :], p, 0.0), 1)
        p = tl.where(i[:, None] == i[None, :], 0.0, p)
        rows = from_start(tl.trans(y), c.value_gates, False, C.VALUE_GATE) + own[:, None] * v
        y = tl.trans(rows + onto_rows(p, v, c.value_gates, False, C.VALUE_GATE, PRECISION, C.ROWS))
    elif C.TIED:
        y = tl.dot(r, in_pairs(tl.trans(p), c.ones), y, input_precision=PRECISION)
    else:
        y = tl.dot(c.v.to(tl.float32), in_pairs(tl.trans(p), c.ones), y, input_precision=PRECISION)
    if C.UNTIED:
        p = nearest_tf32(scores(c.q, c.erase, c.gates, False, True, C.GATE, PRECISION, C.ROWS), PRECISION)
        y = tl.dot(r, in_pairs(tl.trans(p), c.ones), y, input_precision=PRECISION)
    return y


@triton.jit(do_not_specialize=SIZES)
def delta_forward_kernel(x, y, first_state, last, states, inverses, T, H, G, scale, C: tl.constexpr):
    """Write y [N, T / SUB, G, V] and the last state [N, G, K, V].

    Where SAVE, also write the states before chunks, transposed, and the inverses of their triangular systems. T counts
    sub-steps. A program has BLOCK_V value channels of one head; the grid is N * G * blocks of values.
    """
    BLOCK_K: tl.constexpr = C.BLOCK_K
    BLOCK_V: tl.constexpr = C.BLOCK_V
    BLOCKS: tl.constexpr = (C.V + C.BLOCK_V - 1) // C.BLOCK_V
    pid = tl.program_id(0)
    first = (pid % BLOCKS) * C.BLOCK_V
    head = (pid // BLOCKS).to(tl.int64)
    n = head // G
    g = head % G
    x = head_views(x, n, g, g // (G // H))
    out = View(y + ((n * (T // C.SUB)) * G + g) * C.V, 0, G * C.V, 0)
    PRECISION: tl.constexpr = C.PRECISION
    chunks = tl.cdiv(T, C.ROWS)
    ones = ones_of_pairs(x.q, C.ROWS)

    state = tl.zeros([BLOCK_V, BLOCK_K], tl.float32)
    if C.INITIAL:
        pointers, mask = state_pointers(first_state + head * (C.K * C.V), first, C)
        state = tl.load(pointers, mask=mask, other=0.0).to(tl.float32)
    for chunk in range(0, chunks):
        start = chunk * C.ROWS
        if C.SAVE:
            pointers, mask = saved_pointers(states + (head * chunks + chunk) * (C.K * C.V), first, C)
            tl.store(pointers, nearest_tf32(state, PRECISION), mask=mask)
        c = load_chunk(x, start, T, first, ones, C)
        r = 0.0
        if C.TIED or C.UNTIED:
            r, inverse = found_rows(c, state, C)
            if C.SAVE and first == 0:
                tl.store(inverse_pointers(inverses, head * chunks + chunk, C.ROWS), inverse)
        tile = chunk_outputs(c, state, r, C) * scale
        store_transposed(out, tile, start, T, first, C.SUB - 1, C.SUB, C.V, C.ROWS, C.BLOCK_V)
        state = next_state(c, state, r, C)
    pointers, mask = state_pointers(last + head * (C.K * C.V), first, C)
    tl.store(pointers, state, mask=mask)
