"""Triton backward pass of the delta rules of `channels`, whose equations are there."""

import triton
import triton.language as tl

from icl_bench.kernels.delta.triton.backward import rows_of_part
from icl_bench.kernels.delta.triton.channels import as_operand, load_decays, load_keys, load_operands
from icl_bench.kernels.delta.triton.forward import SIZES, head_views
from icl_bench.kernels.delta.triton.tied import load_rates, rounding_of, solved_product
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


@triton.jit
def backward_chunk(
    x, dy, kept, out, offered, d, rates, chunk, chunks, n, g, G, head, first, T, q_apart, v_apart, scale, least,
    OFFERED: tl.constexpr, SLOPED: tl.constexpr, QUERIED: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Return the gradient of the state before a chunk; write those of its inputs. Outputs have one where QUERIED."""
    PRECISION: tl.constexpr = C.PRECISION
    ROWS: tl.constexpr = C.ROWS
    BLOCK_K: tl.constexpr = C.BLOCK_K
    BLOCK_V: tl.constexpr = C.BLOCK_V
    BLOCKS: tl.constexpr = (C.V + C.BLOCK_V - 1) // C.BLOCK_V
    part = g * BLOCKS + first // BLOCK_V
    parts = G * BLOCKS
    dk_view = rows_of_part(out.k, n, part, T, parts, C.K)
    dq_view = View(out.q + n * T * q_apart + part * C.K, 0, q_apart, 0)
    dv_view = View(out.v + n * T * v_apart + g * C.V, 0, v_apart, 0)
    i = tl.arange(0, ROWS)[:, None]
    j = tl.arange(0, ROWS)[None, :]
    ones = ones_of_pairs(x.q, ROWS)
    start = chunk * ROWS
    logs, upto, whole = load_decays(x.log_decay, start, T, C)
    d = d * whole
    since = tl.exp2(upto) * scale
    before = tl.exp2(upto if C.TIED else upto - logs)
    until = tl.exp2(-upto)
    erase, read = load_operands(x, start, T, rates, upto, until, logs, C)
    if QUERIED:
        q = as_operand(load_keys(x.q, start, T, C) * since, PRECISION)
        u = load_substeps(dy, start, T, first, 0, 1, C.V, ROWS, BLOCK_V)
        u_t = load_transposed(dy, start, T, first, 0, 1, C.V, ROWS, BLOCK_V)
    v = load_substeps(x.v, start, T, first, 0, 1, C.V, ROWS, BLOCK_V)

    # Gradients of what is erased and of the values.
    dr_t = product(d, tl.trans(erase), PRECISION)
    if QUERIED:
        p = tl.where(j >= i, product(erase, tl.trans(q), PRECISION), 0.0)
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
        if QUERIED:
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
    if QUERIED:
        dp_qb = as_operand(tl.where(j >= i, product(r, tl.trans(u), PRECISION), 0.0), PRECISION)
    dp_ab = as_operand(tl.where(j > i, product(r, tl.trans(z), PRECISION), 0.0), PRECISION)
    dread = product(z, state, PRECISION)
    dread = product(tl.trans(dp_ab), erase, PRECISION, dread)
    if not C.TIED:
        if QUERIED:
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
    sums = dread
    if QUERIED:
        dq = product(u, state, PRECISION)
        dq = product(tl.trans(dp_qb), erase, PRECISION, dq)
        if not C.TIED:
            dq = product(tl.trans(dp_qk), k, PRECISION, dq)
        dq = dq * since
        sums += dq * load_keys(x.q, start, T, C)
    else:
        dq = tl.zeros([ROWS, BLOCK_K], tl.float32)
    store_substeps(dq_view, dq, start, T, 0, 0, 1, C.K, ROWS, BLOCK_K)
    ended = tl.sum(tl.reshape(state.to(tl.float32) * d, [BLOCK_V // ROWS, ROWS, BLOCK_K]), 0)

    if not C.TIED:
        dk = product(v, d, PRECISION)
        scaled = load_keys(x.k, start, T, C) * until
        ended += dk * scaled
        if QUERIED:
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
    if QUERIED:
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
    if QUERIED:
        d = product(u_t, q, PRECISION, d)
    d = product(tl.trans(z), read, PRECISION, d)
    if C.TIED:
        if PRECISION == "bf16":
            d = product(tl.trans(low_z), read, PRECISION, d)
        d = d * whole
    return d


@triton.jit(do_not_specialize=SIZES)
def channel_backward_kernel(
    x, dy, dlast, kept, out, offered, queried, T, H, G, q_apart, v_apart, scale, least, LAST: tl.constexpr,
    OFFERED: tl.constexpr, SLOPED: tl.constexpr, EARLY: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Write the gradients of all inputs; LAST says that the last state has one. The grid is that of the forward pass.

    Of q, k, read, erase, beta and log_decay a program writes its own part, [N, T, G * blocks, ...]. Tokens of the
    gradients of q and v are `q_apart` and `v_apart` elements apart. Where OFFERED that of v includes the gradient of
    its other uses. Where SLOPED that of the log decays is of z, of which they are `least` sigmoid(z). Where EARLY, dy
    and what is offered are read from the chunk of each sequence on that `queried` has.
    """
    BLOCKS: tl.constexpr = (C.V + C.BLOCK_V - 1) // C.BLOCK_V
    first = (tl.program_id(0) % BLOCKS) * C.BLOCK_V
    head = (tl.program_id(0) // BLOCKS).to(tl.int64)
    n = head // G
    g = head % G
    x = head_views(x, n, g, g // (G // H))
    dy = View(dy.ptr + n * dy.n + g * dy.h, dy.n, dy.t, dy.h)
    chunks = tl.cdiv(T, C.ROWS)
    begin = 0
    if EARLY:
        begin = tl.load(queried + n)

    d = load_edge(dlast, head, first, LAST, C)
    next_rates = load_rates(x.beta, (chunks - 1) * C.ROWS, T, C)
    for step in range(0, chunks - begin):
        chunk = chunks - 1 - step
        rates = next_rates
        next_rates = load_rates(x.beta, tl.maximum(chunk - 1, 0) * C.ROWS, T, C)
        d = backward_chunk(
            x, dy, kept, out, offered, d, rates, chunk, chunks, n, g, G, head, first, T, q_apart, v_apart, scale, least,
            OFFERED, SLOPED, True, C,
        )  # fmt: skip
    if EARLY:
        for step in range(0, begin):
            chunk = begin - 1 - step
            rates = load_rates(x.beta, chunk * C.ROWS, T, C)
            d = backward_chunk(
                x, dy, kept, out, offered, d, rates, chunk, chunks, n, g, G, head, first, T, q_apart, v_apart, scale,
                least, False, SLOPED, False, C,
            )  # fmt: skip
    if C.INITIAL:
        store_edge(out.state, head, first, d, C)
