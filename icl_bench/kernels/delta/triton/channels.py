"""Triton kernels of delta rules with bounded decays of channels: tied with its keys, or untied with undecayed reads.

With s and e the decays from the start of a chunk to a token, the token included or not, and w those of the whole chunk,

    q^ = q s,   a^ = a e,   k^ = k / s,   b^ = b / s,   P_xy = x^ y^^T below the diagonal (that of q with it)
    forward:   R = M (a^ S + P_ak V),   Y = q^ S + P_qb R + P_qk V,   S' = w (S + b^^T R + k^^T V)
               with M = (I - P_ab)^{-1}, the matrix that a chunk keeps
    backward:  dR = P_qb^T dY + b^ w D,   Z = M^T dR,   dV = P_qk^T dY + k^ w D + P_ak^T Z
               dP_qb = dY R^T,   dP_qk = dY V^T,   dP_ab = Z R^T,   dP_ak = Z V^T
               dq^ = dY S^T + dP_qb b^ + dP_qk k^,   da^ = Z S^T + dP_ab b^ + dP_ak k^
               db^ = R (w D)^T + dP_qb^T q^ + dP_ab^T a^,   dk^ = V (w D)^T + dP_qk^T q^ + dP_ak^T a^
               dS = w D + q^^T dY + a^^T Z

The tied rule has a = -k, read after the decay (s for e), and b = beta k, that writes R + V: its R here is that sum,
R = M (a^ S + V), the terms of k^ are left out, and dV = Z. Its decays may be as small as e^-5, so s counts from the
middle of those of a chunk, sqrt(w): S^ = sqrt(w) S, S' = sqrt(w) (S^ + b^^T R), and likewise for D.

Both kernels walk the chunks of a head. A decayed vector is rounded once, as the operand of all its products; systems
are solved in float32. As in `tied`, states have value channels as rows, and scores of the backward pass are transposed,
so that most results feed the next product from their registers.
"""

import triton
import triton.language as tl

from icl_bench.kernels.delta.triton.decays import unit_lower_inverse
from icl_bench.kernels.delta.triton.forward import SIZES, head_views
from icl_bench.kernels.delta.triton.tied import load_rates, solved_product, state_product
from icl_bench.kernels.delta.triton.tiles import (
    inverse_pointers,
    load_edge,
    load_substeps,
    load_transposed,
    nearest_tf32,
    ones_of_pairs,
    product,
    saved_pointers,
    store_edge,
    store_substeps,
    written_pointers,
)
from icl_bench.kernels.triton.common import View


@triton.jit
def as_operand(x, PRECISION: tl.constexpr):
    """Return x in the type of operands."""
    if PRECISION == "bf16":
        x = x.to(tl.bfloat16)
    return x


@triton.jit
def added_rows(rows_t, eye, PRECISION: tl.constexpr, total):
    """Return total + rows_t [V, ROWS]: beside bfloat16 by a product with a matrix `eye` of ones on the diagonal.

    Operands of products are fetched ahead; what is added otherwise is loaded where it is used.
    """
    if PRECISION == "bf16":
        total = tl.dot(rows_t, eye, total)
    else:
        total += rows_t.to(tl.float32)
    return total


@triton.jit
def load_keys(view, start, end, C: tl.constexpr):
    """Load the vectors of keys or queries of a chunk in float32, [ROWS, BLOCK_K]."""
    return load_substeps(view, start, end, 0, 0, 1, C.K, C.ROWS, C.BLOCK_K).to(tl.float32)


@triton.jit
def load_decays(view, start, end, C: tl.constexpr):
    """Return the log decays of a chunk in base 2, their sums up to each token, and a factor of states, [1, BLOCK_K].

    The factor is w, or for the tied rule sqrt(w), from which its sums count. All are made of the same numbers, operands
    of the product that adds them up: decays in bfloat16 as they are, others rounded, an error of 2e-4 of a sum.
    """
    i = tl.arange(0, C.ROWS)
    earlier = i[None, :] <= i[:, None]
    if C.PRECISION == "bf16" and view.ptr.dtype.element_ty == tl.bfloat16:
        given = load_substeps(view, start, end, 0, 0, 1, C.K, C.ROWS, C.BLOCK_K)
        upto = tl.dot(earlier.to(tl.bfloat16), given) * 1.4426950408889634
        logs = load_keys(view, start, end, C) * 1.4426950408889634
    else:
        EXACT: tl.constexpr = "tf32" if C.PRECISION == "bf16" else C.PRECISION
        logs = nearest_tf32(load_keys(view, start, end, C) * 1.4426950408889634, EXACT)
        if EXACT == "tf32":
            logs = (logs.to(tl.int32, bitcast=True) & -0x2000).to(tl.float32, bitcast=True)
        upto = tl.dot(earlier.to(tl.float32), logs, input_precision=EXACT)
    total = tl.sum(logs, 0)[None, :]
    if C.TIED:
        total = total * 0.5
        upto = upto - total
    return logs, upto, tl.exp2(total)


@triton.jit
def load_operands(x, start, end, rates, upto, until, logs, C: tl.constexpr):
    """Return b^ and a^ of a chunk, for the tied rule from its keys and rates."""
    PRECISION: tl.constexpr = C.PRECISION
    if C.TIED:
        keys = load_keys(x.k, start, end, C)
        read = -keys * tl.exp2(upto)
        erase = keys * until
        if C.RATED:
            erase = erase * rates[:, None]
    else:
        read = load_keys(x.read, start, end, C) * tl.exp2(upto - logs)
        erase = load_keys(x.erase, start, end, C) * until
    return as_operand(erase, PRECISION), as_operand(read, PRECISION)


@triton.jit
def forward_chunk(
    x, out, kept, state, rates, chunk, chunks, head, first, T, scale, QUERIED: tl.constexpr, C: tl.constexpr
):
    """Return the state after a chunk; write what is kept of it and, where QUERIED, its outputs."""
    PRECISION: tl.constexpr = C.PRECISION
    ROWS: tl.constexpr = C.ROWS
    BLOCK_V: tl.constexpr = C.BLOCK_V
    i = tl.arange(0, ROWS)[:, None]
    j = tl.arange(0, ROWS)[None, :]
    ones = ones_of_pairs(x.q, ROWS)
    eye = (i == j).to(x.q.ptr.dtype.element_ty)
    start = chunk * ROWS
    if C.SAVE:
        pointers, mask = saved_pointers(kept.states + (head * chunks + chunk) * (C.K * C.V), first, C)
        tl.store(pointers, state.to(kept.states.dtype.element_ty), mask=mask)
    logs, upto, whole = load_decays(x.log_decay, start, T, C)
    until = tl.exp2(-upto)
    erase, read = load_operands(x, start, T, rates, upto, until, logs, C)
    v_t = load_transposed(x.v, start, T, first, 0, 1, C.V, ROWS, BLOCK_V)
    matrix = unit_lower_inverse(tl.where(i > j, -product(read, tl.trans(erase), PRECISION), 0.0), ROWS)
    if C.SAVE and first == 0:
        tl.store(inverse_pointers(kept.inverses, head * chunks + chunk, ROWS), tl.trans(matrix))
    if C.TIED:
        state = state * whole
        rest_t = added_rows(v_t, eye, PRECISION, product(state, tl.trans(read), PRECISION))
        r_t = solved_product(tl.trans(matrix), rest_t, ones, PRECISION, RIGHT=True, PARTS=2)
    else:
        k = as_operand(load_keys(x.k, start, T, C) * until, PRECISION)
        fresh = tl.where(i > j, product(read, tl.trans(k), PRECISION), 0.0)
        v = load_substeps(x.v, start, T, first, 0, 1, C.V, ROWS, BLOCK_V)
        rest_t = product(state, tl.trans(read), PRECISION)
        rest_t = product(v_t, tl.trans(fresh), PRECISION, rest_t)
        r_t = as_operand(solved_product(tl.trans(matrix), rest_t, ones, PRECISION, RIGHT=True), PRECISION)
    if C.SAVE and C.TIED:
        pointers, mask = written_pointers(kept.rows, head * chunks + chunk, first, C)
        tl.store(pointers, tl.trans(r_t).to(kept.rows.dtype.element_ty), mask=mask)

    if QUERIED:
        q = as_operand(load_keys(x.q, start, T, C) * (tl.exp2(upto) * scale), PRECISION)
        rows = product(q, tl.trans(state), PRECISION)
        p = tl.where(i >= j, product(q, tl.trans(erase), PRECISION), 0.0)
        rows = product(p, tl.trans(r_t), PRECISION, rows)
        if not C.TIED:
            p = tl.where(i >= j, product(q, tl.trans(k), PRECISION), 0.0)
            rows = product(p, v, PRECISION, rows)
    if C.TIED:
        state = state_product(r_t, erase, ones, PRECISION, state) * whole
    else:
        state = product(r_t, erase, PRECISION, state)
        state = product(v_t, k, PRECISION, state) * whole
    if QUERIED:
        store_substeps(out, rows, start, T, first, 0, 1, C.V, ROWS, BLOCK_V)
    return state


@triton.jit(do_not_specialize=SIZES)
def channel_forward_kernel(
    x, y, first_state, last, kept, queried, T, H, G, scale, EARLY: tl.constexpr, C: tl.constexpr
):
    """Write y [N, T, G, V] and the last state [N, G, K, V].

    Where SAVE, also write the states before chunks and, of the tied rule, the rows R, both transposed, and the matrices
    M. A program has BLOCK_V value channels of one head; the grid is N * G * blocks of values. Where EARLY, y begins
    with the chunk of each sequence that `queried` has, int32 [N].
    """
    BLOCKS: tl.constexpr = (C.V + C.BLOCK_V - 1) // C.BLOCK_V
    first = (tl.program_id(0) % BLOCKS) * C.BLOCK_V
    head = (tl.program_id(0) // BLOCKS).to(tl.int64)
    n = head // G
    g = head % G
    x = head_views(x, n, g, g // (G // H))
    out = View(y + (n * T * G + g) * C.V, 0, G * C.V, 0)
    chunks = tl.cdiv(T, C.ROWS)
    begin = 0

    state = load_edge(first_state, head, first, C.INITIAL, C)
    if EARLY:
        begin = tl.load(queried + n)
        for chunk in range(0, begin):
            rates = load_rates(x.beta, chunk * C.ROWS, T, C)
            state = forward_chunk(x, out, kept, state, rates, chunk, chunks, head, first, T, scale, False, C)
    next_rates = load_rates(x.beta, begin * C.ROWS, T, C)
    for chunk in range(begin, chunks):
        rates = next_rates
        next_rates = load_rates(x.beta, (chunk + 1) * C.ROWS, T, C)
        state = forward_chunk(x, out, kept, state, rates, chunk, chunks, head, first, T, scale, True, C)
    store_edge(last, head, first, state, C)
