"""Attention of chosen queries in Triton: one program for each head of a sequence reads keys and values once each way.

Backward, a program holds all chosen queries of its head, so that it has the whole gradient of each tile of keys and
values at once, and at the end that of the queries, which a one-hot product spreads over the sequence. Scores are made
twice, as Q K^T and as K Q^T: transposing a tile that comes from a product is miscompiled on Hopper.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from icl_bench.errors import KernelUnavailableError
from icl_bench.kernels.attention.triton.tiles import NO_SCORE, contiguous_head, load_rows, store_rows, visible
from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.columns import gradient_memory
from icl_bench.kernels.fleet.records import MOST_CHOSEN, WIDEST_HEAD, ScoreRule
from icl_bench.kernels.power.triton.tiles import power
from icl_bench.kernels.triton.common import at_head, padded, view_of

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
MANY_PROGRAMS = 1024
"""Programs from which on a device is full with four warps in each."""
CHOSEN_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class ChosenTile(NamedTuple):
    """Keys of a tile, warps, pipeline depth, and registers of a thread, None to leave them to the compiler."""

    keys: int
    warps: int
    stages: int
    registers: int | None = None


class ChosenConstants(NamedTuple):
    """Constants that a kernel is compiled for, by their names there."""

    K: int
    V: int
    BLOCK_K: int
    BLOCK_V: int
    BLOCK_S: int
    BLOCK_N: int
    P: int
    """Power of the scores; 0 for softmax."""
    SERIES: bool
    """Add the lower powers, as the Taylor series of the exponential does."""
    SUM: bool
    """Divide powers by their sum."""
    WINDOWED: bool
    WHOLE: bool
    """Have whole tiles of keys alone."""


@triton.jit
def _load_queries(view, position, WIDTH: tl.constexpr, COLUMNS: tl.constexpr):
    """Load the rows of a head at positions, zeros where they are negative: [BLOCK_S, COLUMNS]."""
    columns = tl.arange(0, COLUMNS)
    mask = (position >= 0)[:, None] & (columns < WIDTH)[None, :]
    return tl.load(view.ptr + (position[:, None] * view.t + columns[None, :]), mask=mask, other=0.0)


@triton.jit
def _powers(scores, C: tl.constexpr):
    """Return the weights of scores that are multiplied by their scale."""
    return 1.0 + scores * (1.0 + 0.5 * scores) if C.SERIES else power(scores, C.P)


@triton.jit
def _weights(scores, own, seen, scale, C: tl.constexpr):
    """Return the normalised weights of scores, and their slopes by scores without their factor, scale or p scale.

    `own` is the log-sum-exp of a query in base 2, or for powers the factor on its weights.
    """
    if C.P == 0:
        weights = tl.exp2(tl.where(seen, scores * (scale * LOG2E) - own, float("-inf")))
        slopes = weights
    elif C.SERIES:
        scores *= scale
        slopes = tl.where(seen, (1.0 + scores) * own, 0.0)
        weights = tl.where(seen, _powers(scores, C) * own, 0.0)
    else:
        scores *= scale
        slopes = tl.where(seen, power(scores, C.P - 1) * own, 0.0)
        weights = slopes * scores
    return weights, slopes


@triton.jit(do_not_specialize=["T", "S", "H", "window"])
def chosen_queries_kernel(q, k, v, positions, y, exact, stats, T, S, H, window, scale, eps, C: tl.constexpr):
    """Write y [N, S, H, V], in float32 too where SUM, and `own` of `_weights`, [N, H, S]. Grid (N H,)."""
    BLOCK_S: tl.constexpr = C.BLOCK_S
    BLOCK_N: tl.constexpr = C.BLOCK_N
    BLOCK_V: tl.constexpr = C.BLOCK_V
    head = tl.program_id(0).to(tl.int64)
    n, h = head // H, head % H
    rows = tl.arange(0, BLOCK_S)
    position = tl.load(positions + n * S + rows, mask=rows < S, other=-1).to(tl.int32)
    queries = _load_queries(at_head(q, n, h), position, C.K, C.BLOCK_K)
    k, v = at_head(k, n, h), at_head(v, n, h)
    acc = tl.zeros([BLOCK_S, BLOCK_V], tl.float32)
    total = tl.zeros([BLOCK_S], tl.float32)
    top = tl.full([BLOCK_S], NO_SCORE, tl.float32)
    for start in range(0, T, BLOCK_N):
        keys = load_rows(k, start, T, C.K, BLOCK_N, C.BLOCK_K, C.WHOLE)
        values = load_rows(v, start, T, C.V, BLOCK_N, C.BLOCK_V, C.WHOLE)
        scores = tl.dot(queries, tl.trans(keys), input_precision="ieee")
        seen = visible(position[:, None], start + tl.arange(0, BLOCK_N)[None, :], window, C.WINDOWED)
        if C.P == 0:
            scores = tl.where(seen, scores * (scale * LOG2E), float("-inf"))
            above = tl.maximum(top, tl.max(scores, 1))
            weights = tl.exp2(scores - above[:, None])
            shrink = tl.exp2(top - above)
            total = total * shrink + tl.sum(weights, 1)
            acc *= shrink[:, None]
            top = above
        else:
            # The sum is that of the rounded weights: a row with few keys is then an exact mean of them.
            weights = tl.where(seen, _powers(scores * scale, C), 0.0).to(keys.dtype).to(tl.float32)
            total += tl.sum(weights, 1)
        acc = tl.dot(weights.to(keys.dtype), values, acc, input_precision="ieee")
    own = total
    if C.P == 0:
        total = tl.where(total == 0.0, 1.0, total)
        acc /= total[:, None]
        own = top + tl.log2(total)
    elif C.SUM:
        own = 1.0 / (total + eps)
        acc *= own[:, None]
    store_rows(contiguous_head(y, n, h, S, H, C.V), acc, 0, S, C.V, BLOCK_S, C.BLOCK_V)
    if C.SUM:
        store_rows(contiguous_head(exact, n, h, S, H, C.V), acc, 0, S, C.V, BLOCK_S, C.BLOCK_V)
    tl.store(stats + head * S + rows, own, mask=rows < S)


@triton.jit(do_not_specialize=["T", "S", "H", "window"])
def chosen_queries_gradient_kernel(
    q, k, v, positions, y, stats, dy, dq, dk, dv, T, S, H, window, scale, C: tl.constexpr
):
    """Write the gradients of q and k [N, T, H, K] and of v [N, T, H, V]. Grid (N H,)."""
    BLOCK_S: tl.constexpr = C.BLOCK_S
    BLOCK_N: tl.constexpr = C.BLOCK_N
    BLOCK_K: tl.constexpr = C.BLOCK_K
    head = tl.program_id(0).to(tl.int64)
    n, h = head // H, head % H
    rows = tl.arange(0, BLOCK_S)
    position = tl.load(positions + n * S + rows, mask=rows < S, other=-1).to(tl.int32)
    queries = _load_queries(at_head(q, n, h), position, C.K, C.BLOCK_K)
    upstream = load_rows(contiguous_head(dy, n, h, S, H, C.V), 0, S, C.V, BLOCK_S, C.BLOCK_V, False)
    k, v, dq, dk, dv = at_head(k, n, h), at_head(v, n, h), at_head(dq, n, h), at_head(dk, n, h), at_head(dv, n, h)
    own = tl.full([BLOCK_S], 1.0, tl.float32)
    delta = tl.zeros([BLOCK_S], tl.float32)
    if (C.P == 0) | C.SUM:
        own = tl.load(stats + head * S + rows, mask=rows < S, other=0.0)
        outputs = load_rows(contiguous_head(y, n, h, S, H, C.V), 0, S, C.V, BLOCK_S, C.BLOCK_V, False)
        delta = tl.sum(outputs.to(tl.float32) * upstream.to(tl.float32), 1)
    factor = scale if (C.P == 0) | C.SERIES else scale * C.P
    total = tl.zeros([BLOCK_S, BLOCK_K], tl.float32)
    for start in range(0, T, BLOCK_N):
        keys = load_rows(k, start, T, C.K, BLOCK_N, C.BLOCK_K, C.WHOLE)
        values = load_rows(v, start, T, C.V, BLOCK_N, C.BLOCK_V, C.WHOLE)
        places = start + tl.arange(0, BLOCK_N)
        scores = tl.dot(keys, tl.trans(queries), input_precision="ieee")
        seen = visible(position[None, :], places[:, None], window, C.WINDOWED)
        weights, slopes = _weights(scores, own[None, :], seen, scale, C)
        of_values = tl.dot(weights.to(keys.dtype), upstream, input_precision="ieee")
        store_rows(dv, of_values, start, T, C.V, BLOCK_N, C.BLOCK_V)
        slopes *= tl.dot(values, tl.trans(upstream), input_precision="ieee") - delta[None, :]
        of_keys = tl.dot(slopes.to(keys.dtype), queries, input_precision="ieee")
        store_rows(dk, of_keys * factor, start, T, C.K, BLOCK_N, C.BLOCK_K)

        scores = tl.dot(queries, tl.trans(keys), input_precision="ieee")
        seen = visible(position[:, None], places[None, :], window, C.WINDOWED)
        _, slopes = _weights(scores, own[:, None], seen, scale, C)
        slopes *= tl.dot(upstream, tl.trans(values), input_precision="ieee") - delta[:, None]
        total = tl.dot(slopes.to(keys.dtype), keys, total, input_precision="ieee")
    spread = (total * factor).to(queries.dtype)
    for start in range(0, T, BLOCK_N):
        places = start + tl.arange(0, BLOCK_N)
        chosen = (places[:, None] == position[None, :]).to(queries.dtype)
        store_rows(dq, tl.dot(chosen, spread, input_precision="ieee"), start, T, C.K, BLOCK_N, C.BLOCK_K)


def attend_at_triton(q: Tensor, k: Tensor, v: Tensor, positions: Tensor, rule: ScoreRule) -> Tensor:
    """Run `attend_at`; raise KernelUnavailableError for types, widths and numbers that the kernels do not take."""
    if q.dtype not in CHOSEN_DTYPES or not q.dtype == k.dtype == v.dtype:
        raise KernelUnavailableError(
            "impl='triton' needs q, k and v of one type, float32, bfloat16 or float16; "
            f"got {q.dtype}, {k.dtype}, {v.dtype}: cast them, or use impl='torch'"
        )
    if positions.shape[1] > MOST_CHOSEN or max(q.shape[-1], v.shape[-1]) > WIDEST_HEAD:
        raise KernelUnavailableError(
            f"impl='triton' takes {MOST_CHOSEN} positions and widths of {WIDEST_HEAD}; got {positions.shape[1]}, "
            f"K={q.shape[-1]}, V={v.shape[-1]}: use impl='torch'"
        )
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    y: Tensor = FusedChosenQueries.apply(q, k, v, positions.contiguous(), rule)
    return y


class FusedChosenQueries(torch.autograd.Function):
    """`attend_at` in one launch each way; gradients of heads that lie side by side do so too."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, positions: Tensor, rule: ScoreRule) -> Tensor:
        (n, _, heads, _), chosen = q.shape, positions.shape[1]
        y = v.new_empty(n, chosen, heads, v.shape[-1])
        # Where a row has few keys, the gradient of a power is a difference that a rounded output would lose.
        exact = torch.empty_like(y, dtype=torch.float32) if rule.p and rule.normalized else y
        stats = torch.empty(n, heads, chosen, device=q.device, dtype=torch.float32)
        with launch_on(q):
            chosen_queries_kernel[(n * heads,)](
                view_of(q), view_of(k), view_of(v), positions, y, exact, stats, *numbers(q, positions, rule), rule.eps,
                **options(q, v, positions, rule, gradient=False),
            )  # fmt: skip
        ctx.save_for_backward(q, k, v, positions, exact, stats)
        ctx.rule = rule
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, positions, y, stats = ctx.saved_tensors
        gradients = gradient_memory([q, k, v])
        with launch_on(q):
            chosen_queries_gradient_kernel[(q.shape[0] * q.shape[2],)](
                view_of(q), view_of(k), view_of(v), positions, y, stats, dy.contiguous(), *map(view_of, gradients),
                *numbers(q, positions, ctx.rule), **options(q, v, positions, ctx.rule, gradient=True),
            )  # fmt: skip
        return *gradients, None, None


def numbers(q: Tensor, positions: Tensor, rule: ScoreRule) -> tuple[float, ...]:
    """Return T, S, H, the window and the scale."""
    window = q.shape[1] if rule.window is None else rule.window
    return q.shape[1], positions.shape[1], q.shape[2], window, rule.scale


def options(q: Tensor, v: Tensor, positions: Tensor, rule: ScoreRule, gradient: bool) -> dict[str, Any]:
    """Return the constants and the launch options of a kernel."""
    (_, time, _, key), value = q.shape, v.shape[-1]
    few = q.shape[0] * q.shape[2] < MANY_PROGRAMS
    tile = chosen_tile(positions.shape[1], max(key, value), gradient, few)
    constants = ChosenConstants(
        K=key,
        V=value,
        BLOCK_K=padded(key, 16),
        BLOCK_V=padded(value, 16),
        BLOCK_S=padded(positions.shape[1], 16),
        BLOCK_N=tile.keys,
        P=rule.p or 0,
        SERIES=rule.series,
        SUM=rule.p is not None and rule.normalized,
        WINDOWED=rule.window is not None and rule.window < time,
        WHOLE=time % tile.keys == 0,
    )
    return {"C": constants, "num_warps": tile.warps, "num_stages": tile.stages, "maxnreg": tile.registers}


def chosen_tile(chosen: int, width: int, gradient: bool, few: bool) -> ChosenTile:
    """Return the tile for a number of positions and the wider of keys and values, chosen by time on an H200.

    `few` programs leave multiprocessors idle: smaller ones share them.
    """
    if few and chosen <= 16:
        return ChosenTile(32 if gradient else 64, 2, 2)
    if gradient:
        return ChosenTile(64, 4, 2, None if width > 64 else 168)
    return ChosenTile(64, 4, 2) if chosen <= 16 else ChosenTile(32, 4, 3, 128)
