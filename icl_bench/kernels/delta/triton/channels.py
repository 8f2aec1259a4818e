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

from icl_bench.kernels.delta.triton.backward import rows_of_part
from icl_bench.kernels.delta.triton.forward import SIZES, head_views
from icl_bench.kernels.delta.triton.tied import load_rates, rounding_of, solved_product, state_product
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
    store_numbers,
    store_substeps,
    written_pointers,
)
from icl_bench.kernels.triton.common import View
from icl_bench.kernels.triton.triangular import unit_lower_inverse


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


@triton.jit(do_not_specialize=SIZES)
def channel_forward_kernel(x, y, first_state, last, kept, T, H, G, scale, C: tl.constexpr):
    """Write y [N, T, G, V] and the last state [N, G, K, V].

    Where SAVE, also write the states before chunks and, of the tied rule, the rows R, both transposed, and the matrices
    M. A program has BLOCK_V value channels of one head; the grid is N * G * blocks of values.
    """
    PRECISION: tl.constexpr = C.PRECISION
    ROWS: tl.constexpr = C.ROWS
    BLOCK_V: tl.constexpr = C.BLOCK_V
    BLOCKS: tl.constexpr = (C.V + C.BLOCK_V - 1) // C.BLOCK_V
    first = (tl.program_id(0) % BLOCKS) * BLOCK_V
    head = (tl.program_id(0) // BLOCKS).to(tl.int64)
    n = head // G
    g = head % G
    x = head_views(x, n, g, g // (G // H))
    out = View(y + (n * T * G + g) * C.V, 0, G * C.V, 0)
    chunks = tl.cdiv(T, ROWS)
    i = tl.arange(0, ROWS)[:, None]
    j = tl.arange(0, ROWS)[None, :]
    ones = ones_of_pairs(x.q, ROWS)
    eye = (i == j).to(x.q.ptr.dtype.element_ty)

    state = load_edge(first_state, head, first, C.INITIAL, C)
    next_rates = load_rates(x.beta, 0, T, C)
    for chunk in range(0, chunks):
        start = chunk * ROWS
        rates = next_rates
        next_rates = load_rates(x.beta, start + ROWS, T, C)
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

        q = as_operand(load_keys(x.q, start, T, C) * (tl.exp2(upto) * scale), PRECISION)
        rows = product(q, tl.trans(state), PRECISION)
        p = tl.where(i >= j, product(q, tl.trans(erase), PRECISION), 0.0)
        rows = product(p, tl.trans(r_t), PRECISION, rows)
        if C.TIED:
            state = state_product(r_t, erase, ones, PRECISION, state) * whole
        else:
            p = tl.where(i >= j, product(q, tl.trans(k), PRECISION), 0.0)
            rows = product(p, v, PRECISION, rows)
            state = product(r_t, erase, PRECISION, state)
            state = product(v_t, k, PRECISION, state) * whole
        store_substeps(out, rows, start, T, first, 0, 1, C.V, ROWS, BLOCK_V)
    store_edge(last, head, first, state, C)


@triton.jit
def decay_gradient(dread, sums, ended, PRECISION: tl.constexpr, C: tl.constexpr):
    """Return the gradients of log decays from those of their sums up to tokens and over the chunk, `ended` by row.

    The sums of the tokens from each on are a product with a matrix of ones, of which tf32 keeps 11 bits beside
    bfloat16. An untied read is of the state before the decay of its own token.
    """
    EXACT: tl.constexpr = "tf32" if PRECISION == "bf16" else PRECISION
    i = tl.arange(0, C.ROWS)
    later = (i[None, :] >= i[:, None]).to(tl.float32)
    dlog = tl.dot(later, nearest_tf32(sums, EXACT), input_precision=EXACT) + tl.sum(ended, 0)[None, :]
    if not C.TIED:
        dlog -= dread
    return dlog


@triton.jit
def load_part(ptr, start, n, g, T, G, first, C: tl.constexpr):
    """Load the rows of a chunk of a contiguous tensor [N, T, G, V], [ROWS, BLOCK_V]."""
    rows = rows_of_part(ptr, n, g, T, G, C.V)
    return load_substeps(rows, start, T, first, 0, 1, C.V, C.ROWS, C.BLOCK_V)


@triton.jit(do_not_specialize=SIZES)
def channel_backward_kernel(
    x, dy, dlast, kept, out, offered, T, H, G, q_apart, v_apart, scale, least, LAST: tl.constexpr,
    OFFERED: tl.constexpr, SLOPED: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Write the gradients of all inputs; LAST says that the last state has one. The grid is that of the forward pass.

    Of q, k, read, erase, beta and log_decay a program writes its own part, [N, T, G * blocks, ...]. Tokens of the
    gradients of q and v are `q_apart` and `v_apart` elements apart. Where OFFERED that of v includes the gradient of
    its other uses. Where SLOPED that of the log decays is of z, of which they are `least` sigmoid(z).
    """
    PRECISION: tl.constexpr = C.PRECISION
    ROWS: tl.constexpr = C.ROWS
    BLOCK_K: tl.constexpr = C.BLOCK_K
    BLOCK_V: tl.constexpr = C.BLOCK_V
    BLOCKS: tl.constexpr = (C.V + C.BLOCK_V - 1) // C.BLOCK_V
    first = (tl.program_id(0) % BLOCKS) * BLOCK_V
    head = (tl.program_id(0) // BLOCKS).to(tl.int64)
    n = head // G
    g = head % G
    part = g * BLOCKS + tl.program_id(0) % BLOCKS
    parts = G * BLOCKS
    x = head_views(x, n, g, g // (G // H))
    dy = View(dy.ptr + n * dy.n + g * dy.h, dy.n, dy.t, dy.h)
    dk_view = rows_of_part(out.k, n, part, T, parts, C.K)
    chunks = tl.cdiv(T, ROWS)
    i = tl.arange(0, ROWS)[:, None]
    j = tl.arange(0, ROWS)[None, :]
    ones = ones_of_pairs(x.q, ROWS)
    dq_view = View(out.q + n * T * q_apart + part * C.K, 0, q_apart, 0)
    dv_view = View(out.v + n * T * v_apart + g * C.V, 0, v_apart, 0)

    d = load_edge(dlast, head, first, LAST, C)
    next_rates = load_rates(x.beta, (chunks - 1) * ROWS, T, C)
    for step in range(0, chunks):
        chunk = chunks - 1 - step
        start = chunk * ROWS
        rates = next_rates
        next_rates = load_rates(x.beta, tl.maximum(start - ROWS, 0), T, C)
        logs, upto, whole = load_decays(x.log_decay, start, T, C)
        d = d * whole
        since = tl.exp2(upto) * scale
        before = tl.exp2(upto if C.TIED else upto - logs)
        until = tl.exp2(-upto)
        q = as_operand(load_keys(x.q, start, T, C) * since, PRECISION)
        erase, read = load_operands(x, start, T, rates, upto, until, logs, C)
        u = load_substeps(dy, start, T, first, 0, 1, C.V, ROWS, BLOCK_V)
        u_t = load_transposed(dy, start, T, first, 0, 1, C.V, ROWS, BLOCK_V)
        v = load_substeps(x.v, start, T, first, 0, 1, C.V, ROWS, BLOCK_V)

        # Gradients of what is erased and of the values.
        p = tl.where(j >= i, product(erase, tl.trans(q), PRECISION), 0.0)
        dr_t = product(d, tl.trans(erase), PRECISION)
        dr_t = product(u_t, tl.trans(p), PRECISION, dr_t)
        matrix = tl.load(inverse_pointers(kept.inverses, head * chunks + chunk, ROWS))
        if C.TIED:
            dv = solved_product(matrix, tl.trans(dr_t), ones, PRECISION, PARTS=2)
            z = as_operand(dv, PRECISION)
            low_z = rounding_of(dv, PRECISION)
        else:
            z = as_operand(solved_product(matrix, tl.trans(dr_t), ones, PRECISION), PRECISION)
            k = as_operand(load_keys(x.k, start, T, C) * until, PRECISION)
            dv = product(k, tl.trans(d), PRECISION)
            p = tl.where(j >= i, product(k, tl.trans(q), PRECISION), 0.0)
            dv = product(p, u, PRECISION, dv)
            p = tl.where(j > i, product(k, tl.trans(read), PRECISION), 0.0)
            dv = product(p, z, PRECISION, dv)
        # Added by a product with a diagonal matrix, whose other operand is fetched ahead. Zeros that are made of p lie
        # where results of products do, and need not be moved between threads.
        if OFFERED:
            others = load_part(offered, start, n, g, T, G, first, C)
            dv = product(as_operand(tl.where(i == j, 1.0, p * 0.0), PRECISION), others, PRECISION, dv)
        store_substeps(dv_view, dv, start, T, first, 0, 1, C.V, ROWS, BLOCK_V)
        pointers, mask = saved_pointers(kept.states + (head * chunks + chunk) * (C.K * C.V), first, C)
        state = tl.load(pointers, mask=mask, other=0.0)
        if C.TIED:
            state = as_operand(state.to(tl.float32) * whole, PRECISION)
            pointers, mask = written_pointers(kept.rows, head * chunks + chunk, first, C)
            r = tl.load(pointers, mask=mask, other=0.0)
        else:
            p = tl.where(i > j, product(read, tl.trans(k), PRECISION), 0.0)
            rest_t = product(state, tl.trans(read), PRECISION)
            v_t = load_transposed(x.v, start, T, first, 0, 1, C.V, ROWS, BLOCK_V)
            rest = tl.trans(product(v_t, tl.trans(p), PRECISION, rest_t))
            matrix = tl.load(inverse_pointers(kept.inverses, head * chunks + chunk, ROWS))
            r = as_operand(solved_product(tl.trans(matrix), rest, ones, PRECISION), PRECISION)

        # Gradients of the scores, transposed, and of what they are made of.
        dp_qb = as_operand(tl.where(j >= i, product(r, tl.trans(u), PRECISION), 0.0), PRECISION)
        dp_ab = as_operand(tl.where(j > i, product(r, tl.trans(z), PRECISION), 0.0), PRECISION)
        dread = product(z, state, PRECISION)
        dread = product(tl.trans(dp_ab), erase, PRECISION, dread)
        if not C.TIED:
            dp_qk = as_operand(tl.where(j >= i, product(v, tl.trans(u), PRECISION), 0.0), PRECISION)
            dp_ak = as_operand(tl.where(j > i, product(v, tl.trans(z), PRECISION), 0.0), PRECISION)
            dread = product(tl.trans(dp_ak), k, PRECISION, dread)
        dread = dread * before
        if C.TIED:
            dk = -dread
            dread = dk * load_keys(x.k, start, T, C)
        else:
            dread_view = rows_of_part(out.read, n, part, T, parts, C.K)
            store_substeps(dread_view, dread, start, T, 0, 0, 1, C.K, ROWS, BLOCK_K)
            dread = dread * load_keys(x.read, start, T, C)
        dq = product(u, state, PRECISION)
        dq = product(tl.trans(dp_qb), erase, PRECISION, dq)
        if not C.TIED:
            dq = product(tl.trans(dp_qk), k, PRECISION, dq)
        dq = dq * since
        sums = dread + dq * load_keys(x.q, start, T, C)
        store_substeps(dq_view, dq, start, T, 0, 0, 1, C.K, ROWS, BLOCK_K)
        ended = tl.sum(tl.reshape(state.to(tl.float32) * d, [BLOCK_V // ROWS, ROWS, BLOCK_K]), 0)

        if not C.TIED:
            dk = product(v, d, PRECISION)
            scaled = load_keys(x.k, start, T, C) * until
            ended += dk * scaled
            dk = product(dp_qk, q, PRECISION, dk)
            dk = product(dp_ak, read, PRECISION, dk)
            sums -= dk * scaled
            store_substeps(dk_view, dk * until, start, T, 0, 0, 1, C.K, ROWS, BLOCK_K)
        derase = product(r, d, PRECISION)
        scaled = load_keys(x.k if C.TIED else x.erase, start, T, C) * until
        rated = scaled
        if C.RATED:
            rated = scaled * rates[:, None]
        ended += derase * rated
        derase = product(dp_qb, q, PRECISION, derase)
        derase = product(dp_ab, read, PRECISION, derase)
        sums -= derase * rated
        if C.RATED:
            dbeta = tl.sum(derase * scaled, 1)
            store_numbers(rows_of_part(out.beta, n, part, T, parts, 1), dbeta, start, T, 0, 1, ROWS)
            derase = derase * rates[:, None]
        if C.TIED:
            store_substeps(dk_view, dk + derase * until, start, T, 0, 0, 1, C.K, ROWS, BLOCK_K)
        else:
            derase_view = rows_of_part(out.erase, n, part, T, parts, C.K)
            store_substeps(derase_view, derase * until, start, T, 0, 0, 1, C.K, ROWS, BLOCK_K)
        dlog = decay_gradient(dread, sums, ended, PRECISION, C)
        if SLOPED:
            logs = load_keys(x.log_decay, start, T, C)
            dlog *= logs - logs * logs * (1.0 / least)
        dlog_view = rows_of_part(out.log_decay, n, part, T, parts, C.K)
        store_substeps(dlog_view, dlog, start, T, 0, 0, 1, C.K, ROWS, BLOCK_K)
        d = product(u_t, q, PRECISION, d)
        d = product(tl.trans(z), read, PRECISION, d)
        if C.TIED:
            if PRECISION == "bf16":
                d = product(tl.trans(low_z), read, PRECISION, d)
            d = d * whole
    if C.INITIAL:
        store_edge(out.state, head, first, d, C)
