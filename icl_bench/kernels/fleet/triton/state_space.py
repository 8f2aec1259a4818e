"""State-space sums in Triton: a program walks the chunks of a head with its state, forward and backward.

Inside a chunk, with c the sums of the log decays and E_ij = exp(c_i - c_j) for j <= i,

    y_i = sum_j (q_i.k_j) E_ij d_j v_j + exp(c_i) S^T q_i + skip v_i
    S' = exp(c_C) S + sum_j exp(c_C - c_j) d_j k_j v_j^T

Backward, with D the gradient of S', g that of y, W_ij = (g_i.v_j) (q_i.k_j) E_ij and b_j = exp(c_C - c_j) k_j^T D v_j,

    dv_j = d_j (sum_i (q_i.k_j) E_ij g_i + exp(c_C - c_j) D^T k_j) + skip g_j,   dd_j = sum_i W_ij + b_j + rate dlog_j
    dlog_t = sum_(i >= t) (sum_j W_ij d_j + exp(c_i) q_i^T S g_i - d_i sum_l W_li) + sum_(j < t) d_j b_j + exp(c_C) S.D

where dlog is the gradient of the log decays: sums of rows and of columns come from the same numbers, so that their
rounding errors cancel as they do.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import softplus

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.triton.common import add_neighbours, add_parts, padded

CHUNK = 16
"""Tokens to a chunk: the rows of the smallest product, so that one warp holds all of a head."""
STAGES = 3
"""Stages of the pipeline of loads."""
NARROW = 1024
"""Largest state of a program of one warp; wider ones have two."""
LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)


class StateSpaceConstants(NamedTuple):
    """Constants that the kernels are compiled for, by their names there."""

    K: int
    V: int
    BLOCK_K: int
    BLOCK_V: int
    ROWS: int
    """Tokens to a chunk."""
    DOT: Any
    """Type of the operands of products."""
    PRECISION: str
    SAVE: bool
    """The states before chunks are kept."""


class ChunkSteps(NamedTuple):
    """Numbers of the tokens of a chunk, [ROWS]; log decays are in base 2."""

    steps: Any
    upto: Any
    """Sums of the log decays to a token, the token included."""
    total: Any
    """Sum of the log decays of the chunk, a scalar."""


@triton.jit
def load_chunk_rows(pointer, start, T, apart, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    """Load the rows of a chunk, `apart` elements apart, [ROWS, BLOCK]; zeros past T and WIDTH."""
    rows, columns = start + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    mask = (rows < T)[:, None] & (columns < WIDTH)[None, :]
    return tl.load(pointer + rows[:, None] * apart + columns[None, :], mask=mask, other=0.0)


@triton.jit
def store_chunk_rows(pointer, tile, start, T, apart, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    """Store a tile as `load_chunk_rows` loads it."""
    rows, columns = start + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    mask = (rows < T)[:, None] & (columns < WIDTH)[None, :]
    tl.store(pointer + rows[:, None] * apart + columns[None, :], tile.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def load_steps(steps, rate, start, T, apart, ROWS: tl.constexpr):
    """Load the step sizes of a chunk, zeros past T; `rate` is the log decay of a step of 1."""
    rows = start + tl.arange(0, ROWS)
    sizes = tl.load(steps + rows * apart, mask=rows < T, other=0.0)
    logs = sizes * (rate * LOG2E)
    return ChunkSteps(sizes, tl.cumsum(logs, 0), tl.sum(logs, 0))


@triton.jit
def softplus_slope(steps):
    """Return the derivative of softplus where it is `steps`, 1 - exp(-steps), by a series where that would cancel."""
    series = steps * (1.0 - steps * (0.5 - steps * (1.0 / 6.0)))
    return tl.where(steps < 0.01, series, 1.0 - tl.exp(-steps))


@triton.jit
def decays_of_pairs(upto, ROWS: tl.constexpr):
    """Return E_ij, zero above the diagonal; the mask comes before the exponential, which could overflow there."""
    i, j = tl.arange(0, ROWS)[:, None], tl.arange(0, ROWS)[None, :]
    return tl.exp2(tl.where(i >= j, upto[:, None] - upto[None, :], float("-inf")))


@triton.jit
def transposed_decays(upto, ROWS: tl.constexpr):
    """Return E_ij as [j, i]."""
    j, i = tl.arange(0, ROWS)[:, None], tl.arange(0, ROWS)[None, :]
    return tl.exp2(tl.where(i >= j, upto[None, :] - upto[:, None], float("-inf")))


@triton.jit
def state_space_kernel(q, k, v, steps, log_rate, skip, out, states, batch, T, heads, C: tl.constexpr):
    """Write y [N, T, heads, V], and where SAVE the states before chunks, [N, heads, chunks, K, V]. Grid N * heads."""
    K: tl.constexpr = C.K
    V: tl.constexpr = C.V
    BLOCK_K: tl.constexpr = C.BLOCK_K
    BLOCK_V: tl.constexpr = C.BLOCK_V
    ROWS: tl.constexpr = C.ROWS
    DOT: tl.constexpr = C.DOT
    PRECISION: tl.constexpr = C.PRECISION
    n, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    own = n // batch * heads + head
    rate = -tl.exp(tl.load(log_rate + own).to(tl.float32))
    direct = tl.load(skip + own).to(tl.float32)
    q, k, steps = q + n * T * K, k + n * T * K, steps + n * T * heads + head
    v, out = v + (n * T * heads + head) * V, out + (n * T * heads + head) * V
    chunks = tl.cdiv(T, ROWS)
    kept = states + (n * heads + head) * chunks * (K * V)
    i, j = tl.arange(0, BLOCK_K)[:, None], tl.arange(0, BLOCK_V)[None, :]
    inside, place = (i < K) & (j < V), i * V + j
    state = tl.zeros([BLOCK_K, BLOCK_V], tl.float32)
    for chunk in range(0, chunks):
        start = chunk * ROWS
        if C.SAVE:
            tl.store(kept + chunk * (K * V) + place, state.to(kept.dtype.element_ty), mask=inside)
        queries = load_chunk_rows(q, start, T, K, K, BLOCK_K, ROWS)
        keys = load_chunk_rows(k, start, T, K, K, BLOCK_K, ROWS)
        values = load_chunk_rows(v, start, T, heads * V, V, BLOCK_V, ROWS)
        c = load_steps(steps, rate, start, T, heads, ROWS)
        scores = tl.dot(queries.to(DOT), tl.trans(keys.to(DOT)), input_precision=PRECISION)
        scores = scores * decays_of_pairs(c.upto, ROWS) * c.steps[None, :]
        y = tl.dot(scores.to(DOT), values.to(DOT), input_precision=PRECISION)
        reading = (queries.to(tl.float32) * tl.exp2(c.upto)[:, None]).to(DOT)
        y = tl.dot(reading, state.to(DOT), y, input_precision=PRECISION)
        store_chunk_rows(out, y + direct * values.to(tl.float32), start, T, heads * V, V, BLOCK_V, ROWS)
        writing = (keys.to(tl.float32) * (tl.exp2(c.total - c.upto) * c.steps)[:, None]).to(DOT)
        state *= tl.exp2(c.total)
        state = tl.dot(tl.trans(writing), values.to(DOT), state, input_precision=PRECISION)


@triton.jit
def state_space_gradient_kernel(
    q, k, v, steps, log_rate, skip, states, gradient, dq, dk, dv, draw, sums, batch, T, heads,
    C: tl.constexpr,
):  # fmt: skip
    """Write dv and draw, parts of dq and dk [N, T, heads, K], and sums [N, 3, heads]. Grid N * heads."""
    K: tl.constexpr = C.K
    V: tl.constexpr = C.V
    BLOCK_K: tl.constexpr = C.BLOCK_K
    BLOCK_V: tl.constexpr = C.BLOCK_V
    ROWS: tl.constexpr = C.ROWS
    DOT: tl.constexpr = C.DOT
    PRECISION: tl.constexpr = C.PRECISION
    n, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    own = n // batch * heads + head
    rate = -tl.exp(tl.load(log_rate + own).to(tl.float32))
    direct = tl.load(skip + own).to(tl.float32)
    q, k, steps, draw = q + n * T * K, k + n * T * K, steps + n * T * heads + head, draw + n * T * heads + head
    dq, dk = dq + (n * T * heads + head) * K, dk + (n * T * heads + head) * K
    column = (n * T * heads + head) * V
    v, gradient, dv = v + column, gradient + column, dv + column
    chunks = tl.cdiv(T, ROWS)
    kept = states + (n * heads + head) * chunks * (K * V)
    i, j = tl.arange(0, BLOCK_K)[:, None], tl.arange(0, BLOCK_V)[None, :]
    inside, place = (i < K) & (j < V), i * V + j
    d = tl.zeros([BLOCK_K, BLOCK_V], tl.float32)
    dbias, drate, dskip = 0.0, 0.0, 0.0
    row, later = tl.arange(0, ROWS)[:, None], tl.arange(0, ROWS)[None, :]
    for back in range(0, chunks):
        start = (chunks - 1 - back) * ROWS
        queries = load_chunk_rows(q, start, T, K, K, BLOCK_K, ROWS)
        keys = load_chunk_rows(k, start, T, K, K, BLOCK_K, ROWS)
        values = load_chunk_rows(v, start, T, heads * V, V, BLOCK_V, ROWS).to(DOT)
        given = load_chunk_rows(gradient, start, T, heads * V, V, BLOCK_V, ROWS).to(DOT)
        c = load_steps(steps, rate, start, T, heads, ROWS)
        after, from_start = tl.exp2(c.total - c.upto), tl.exp2(c.upto)
        wide_q, wide_k = queries.to(tl.float32), keys.to(tl.float32)

        # As [j, i]: sums over i are those of keys and values.
        decays = transposed_decays(c.upto, ROWS)
        scores = tl.dot(keys.to(DOT), tl.trans(queries.to(DOT)), input_precision=PRECISION) * decays
        products = tl.dot(values, tl.trans(given), input_precision=PRECISION)
        weights = products * scores
        from_pairs = tl.sum(weights, 1)
        by_rows = tl.sum(weights * c.steps[:, None], 0)
        result = tl.dot(scores.to(DOT), given, input_precision=PRECISION)
        result = tl.dot((wide_k * after[:, None]).to(DOT), d.to(DOT), result, input_precision=PRECISION)
        result = result * c.steps[:, None] + direct * given.to(tl.float32)
        store_chunk_rows(dv, result, start, T, heads * V, V, BLOCK_V, ROWS)
        written = tl.dot(values, tl.trans(d).to(DOT), input_precision=PRECISION) * after[:, None]
        from_state = tl.sum(written * wide_k, 1)
        products = (products * decays * c.steps[:, None]).to(DOT)
        result = tl.dot(products, queries.to(DOT), written * c.steps[:, None], input_precision=PRECISION)
        store_chunk_rows(dk, result, start, T, heads * K, K, BLOCK_K, ROWS)

        given = load_chunk_rows(gradient, start, T, heads * V, V, BLOCK_V, ROWS).to(DOT)
        values = load_chunk_rows(v, start, T, heads * V, V, BLOCK_V, ROWS).to(DOT)
        state = tl.load(kept + (chunks - 1 - back) * (K * V) + place, mask=inside, other=0.0)
        products = tl.dot(given, tl.trans(values), input_precision=PRECISION)
        products = (products * decays_of_pairs(c.upto, ROWS) * c.steps[None, :]).to(DOT)
        read = tl.dot(given, tl.trans(state.to(DOT)), input_precision=PRECISION) * from_start[:, None]
        upto = tl.sum(read * wide_q, 1) + by_rows - c.steps * from_pairs
        result = tl.dot(products, keys.to(DOT), read, input_precision=PRECISION)
        store_chunk_rows(dq, result, start, T, heads * K, K, BLOCK_K, ROWS)

        held = tl.sum(tl.sum(state.to(tl.float32) * d, 1), 0) * tl.exp2(c.total)
        dlog = tl.sum(tl.where(later >= row, upto[None, :], 0.0), 1) + held
        dlog += tl.sum(tl.where(later < row, (c.steps * from_state)[None, :], 0.0), 1)
        dstep = (from_pairs + from_state + rate * dlog) * softplus_slope(c.steps)
        tokens = start + tl.arange(0, ROWS)
        tl.store(draw + tokens * heads, dstep.to(draw.dtype.element_ty), mask=tokens < T)
        dbias += tl.sum(dstep, 0)
        drate += tl.sum(c.steps * dlog, 0)
        dskip += tl.sum(tl.sum(given.to(tl.float32) * values.to(tl.float32), 1), 0)

        reading = (wide_q * from_start[:, None]).to(DOT)
        d = tl.dot(tl.trans(reading), given, d * tl.exp2(c.total), input_precision=PRECISION)
    tl.store(sums + n * 3 * heads + head, dbias)
    tl.store(sums + (n * 3 + 1) * heads + head, drate * rate)
    tl.store(sums + (n * 3 + 2) * heads + head, dskip)


class FusedStateSpace(torch.autograd.Function):
    """`state_space` in one launch each way, and three that add up heads and sequences."""

    @staticmethod
    def forward(ctx: Any, save: bool, *tensors: Tensor) -> Tensor:
        q, k, v, raw, step_bias, *numbers = (x.contiguous() for x in tensors)
        members, batch, time, heads, width = v.shape
        # Once for all: in the kernels every layout of the tokens of a chunk would have a softplus of its own.
        steps = softplus(raw.float() + step_bias[:, None, None]).contiguous()
        out, options = torch.empty_like(v), launch_options(q, v, save)
        kept = (members * batch, heads, -(-time // CHUNK), q.shape[-1], width) if save else (0,)
        states = v.new_empty(kept, dtype=v.dtype if v.dtype == torch.bfloat16 else torch.float32)
        with launch_on(v):
            state_space_kernel[(members * batch * heads,)](
                q, k, v, steps, *numbers, out, states, batch, time, heads, **options
            )
        ctx.save_for_backward(q, k, v, raw, steps, step_bias, *numbers, states)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, raw, steps, step_bias, *numbers, states = ctx.saved_tensors
        members, batch, time, heads, _ = v.shape
        parts = [q.new_empty(*v.shape[:-1], q.shape[-1], dtype=torch.float32) for _ in range(2)]
        dv, draw = torch.empty_like(v), torch.empty_like(raw)
        sums = v.new_empty(members, batch, 3, heads, dtype=torch.float32)
        with launch_on(v):
            state_space_gradient_kernel[(members * batch * heads,)](
                q, k, v, steps, *numbers, states, gradient.contiguous(), *parts, dv, draw, sums, batch, time, heads,
                **launch_options(q, v, True),
            )  # fmt: skip
        dq, dk = (add_neighbours(part, q.unsqueeze(3), axis=3).squeeze(3) for part in parts)
        total = add_parts(sums, torch.float32).unbind(1)
        shared = (step_bias, *numbers)
        return None, dq, dk, dv, draw, *(part.to(x.dtype) for part, x in zip(total, shared, strict=True))


def launch_options(q: Tensor, v: Tensor, save: bool) -> dict[str, Any]:
    """Return the constants and the launch options of both kernels: products of bfloat16, else of float32."""
    key, value = q.shape[-1], v.shape[-1]
    block_k, block_v = padded(key, 16), padded(value, 16)
    constants = StateSpaceConstants(
        K=key,
        V=value,
        BLOCK_K=block_k,
        BLOCK_V=block_v,
        ROWS=CHUNK,
        DOT=tl.bfloat16 if v.dtype == torch.bfloat16 else tl.float32,
        # One product of float32 by three of tf32 keeps the digits of float32; bfloat16 has no use for it.
        PRECISION="tf32x3",
        SAVE=save,
    )
    warps = 1 if block_k * block_v <= NARROW else 2
    return {"C": constants, "num_warps": warps, "num_stages": STAGES, "enable_fp_fusion": True}
