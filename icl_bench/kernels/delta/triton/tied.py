"""Triton kernels of the tied delta rule that reads with its keys, without decays or with one a token.

With the names of `forward` and `backward`, and M = (I + B P)^{-1} B, which a chunk keeps with W,

    forward:   W = M (v - p~ S),   Y = q~ S + (q k^T E) W,   S' = exp(Gam_C) S + k~^T W
    backward:  dW = (q k^T E)^T dY + k~ D,   dv = M^T dW,   dB = diag(dv W^T) / B^2
               d(q k^T E) = dY W^T,   dP = -dv W^T,   dq~ = dY S^T,   dp~ = -dv S^T,   dk~ = W D^T

Decays of tokens are factors of rows, which products leave alone: inputs in bfloat16 are operands as they are, and
results take the factors. Beside inputs in bfloat16 all products take operands of it, and add up in float32; systems are
solved in float32. States and W have value channels as in `forward`, so that a result feeds a product from its
registers, or as the transpose of a right operand. The backward pass loads what it needs twice: registers are scarcer.
"""

import triton
import triton.language as tl

from icl_bench.kernels.delta.triton.backward import rows_of_part, sum_later
from icl_bench.kernels.delta.triton.forward import SIZES, head_views
from icl_bench.kernels.delta.triton.tiles import (
    HEADS,
    in_pairs,
    inverse_pointers,
    load_edge,
    load_numbers,
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

LEAST_RATE: tl.constexpr = tl.constexpr(1e-10)
"""A smaller rate counts as this one: the gradient of a rate is found from rows that are multiples of it."""
LEAST_LOG: tl.constexpr = tl.constexpr(-192.0)
"""Least log decay of a token in base 2: zero as a factor of float32, and small enough for differences of sums."""


@triton.jit
def solved_product(matrix, rows, ones, PRECISION: tl.constexpr, RIGHT: tl.constexpr = False, PARTS: tl.constexpr = 1):
    """Return M rows, or where RIGHT rows M: in tf32 where others are in bfloat16, with M in PARTS parts of it.

    M is rounded to the nearest, and the product cuts the rows off: rounding all of them takes a tenth more
    instructions. Equal keys have equal rounding errors of M at every chunk, so what adds up needs two parts.
    """
    EXACT: tl.constexpr = "tf32" if PRECISION == "bf16" else PRECISION
    rows = rows.to(tl.float32)
    high = nearest_tf32(matrix, EXACT)
    total = None
    if PARTS == 2 and EXACT == "tf32":
        high = (high.to(tl.int32, bitcast=True) & -0x2000).to(tl.float32, bitcast=True)
        low = in_pairs(matrix - high, ones)
        if RIGHT:
            total = tl.dot(rows, low, input_precision=EXACT)
        else:
            total = tl.dot(low, in_pairs(rows, ones), input_precision=EXACT)
    high = in_pairs(high, ones)
    if RIGHT:
        result = tl.dot(rows, high, total, input_precision=EXACT)
    else:
        result = tl.dot(high, in_pairs(rows, ones), total, input_precision=EXACT)
    return result


@triton.jit
def state_product(written, keys, ones, PRECISION: tl.constexpr, total):
    """Return total + written keys, [V, ROWS] times [ROWS, K]: a state keeps its errors, so in tf32, not in bfloat16."""
    EXACT: tl.constexpr = "tf32" if PRECISION == "bf16" else PRECISION
    return tl.dot(written.to(tl.float32), in_pairs(keys.to(tl.float32), ones), total, input_precision=EXACT)


@triton.jit
def rounding_of(x, PRECISION: tl.constexpr):
    """Return what x loses as an operand in bfloat16, as one more; x where nothing is lost.

    By integers, which are fewer instructions than conversions there and back. Ties go up, where those of the operand go
    to even: of one number in 2^17 the rest has the wrong sign.
    """
    if PRECISION == "bf16":
        high = (x.to(tl.int32, bitcast=True) + 0x8000) & -0x10000
        x = (x - high.to(tl.float32, bitcast=True)).to(tl.bfloat16)
    return x


@triton.jit
def load_rates(view, start, end, C: tl.constexpr):
    """Return the rates of a chunk, [ROWS]; where there are none, zeros that nothing reads.

    They are loaded a chunk ahead: the compiler fetches ahead only what products take.
    """
    ROWS: tl.constexpr = C.ROWS
    rates = tl.zeros([ROWS], tl.float32)
    if C.RATED:
        rates = load_numbers(view, start, end, 0, 1, ROWS)
    return rates


@triton.jit
def not_zero(rates):
    """Return the rates with the least one in place of smaller ones."""
    return tl.where(tl.abs(rates) < LEAST_RATE, LEAST_RATE, rates)


@triton.jit
def cumulated_decays(view, start, end, ROWS: tl.constexpr):
    """Return the cumulated log decays of a chunk in base 2, [ROWS], and their sum."""
    logs = tl.maximum(load_numbers(view, start, end, 0, 1, ROWS) * 1.4426950408889634, LEAST_LOG)
    return tl.cumsum(logs, 0), tl.sum(logs, 0)


@triton.jit(do_not_specialize=SIZES)
def tied_forward_kernel(x, y, first_state, last, kept, T, H, G, scale, C: tl.constexpr):
    """Write y [N, T, G, V] and the last state [N, G, K, V].

    Where SAVE, also write the states before chunks and the rows W, both transposed, and the matrices M. A program has
    BLOCK_V value channels of one head; the grid is N * G * blocks of values.
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
    x = head_views(x, n, g, g // (G // H))
    out = View(y + (n * T * G + g) * C.V, 0, G * C.V, 0)
    chunks = tl.cdiv(T, ROWS)
    i = tl.arange(0, ROWS)[:, None]
    j = tl.arange(0, ROWS)[None, :]
    ones = ones_of_pairs(x.q, ROWS)

    state = load_edge(first_state, head, first, C.INITIAL, C)
    next_rates = load_rates(x.beta, 0, T, C)
    for chunk in range(0, chunks):
        start = chunk * ROWS
        rates = next_rates
        next_rates = load_rates(x.beta, start + ROWS, T, C)
        q = load_substeps(x.q, start, T, 0, 0, 1, C.K, ROWS, BLOCK_K)
        k = load_substeps(x.k, start, T, 0, 0, 1, C.K, ROWS, BLOCK_K)
        v = load_substeps(x.v, start, T, first, 0, 1, C.V, ROWS, BLOCK_V)
        if C.SAVE:
            pointers, mask = saved_pointers(kept.states + (head * chunks + chunk) * (C.K * C.V), first, C)
            tl.store(pointers, state.to(kept.states.dtype.element_ty), mask=mask)
        p = tl.where(i >= j, product(q, tl.trans(k), PRECISION), 0.0)
        system = tl.where(i > j, product(k, tl.trans(k), PRECISION), 0.0)
        if C.GATE == HEADS:
            upto, total = cumulated_decays(x.log_decay, start, T, ROWS)
            decay = tl.exp2(tl.where(i >= j, upto[:, None] - upto[None, :], 0.0))
            p = p * (decay * scale)
            system = system * decay
            since = tl.exp2(upto)
        if C.RATED:
            beta = not_zero(rates)
            matrix = unit_lower_inverse(system * beta[:, None], ROWS) * beta[None, :]
        else:
            matrix = unit_lower_inverse(system, ROWS)
        if C.SAVE and first == 0:
            tl.store(inverse_pointers(kept.inverses, head * chunks + chunk, ROWS), tl.trans(matrix))
        seen = product(state, tl.trans(k), PRECISION)
        if C.GATE == HEADS:
            seen = seen * since[None, :]
        rest_t = tl.trans(v).to(tl.float32) - seen
        w_t = solved_product(tl.trans(matrix), rest_t, ones, PRECISION, RIGHT=True, PARTS=2)
        if C.SAVE:
            pointers, mask = written_pointers(kept.rows, head * chunks + chunk, first, C)
            tl.store(pointers, tl.trans(w_t).to(kept.rows.dtype.element_ty), mask=mask)
        rows = product(q, tl.trans(state), PRECISION)
        writing = k
        if C.GATE == HEADS:
            rows = rows * (since * scale)[:, None]
            writing = k.to(tl.float32) * tl.exp2(total - upto)[:, None]
            state = state * tl.exp2(total)
        rows = product(p, tl.trans(w_t), PRECISION, rows)
        if C.GATE != HEADS:  # else both terms have it
            rows = rows * scale
        store_substeps(out, rows, start, T, first, 0, 1, C.V, ROWS, BLOCK_V)
        state = state_product(w_t, writing, ones, PRECISION, state)
    store_edge(last, head, first, state, C)


@triton.jit(do_not_specialize=SIZES)
def tied_backward_kernel(x, dy, dlast, kept, out, T, H, G, scale, LAST: tl.constexpr, C: tl.constexpr):
    """Write the gradients of all inputs; LAST says that the last state has one. The grid is that of the forward pass.

    Of q, k, beta and log_decay a program writes its own part, [N, T, G * blocks, ...].
    """
    PRECISION: tl.constexpr = C.PRECISION
    GATE: tl.constexpr = C.GATE
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
    chunks = tl.cdiv(T, ROWS)
    i = tl.arange(0, ROWS)[:, None]
    j = tl.arange(0, ROWS)[None, :]
    ones = ones_of_pairs(x.q, ROWS)

    d = load_edge(dlast, head, first, LAST, C)
    next_rates = load_rates(x.beta, (chunks - 1) * ROWS, T, C)
    for step in range(0, chunks):
        chunk = chunks - 1 - step
        start = chunk * ROWS
        rates = next_rates
        next_rates = load_rates(x.beta, tl.maximum(start - ROWS, 0), T, C)
        if GATE == HEADS:
            upto, total = cumulated_decays(x.log_decay, start, T, ROWS)
            since = tl.exp2(upto)
            after = tl.exp2(total - upto)
            whole = tl.exp2(total)
            decay = tl.exp2(tl.where(j >= i, upto[None, :] - upto[:, None], float("-inf")))
        else:
            decay = (j >= i).to(tl.float32)
        weights = decay * scale

        # Gradients of the written rows and of the values.
        q = load_substeps(x.q, start, T, 0, 0, 1, C.K, ROWS, BLOCK_K)
        k = load_substeps(x.k, start, T, 0, 0, 1, C.K, ROWS, BLOCK_K)
        p = product(k, tl.trans(q), PRECISION) * weights
        dw = product(d, tl.trans(k), PRECISION)
        if GATE == HEADS:
            dw = dw * after[None, :]
        u_t = load_transposed(dy, start, T, first, 0, 1, C.V, ROWS, BLOCK_V)
        dw = product(u_t, tl.trans(p), PRECISION, dw)
        matrix = tl.load(inverse_pointers(kept.inverses, head * chunks + chunk, ROWS))
        dv = solved_product(matrix, tl.trans(dw), ones, PRECISION, PARTS=2)
        low_dv = rounding_of(dv, PRECISION)
        store_substeps(rows_of_part(out.v, n, g, T, G, C.V), dv, start, T, first, 0, 1, C.V, ROWS, BLOCK_V)

        # Gradients of the scores, transposed. Those of the diagonal are in gradients of queries and of keys, and cancel
        # in that of the decays; for P the diagonal has the gradients of the rates.
        pointers, mask = written_pointers(kept.rows, head * chunks + chunk, first, C)
        w = tl.load(pointers, mask=mask, other=0.0)
        u = load_substeps(dy, start, T, first, 0, 1, C.V, ROWS, BLOCK_V)
        dp = product(w, tl.trans(u), PRECISION) * weights
        da = product(w, tl.trans(dv), PRECISION)
        if C.RATED:
            beta = not_zero(rates)
            dbeta = tl.sum(tl.where(i == j, da, 0.0), 1) / (beta * beta)
            store_numbers(rows_of_part(out.beta, n, part, T, parts, 1), dbeta, start, T, 0, 1, ROWS)
        da = da * tl.where(i == j, 0.0, -decay)
        low_da = rounding_of(da, PRECISION)

        pointers, mask = saved_pointers(kept.states + (head * chunks + chunk) * (C.K * C.V), first, C)
        state = tl.load(pointers, mask=mask, other=0.0)
        k = load_substeps(x.k, start, T, 0, 0, 1, C.K, ROWS, BLOCK_K)
        dq = product(u, state, PRECISION)
        dread = product(dv, state, PRECISION)
        if GATE == HEADS:
            dq = dq * (since * scale)[:, None]
            dread = dread * -since[:, None]
        else:
            dq = dq * scale
            dread = -dread
        dq = product(tl.trans(dp.to(q.dtype)), k, PRECISION, dq)
        store_substeps(rows_of_part(out.q, n, part, T, parts, C.K), dq, start, T, 0, 0, 1, C.K, ROWS, BLOCK_K)
        q = load_substeps(x.q, start, T, 0, 0, 1, C.K, ROWS, BLOCK_K)
        if GATE == HEADS:
            sums = dq * q.to(tl.float32)
        dread = product(tl.trans(da.to(q.dtype)), k, PRECISION, dread)
        if PRECISION == "bf16":
            dread = product(tl.trans(low_da), k, PRECISION, dread)
        dk = product(w, d, PRECISION)
        if GATE == HEADS:
            dk = dk * after[:, None]
            d = d * whole
            change = tl.sum(state.to(tl.float32) * d) + tl.sum(dk * k.to(tl.float32))
        dk = product(dp, q, PRECISION, dk)
        dk = product(da, k, PRECISION, dk)
        if PRECISION == "bf16":
            dk = product(low_da, k, PRECISION, dk)
        dk_view = rows_of_part(out.k, n, part, T, parts, C.K)
        store_substeps(dk_view, dk + dread, start, T, 0, 0, 1, C.K, ROWS, BLOCK_K)

        if GATE == HEADS:
            sums = tl.sum(sums + (dread - dk) * k.to(tl.float32), 1)
            dlog = sum_later(sums, True, GATE, PRECISION, ROWS) + change
            store_numbers(rows_of_part(out.log_decay, n, part, T, parts, 1), dlog, start, T, 0, 1, ROWS)
            queries = q.to(tl.float32) * (since * scale)[:, None]
            keys = k.to(tl.float32) * -since[:, None]
        else:
            queries = q.to(tl.float32) * scale
            keys = -k
        u_t = load_transposed(dy, start, T, first, 0, 1, C.V, ROWS, BLOCK_V)
        d = product(u_t, queries, PRECISION, d)
        d = product(tl.trans(dv.to(q.dtype)), keys, PRECISION, d)
        if PRECISION == "bf16":
            d = product(tl.trans(low_dv), keys, PRECISION, d)
    if C.INITIAL:
        store_edge(out.state, head, first, d, C)
