"""Triton forward pass of the delta rule: a program walks the chunks of a head, or of a segment, and keeps the state.

The state and whatever has value channels is kept transposed, S^T [V, K], w^T [V, ROWS]. A product leaves its result in
registers in the order in which the next one reads a left operand, or the transpose of a right operand: in this form no
result has to be moved between threads before it is used.
"""

import triton
import triton.language as tl

from icl_bench.kernels.delta.triton.decays import (
    decay_state,
    from_start,
    load_chunk,
    onto_rows,
    scores,
    to_end,
    total_decay,
)
from icl_bench.kernels.delta.triton.tiles import (
    CHANNELS,
    NONE,
    DeltaViews,
    in_pairs,
    inverse_pointers,
    load_edge,
    load_substeps,
    ones_of_pairs,
    product,
    product_in_parts,
    saved_pointers,
    store_edge,
    store_transposed,
)
from icl_bench.kernels.triton.common import View, at_head
from icl_bench.kernels.triton.triangular import unit_lower_inverse

SIZES = ("T", "H", "G", "length")
LEAST_MILD = tl.constexpr(-4.0)
"""Least log decay of a channel at which exp of the sums over 16 tokens, e^64, leaves gradients the range of float32."""


@triton.jit
def head_views(x, n, g, h):
    """Return the views of the inputs of value head g of sequence n, which reads key head h."""
    return DeltaViews(
        at_head(x.q, n, h), at_head(x.k, n, h), at_head(x.v, n, g), at_head(x.beta, n, g),
        at_head(x.log_decay, n, g), at_head(x.read, n, h), at_head(x.erase, n, h), at_head(x.log_value_decay, n, g),
    )  # fmt: skip


@triton.jit
def inverse_of_system(c, C: tl.constexpr):
    """Return (I + B P)^{-1} for "delta", P = p k^T E and B = D(beta), and (I - a b^T E)^{-1} for "untied"."""
    PRECISION: tl.constexpr = C.PRECISION
    if C.TIED:
        p = scores(c.read, c.k, c.gates, C.UNDECAYED, False, C.GATE, PRECISION, C.ROWS)
        if C.RATED:
            p = p * c.beta[:, None]
    else:
        p = -scores(c.read, c.erase, c.gates, C.UNDECAYED, False, C.GATE, PRECISION, C.ROWS)
    return unit_lower_inverse(p, C.ROWS)


@triton.jit
def found_rows(c, state, inverse, C: tl.constexpr):
    """Return R^T [BLOCK_V, ROWS], what is written by keys ("delta") or by the vectors of their own.

    delta: R = (I + B P)^{-1} B (v - p~ S);   untied: R = (I - a b^T E)^{-1} (a~ S + (a k^T E) v)
    """
    PRECISION: tl.constexpr = C.PRECISION
    reading = from_start(c.read, c.gates, C.UNDECAYED, C.GATE)
    seen = product(state, tl.trans(reading), PRECISION)
    if C.TIED:
        rest = c.v.to(tl.float32) - seen
        if C.RATED:
            rest = rest * c.beta[None, :]
    else:
        fresh = scores(c.read, c.k, c.gates, C.UNDECAYED, False, C.GATE, PRECISION, C.ROWS)
        rest = product(c.v.to(tl.float32), in_pairs(tl.trans(fresh), c.ones), PRECISION, seen)
    r = product_in_parts(in_pairs(tl.trans(inverse), c.ones), rest, PRECISION, RIGHT=True)
    return r


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
    new = product(written, to_end(c.k, c.gates, C.GATE), PRECISION, new)
    if C.UNTIED:
        new = product(r, to_end(c.erase, c.gates, C.GATE), PRECISION, new)
    return new


@triton.jit
def chunk_outputs(c, state, r, C: tl.constexpr):
    """Return Y = q~ S + (q k^T E) w, for untied + (q b^T E) R, transposed [BLOCK_V, ROWS] and without the scale."""
    PRECISION: tl.constexpr = C.PRECISION
    p = scores(c.q, c.k, c.gates, C.AHEAD, not C.AHEAD, C.GATE, PRECISION, C.ROWS)
    queries = from_start(c.q, c.gates, C.AHEAD, C.GATE)
    y = product(state, tl.trans(queries), PRECISION)
    if C.VALUE_GATE != NONE:
        i = tl.arange(0, C.ROWS)
        v = tl.trans(c.v).to(tl.float32)
        own = tl.sum(tl.where(i[:, None] == i[None, :], p, 0.0), 1)
        p = tl.where(i[:, None] == i[None, :], 0.0, p)
        rows = from_start(tl.trans(y), c.value_gates, False, C.VALUE_GATE) + own[:, None] * v
        y = tl.trans(rows + onto_rows(p, v, c.value_gates, False, C.VALUE_GATE, PRECISION, C.ROWS))
    elif C.TIED:
        y = product(r, in_pairs(tl.trans(p), c.ones), PRECISION, y)
    else:
        y = product(c.v.to(tl.float32), in_pairs(tl.trans(p), c.ones), PRECISION, y)
    if C.UNTIED:
        p = scores(c.q, c.erase, c.gates, False, True, C.GATE, PRECISION, C.ROWS)
        y = product(r, in_pairs(tl.trans(p), c.ones), PRECISION, y)
    return y


@triton.jit
def segment_of_program(index, T, length, C: tl.constexpr):
    """Return the head of a program, its segment of `length` tokens, and the first and the end of its chunks.

    Without segments the whole sequence is the only one.
    """
    first = 0
    end = tl.cdiv(T, C.ROWS)
    segment = 0
    head = index.to(tl.int64)
    if C.SEGMENTED:
        segments = tl.cdiv(T, length)
        segment = index % segments
        head = (index // segments).to(tl.int64)
        first = segment * (length // C.ROWS)
        end = tl.minimum(first + length // C.ROWS, end)
    return head, segment, first, end


@triton.jit
def decays_are_mild(x, T, H, G, length, C: tl.constexpr):
    """Return whether the decays of a program are all so mild that the factors of BOUNDED stay in the range of float32.

    Then one product has the scores of a chunk, where CHANNELS needs one for each size of halves.
    """
    BLOCKS: tl.constexpr = (C.V + C.BLOCK_V - 1) // C.BLOCK_V
    pid = tl.program_id(0)
    head, _, first_chunk, end_chunk = segment_of_program(pid // BLOCKS, T, length, C)
    if C.VALUE_GATE == NONE:
        view = at_head(x.log_decay, head // G, head % G)
        least = least_of_rows(view, first_chunk, end_chunk, T, 0, C.K, C.BLOCK_K, C)
    else:
        view = at_head(x.log_value_decay, head // G, head % G)
        least = least_of_rows(view, first_chunk, end_chunk, T, (pid % BLOCKS) * C.BLOCK_V, C.V, C.BLOCK_V, C)
    return least > LEAST_MILD


@triton.jit
def least_of_rows(view, chunk, end, T, first, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, C: tl.constexpr):
    """Return the least of the columns `first` on of the rows of chunks before `end`, and of 0."""
    ROWS: tl.constexpr = C.ROWS
    least = tl.zeros([ROWS, COLUMNS], tl.float32)
    for place in range(chunk, end):
        rows = load_substeps(view, place * ROWS, T, first, 0, C.SUB, WIDTH, ROWS, COLUMNS)
        least = tl.minimum(least, rows.to(tl.float32))
    return tl.min(least)


@triton.jit(do_not_specialize=SIZES)
def delta_forward_kernel(
    x, y, first_state, last, states, inverses, T, H, G, length, scale, C: tl.constexpr, MILD: tl.constexpr
):
    """Write y [N, T / SUB, G, V] and the last state [N, G, K, V].

    Where SAVE, also write the states before chunks, transposed, and the inverses of their triangular systems. T counts
    sub-steps. A program has BLOCK_V value channels of one head; the grid is N * G * blocks of values. Decays without a
    bound are taken as MILD says where they are.

    Where SEGMENTED, a program has one segment of `length` sub-steps of these; the grid has as many times the programs.
    `first_state` then holds the states before segments [N, G, segments, V, K], and the inverses are read.
    """
    mild = False
    if C.GATE == CHANNELS or C.VALUE_GATE == CHANNELS:
        mild = decays_are_mild(x, T, H, G, length, C)
    if mild:
        forward_walk(x, y, first_state, last, states, inverses, T, H, G, length, scale, MILD)
    else:
        forward_walk(x, y, first_state, last, states, inverses, T, H, G, length, scale, C)


@triton.jit
def forward_walk(x, y, first_state, last, states, inverses, T, H, G, length, scale, C: tl.constexpr):
    """Walk the chunks of a program, as `delta_forward_kernel` says."""
    BLOCKS: tl.constexpr = (C.V + C.BLOCK_V - 1) // C.BLOCK_V
    pid = tl.program_id(0)
    first = (pid % BLOCKS) * C.BLOCK_V
    head, segment, first_chunk, end_chunk = segment_of_program(pid // BLOCKS, T, length, C)
    n = head // G
    g = head % G
    x = head_views(x, n, g, g // (G // H))
    out = View(y + ((n * (T // C.SUB)) * G + g) * C.V, 0, G * C.V, 0)
    chunks = tl.cdiv(T, C.ROWS)
    ones = ones_of_pairs(x.q, C.ROWS)

    if C.SEGMENTED:
        place = head * tl.cdiv(T, length) + segment
        edge, edge_mask = saved_pointers(first_state + place * (C.K * C.V), first, C)
        state = tl.load(edge, mask=edge_mask, other=0.0)
    else:
        state = load_edge(first_state, head, first, C.INITIAL, C)
    for chunk in range(first_chunk, end_chunk):
        start = chunk * C.ROWS
        if C.SAVE:
            pointers, mask = saved_pointers(states + (head * chunks + chunk) * (C.K * C.V), first, C)
            tl.store(pointers, state, mask=mask)
        c = load_chunk(x, start, T, T, first, ones, C)
        r = 0.0
        if C.TIED or C.UNTIED:
            kept = inverse_pointers(inverses, head * chunks + chunk, C.ROWS)
            if C.SEGMENTED:
                inverse = tl.load(kept)
            else:
                inverse = inverse_of_system(c, C)
                if C.SAVE and first == 0:
                    tl.store(kept, inverse)
            r = found_rows(c, state, inverse, C)
        tile = chunk_outputs(c, state, r, C) * scale
        store_transposed(out, tile, start, T, first, C.SUB - 1, C.SUB, C.V, C.ROWS, C.BLOCK_V)
        state = next_state(c, state, r, C)
    if end_chunk == chunks:
        store_edge(last, head, first, state, C)
