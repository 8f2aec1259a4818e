"""Triton kernels that take segments of a sequence in parallel, for few long sequences.

A segment maps the state before it to S' = A S + X. A and X are found by walking its chunks without outputs, from unit
states without values and from no state; a short pass over the segments then joins the maps, and each segment has the
state before it. The gradient of the state goes back the same way, dS = A^T dS' + Y. The systems of all chunks are
solved first, each by a program of its own.
"""

import triton
import triton.language as tl

from icl_bench.kernels.delta.triton.backward import output_gradient
from icl_bench.kernels.delta.triton.decays import decay_state, from_start, load_chunk, scores, to_end
from icl_bench.kernels.delta.triton.forward import (
    SIZES,
    found_rows,
    head_views,
    inverse_of_system,
    next_state,
    segment_of_program,
)
from icl_bench.kernels.delta.triton.tiles import (
    in_pairs,
    inverse_pointers,
    load_edge,
    ones_of_pairs,
    product,
    product_in_parts,
    saved_pointers,
    store_edge,
)
from icl_bench.kernels.triton.common import View


@triton.jit(do_not_specialize=SIZES)
def delta_inverse_kernel(x, inverses, T, H, G, C: tl.constexpr):
    """Write the inverses of the systems of all chunks, [N, G, chunks, ROWS, ROWS]. Grid N * G * chunks."""
    chunks = tl.cdiv(T, C.ROWS)
    head = (tl.program_id(0) // chunks).to(tl.int64)
    chunk = tl.program_id(0) % chunks
    n = head // G
    g = head % G
    x = head_views(x, n, g, g // (G // H))
    c = load_chunk(x, chunk * C.ROWS, T, T, 0, ones_of_pairs(x.q, C.ROWS), C)
    tl.store(inverse_pointers(inverses, head * chunks + chunk, C.ROWS), inverse_of_system(c, C))


@triton.jit(do_not_specialize=SIZES)
def delta_segment_kernel(x, inverses, maps, T, H, G, length, C: tl.constexpr):
    """Write the maps of segments [N, G, segments, V + K, K]: X^T, and below it A^T.

    A program has BLOCK_V rows of either. Grid N * G * segments * (blocks of V + blocks of K).
    """
    BLOCK_V: tl.constexpr = C.BLOCK_V
    VALUE_BLOCKS: tl.constexpr = (C.V + C.BLOCK_V - 1) // C.BLOCK_V
    BLOCKS: tl.constexpr = VALUE_BLOCKS + (C.K + C.BLOCK_V - 1) // C.BLOCK_V
    pid = tl.program_id(0)
    block = pid % BLOCKS
    head, segment, first_chunk, end_chunk = segment_of_program(pid // BLOCKS, T, length, C)
    n = head // G
    g = head % G
    x = head_views(x, n, g, g // (G // H))
    chunks = tl.cdiv(T, C.ROWS)
    ones = ones_of_pairs(x.q, C.ROWS)
    unit = block >= VALUE_BLOCKS
    first = (block - tl.where(unit, VALUE_BLOCKS, 0)) * BLOCK_V
    values_end = tl.where(unit, 0, T)
    rows = first + tl.arange(0, BLOCK_V)[:, None]
    columns = tl.arange(0, C.BLOCK_K)[None, :]

    state = ((rows == columns) & unit).to(tl.float32)
    for chunk in range(first_chunk, end_chunk):
        c = load_chunk(x, chunk * C.ROWS, T, values_end, first, ones, C)
        r = 0.0
        if C.TIED or C.UNTIED:
            inverse = tl.load(inverse_pointers(inverses, head * chunks + chunk, C.ROWS))
            r = found_rows(c, state, inverse, C)
        state = next_state(c, state, r, C)
    place = (head * tl.cdiv(T, length) + segment) * (C.V + C.K) + tl.where(unit, C.V, 0)
    mask = (rows < tl.where(unit, C.K, C.V)) & (columns < C.K)
    tl.store(maps + place * C.K + rows * C.K + columns, state, mask=mask)


@triton.jit(do_not_specialize=SIZES)
def delta_state_gradient_kernel(
    x, dy, ends, inverses, gradients, first_gradient, T, H, G, length, scale, LAST: tl.constexpr, EACH: tl.constexpr,
    C: tl.constexpr,
):  # fmt: skip
    """Walk the chunks of segments from the last to the first with the gradient of the state alone.

    Unless EACH, it begins with zeros, and `gradients` [N, G, segments, V, K] gets those before segments, from their own
    outputs alone. Where EACH, `ends` has what it begins with, as in the backward pass, and `gradients` [N, G, chunks,
    V, K] gets those after each chunk, `first_gradient` [N, G, K, V] that before the first. Grid N * G * segments *
    blocks of V.
    """
    PRECISION: tl.constexpr = C.PRECISION
    BLOCK_V: tl.constexpr = C.BLOCK_V
    BLOCKS: tl.constexpr = (C.V + C.BLOCK_V - 1) // C.BLOCK_V
    pid = tl.program_id(0)
    first = (pid % BLOCKS) * BLOCK_V
    head, segment, first_chunk, end_chunk = segment_of_program(pid // BLOCKS, T, length, C)
    n = head // G
    g = head % G
    x = head_views(x, n, g, g // (G // H))
    dy = View(dy.ptr + n * dy.n + g * dy.h, dy.n, dy.t, dy.h)
    chunks = tl.cdiv(T, C.ROWS)
    ones = ones_of_pairs(x.q, C.ROWS)
    place = head * tl.cdiv(T, length) + segment

    if EACH and C.SEGMENTED:
        edge, edge_mask = saved_pointers(ends + place * (C.V * C.K), first, C)
        d = tl.load(edge, mask=edge_mask, other=0.0)
    else:
        d = load_edge(ends, head, first, EACH and LAST, C)
    for step in range(0, end_chunk - first_chunk):
        chunk = end_chunk - 1 - step
        if EACH:
            pointers, mask = saved_pointers(gradients + (head * chunks + chunk) * (C.V * C.K), first, C)
            tl.store(pointers, d, mask=mask)
        c = load_chunk(x, chunk * C.ROWS, T, T, first, ones, C)
        u_t = output_gradient(dy, chunk * C.ROWS, T, first, scale, C)
        if C.TIED or C.UNTIED:
            z_t = read_gradient(c, d, u_t, tl.load(inverse_pointers(inverses, head * chunks + chunk, C.ROWS)), C)
        queries = from_start(c.q, c.gates, C.AHEAD, C.GATE)
        d = product(u_t, queries, PRECISION, decay_state(d, c.gates, C.GATE))
        if C.TIED or C.UNTIED:
            reading = from_start(c.read, c.gates, C.UNDECAYED, C.GATE)
            d = product(z_t, reading, PRECISION, d)
    if not EACH:
        edge, edge_mask = saved_pointers(gradients + place * (C.V * C.K), first, C)
        tl.store(edge, d, mask=edge_mask)
    elif C.INITIAL and segment == 0:
        store_edge(first_gradient, head, first, d, C)


@triton.jit
def read_gradient(c, d, u_t, inverse, C: tl.constexpr):
    """Return the gradient of what a chunk reads of the state, [BLOCK_V, ROWS], from that of the state after it."""
    PRECISION: tl.constexpr = C.PRECISION
    if C.TIED:
        p = scores(c.q, c.k, c.gates, C.AHEAD, not C.AHEAD, C.GATE, PRECISION, C.ROWS)
        writing = to_end(c.k, c.gates, C.GATE)
    else:
        p = scores(c.q, c.erase, c.gates, False, True, C.GATE, PRECISION, C.ROWS)
        writing = to_end(c.erase, c.gates, C.GATE)
    dr_t = product(u_t, p, PRECISION)
    dr_t = product(d, tl.trans(writing), PRECISION, dr_t)
    z_t = product_in_parts(in_pairs(inverse, c.ones), dr_t, PRECISION, RIGHT=True)
    if C.TIED:
        z_t = -z_t
        if C.RATED:
            z_t = z_t * c.beta[None, :]
    return z_t


@triton.jit(do_not_specialize=("segments",))
def delta_join_kernel(
    maps, sums, edge, states, segments, SUM_ROWS: tl.constexpr, EDGE: tl.constexpr, REVERSE: tl.constexpr,
    C: tl.constexpr,
):  # fmt: skip
    """Write the states before segments [N, G, segments, V, K], or where REVERSE the gradients of those after them.

    `sums` has X^T, or the results of `delta_state_gradient_kernel`, in the first V of its SUM_ROWS rows [.., K] of a
    segment. `edge` [N, G, K, V] is the state before the first segment, or the gradient of that after the last; zeros
    unless EDGE. Products keep the digits of float32. Grid N * G * blocks of V.
    """
    BLOCK_K: tl.constexpr = C.BLOCK_K
    BLOCK_V: tl.constexpr = C.BLOCK_V
    BLOCKS: tl.constexpr = (C.V + C.BLOCK_V - 1) // C.BLOCK_V
    first = (tl.program_id(0) % BLOCKS) * BLOCK_V
    head = (tl.program_id(0) // BLOCKS).to(tl.int64)
    i = tl.arange(0, BLOCK_K)[:, None]
    j = tl.arange(0, BLOCK_K)[None, :]
    state = load_edge(edge, head, first, EDGE, C)
    for step in range(0, segments):
        place = head * segments + step
        if REVERSE:
            place = head * segments + segments - 1 - step
        pointers, mask = saved_pointers(states + place * (C.V * C.K), first, C)
        tl.store(pointers, state, mask=mask)
        pointers, mask = saved_pointers(sums + place * (SUM_ROWS * C.K), first, C)
        added = tl.load(pointers, mask=mask, other=0.0)
        base = maps + (place * (C.V + C.K) + C.V) * C.K
        matrix = tl.load(base + i * C.K + j, mask=(i < C.K) & (j < C.K), other=0.0)
        if REVERSE:
            matrix = tl.trans(matrix)
        state = tl.dot(state, matrix, added, input_precision="tf32x3")
