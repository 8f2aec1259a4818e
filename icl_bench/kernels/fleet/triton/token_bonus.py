"""Norm of heads and bonus of the current token in Triton: one launch each way, and three that add up gradients.

A program has all heads of some tokens, a row each: tokens are read as they lie in memory.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.fleet.triton.rows import find_repeats
from icl_bench.kernels.triton.common import (
    ROW_TILE,
    add_parts,
    add_parts_of,
    padded,
    spaced_rows,
    split_rows,
    tile_shape,
)


class HeadRows(NamedTuple):
    """Rows of a program of the kernels, those of `heads` heads of each token, padded to a power of two."""

    rows: int
    heads: int

    @property
    def tokens(self) -> int:
        """Tokens of a program."""
        return self.rows // self.heads

    def halved(self) -> "HeadRows":
        """Return half as many rows, and no fewer than those of one token."""
        return self._replace(rows=max(self.rows // 2, self.heads))

    def loop_options(self, width: int, stages: int) -> dict[str, int]:
        """Return warps and stages of a loop over tiles of these rows: large tiles are not fetched ahead."""
        if self.rows * padded(width) > ROW_TILE:
            return {"STAGES": 1, "num_warps": 8}
        return {"STAGES": stages, "num_warps": 4}


GRADIENT_STAGES = 3
"""Of the gradient of a given bonus, by launches on an H200."""


def head_rows(heads: int, width: int) -> HeadRows:
    """Return the rows for tiles of `width` columns."""
    return HeadRows(max(tile_shape(width)[0], padded(heads)), padded(heads))


@triton.jit
def place_heads(start, count, heads, HEADS: tl.constexpr, BLOCK_R: tl.constexpr):
    """Return tokens from `start` on and heads of the rows of a program, and which of them exist."""
    index = tl.arange(0, BLOCK_R)
    token, head = start + index // HEADS, index % HEADS
    return token, head, (token < count) & (head < heads)


@triton.jit
def load_heads(x, tokens, head, apart, width, inside, BLOCK: tl.constexpr):
    """Load rows, [R, BLOCK] in float32; tokens are `apart` elements apart."""
    columns = tl.arange(0, BLOCK)
    places = (tokens * apart + head * width)[:, None] + columns[None, :]
    return tl.load(x + places, mask=inside[:, None] & (columns < width)[None, :], other=0.0).to(tl.float32)


@triton.jit
def store_heads(x, value, tokens, head, apart, width, inside, BLOCK: tl.constexpr):
    """Store rows as `load_heads` loads them."""
    columns = tl.arange(0, BLOCK)
    places = (tokens * apart + head * width)[:, None] + columns[None, :]
    tl.store(x + places, value.to(x.dtype.element_ty), mask=inside[:, None] & (columns < width)[None, :])


@triton.jit
def store_sums(partial, total, member, heads, width, HEADS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK: tl.constexpr):
    """Store the sums of a program by row, [M, programs x tokens, H, BLOCK]."""
    token, head, inside = place_heads(0, BLOCK_R, heads, HEADS, BLOCK_R)
    first = (member.to(tl.int64) * tl.num_programs(0) + tl.program_id(0)) * (BLOCK_R // HEADS)
    store_heads(partial, total, first + token, head, heads * width, width, inside, BLOCK)


@triton.jit
def standardise(y, inside, width, eps, BLOCK: tl.constexpr):
    """Return (y - mean) / sqrt(variance + eps) by row, zeros beyond the width, and the divisor's inverse."""
    valid = inside[:, None] & (tl.arange(0, BLOCK) < width)[None, :]
    centred = tl.where(valid, y - (tl.sum(y, 1) / width)[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, 1) / width + eps)[:, None]
    return centred * scale, scale


@triton.jit
def through_norm(gradient, unit, scale, width):
    """Return the gradient of y by row from that of `standardise`, whose results are unit and scale."""
    mean, along = tl.sum(gradient, 1) / width, tl.sum(gradient * unit, 1) / width
    return (gradient - mean[:, None] - unit * along[:, None]) * scale


@triton.jit
def token_bonus_kernel(
    q, k, v, bonus, y, gain, shift, out, weights, gate, positions, count, time, taken, heads, key_width, value_width,
    q_apart, k_apart, v_apart, eps, GIVEN: tl.constexpr, GATED: tl.constexpr, TAKEN: tl.constexpr, HEADS: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Write norm(y) gain + shift + v sum(q k bonus); where GIVEN these sums are weights. Grid (tokens, M).

    Where GATED, it is multiplied by a gate. Where TAKEN, the tokens are those at positions, `taken` of each sequence of
    `time`.
    """
    member = tl.program_id(1)
    start = tl.program_id(0) * (BLOCK_R // HEADS)
    token, head, inside = place_heads(start, count, heads, HEADS, BLOCK_R)
    tokens, apart = member.to(tl.int64) * count + token, heads * value_width
    results = tokens
    if TAKEN:
        tokens = tokens // taken * time + tl.load(positions + tokens, mask=inside, other=0)
    if GIVEN:
        weight = tl.load(weights + tokens * heads + head, mask=inside, other=0.0)
    else:
        strength = load_heads(bonus, member, head, heads * key_width, key_width, inside, BLOCK_K)
        query = load_heads(q, tokens, head, q_apart, key_width, inside, BLOCK_K)
        key = load_heads(k, tokens, head, k_apart, key_width, inside, BLOCK_K)
        weight = tl.sum(query * key * strength, 1)
    value = load_heads(v, tokens, head, v_apart, value_width, inside, BLOCK_V)
    read, _ = standardise(
        load_heads(y, tokens, head, apart, value_width, inside, BLOCK_V), inside, value_width, eps, BLOCK_V
    )
    read *= load_heads(gain, member, head, apart, value_width, inside, BLOCK_V)
    read += load_heads(shift, member, head, apart, value_width, inside, BLOCK_V)
    read += weight[:, None] * value
    if GATED:
        read *= load_heads(gate, results, head, apart, value_width, inside, BLOCK_V)
    store_heads(out, read, results, head, apart, value_width, inside, BLOCK_V)


@triton.jit
def token_bonus_gradient_kernel(
    q, k, v, bonus, y, gain, gradient, dq, dk, dv, dy, partial_bonus, partial_gain, partial_shift, count, heads,
    key_width, value_width, q_apart, k_apart, v_apart, eps, each, HEADS: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Write dq, dk, dv and dy of `each` tokens, and their part of the gradients of bonus, gain and shift.

    Grid (parts, M).
    """
    part, member = tl.program_id(0), tl.program_id(1)
    apart, keys = heads * value_width, heads * key_width
    _, head, inside = place_heads(0, count, heads, HEADS, BLOCK_R)
    strength = load_heads(bonus, member, head, keys, key_width, inside, BLOCK_K)
    scaling = load_heads(gain, member, head, apart, value_width, inside, BLOCK_V)
    total_bonus = tl.zeros([BLOCK_R, BLOCK_K], tl.float32)
    total_gain = tl.zeros([BLOCK_R, BLOCK_V], tl.float32)
    total_shift = total_gain
    for start in range(part * each, tl.minimum((part + 1) * each, count), BLOCK_R // HEADS):
        token, head, inside = place_heads(start, count, heads, HEADS, BLOCK_R)
        tokens = member.to(tl.int64) * count + token
        query = load_heads(q, tokens, head, q_apart, key_width, inside, BLOCK_K)
        key = load_heads(k, tokens, head, k_apart, key_width, inside, BLOCK_K)
        value = load_heads(v, tokens, head, v_apart, value_width, inside, BLOCK_V)
        read = load_heads(y, tokens, head, apart, value_width, inside, BLOCK_V)
        upstream = load_heads(gradient, tokens, head, apart, value_width, inside, BLOCK_V)
        unit, scale = standardise(read, inside, value_width, eps, BLOCK_V)
        product = query * key
        weight, slope = tl.sum(product * strength, 1)[:, None], tl.sum(upstream * value, 1)[:, None]
        total_bonus += product * slope
        total_gain += upstream * unit
        total_shift += upstream
        slope = slope * strength
        store_heads(dq, slope * key, tokens, head, keys, key_width, inside, BLOCK_K)
        store_heads(dk, slope * query, tokens, head, keys, key_width, inside, BLOCK_K)
        store_heads(dv, weight * upstream, tokens, head, apart, value_width, inside, BLOCK_V)
        inner = through_norm(upstream * scaling, unit, scale, value_width)
        store_heads(dy, inner, tokens, head, apart, value_width, inside, BLOCK_V)
    store_sums(partial_bonus, total_bonus, member, heads, key_width, HEADS, BLOCK_R, BLOCK_K)
    store_sums(partial_gain, total_gain, member, heads, value_width, HEADS, BLOCK_R, BLOCK_V)
    store_sums(partial_shift, total_shift, member, heads, value_width, HEADS, BLOCK_R, BLOCK_V)


@triton.jit
def weighted_bonus_gradient_kernel(
    v, y, weights, gain, shift, gate, gradient, offered, dv, dy, dgate, slopes, partial_gain, partial_shift, positions,
    repeats, count, time, taken, heads, width, v_apart, eps, each, OFFERED: tl.constexpr, GATED: tl.constexpr,
    TAKEN: tl.constexpr, HEADS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_V: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Write dv, dy and the gradients of the weights of `each` tokens, and their part of those of gain and shift.

    Where OFFERED that of v includes the gradient of its other uses. Where GATED, also write the gradient of the gate.
    Where TAKEN, the tokens are those at positions; a token that has several rows gets its gradients by the first of
    them. Grid (parts, M).
    """
    part, member = tl.program_id(0), tl.program_id(1)
    apart = heads * width
    _, head, inside = place_heads(0, count, heads, HEADS, BLOCK_R)
    scaling = load_heads(gain, member, head, apart, width, inside, BLOCK_V)
    total_gain = tl.zeros([BLOCK_R, BLOCK_V], tl.float32)
    total_shift = total_gain
    step: tl.constexpr = BLOCK_R // HEADS
    for start in tl.range(part * each, tl.minimum((part + 1) * each, count), step, num_stages=STAGES):
        token, head, inside = place_heads(start, count, heads, HEADS, BLOCK_R)
        tokens = member.to(tl.int64) * count + token
        upstream = load_heads(gradient, tokens, head, apart, width, inside, BLOCK_V)
        if TAKEN:
            sequences, row = tokens // taken, tl.load(repeats.nexts + tokens, mask=inside, other=-1)
            inside = inside & (tl.load(repeats.leads + tokens, mask=inside, other=0) > 0)
            while tl.max(row, 0) >= 0:
                again = sequences * taken + row
                upstream += load_heads(gradient, again, head, apart, width, row >= 0, BLOCK_V)
                row = tl.load(repeats.nexts + again, mask=row >= 0, other=-1)
            tokens = sequences * time + tl.load(positions + tokens, mask=inside, other=0)
            upstream = tl.where(inside[:, None], upstream, 0.0)
        value = load_heads(v, tokens, head, v_apart, width, inside, BLOCK_V)
        read = load_heads(y, tokens, head, apart, width, inside, BLOCK_V)
        unit, scale = standardise(read, inside, width, eps, BLOCK_V)
        weight = tl.load(weights + tokens * heads + head, mask=inside, other=0.0)[:, None]
        if GATED:
            result = unit * scaling + load_heads(shift, member, head, apart, width, inside, BLOCK_V) + weight * value
            store_heads(dgate, upstream * result, tokens, head, apart, width, inside, BLOCK_V)
            upstream *= load_heads(gate, tokens, head, apart, width, inside, BLOCK_V)
        weighted = weight * upstream
        if OFFERED:
            weighted += load_heads(offered, tokens, head, apart, width, inside, BLOCK_V)
        store_heads(dv, weighted, tokens, head, apart, width, inside, BLOCK_V)
        tl.store(slopes + tokens * heads + head, tl.sum(upstream * value, 1), mask=inside)
        total_gain += upstream * unit
        total_shift += upstream
        inner = through_norm(upstream * scaling, unit, scale, width)
        store_heads(dy, inner, tokens, head, apart, width, inside, BLOCK_V)
    store_sums(partial_gain, total_gain, member, heads, width, HEADS, BLOCK_R, BLOCK_V)
    store_sums(partial_shift, total_shift, member, heads, width, HEADS, BLOCK_R, BLOCK_V)


def launch_token_bonus(
    tensors: tuple[Tensor, ...],
    apart: tuple[int, int, int],
    eps: float,
    weights: Tensor | None,
    gate: Tensor | None = None,
    positions: Tensor | None = None,
) -> Tensor:
    """Return the result for q, k and v with tokens so far apart, bonus, y, gain and shift.

    Where weights [..., H] are given, they are the sums that q, k and bonus would make; where a gate is, the result is
    multiplied by it; where positions [M, B, S] are, it is that of the tokens there.
    """
    q, _, v, *_ = tensors
    members, (heads, key_width), value_width, rest = q.shape[0], q.shape[-2:], v.shape[-1], v.shape[1:-2]
    out = v.new_empty(members, *(rest if positions is None else positions.shape[1:]), heads, value_width)
    count, rows = out[0].numel() // (heads * value_width), head_rows(heads, max(key_width, value_width))
    time, taken = (1, 1) if positions is None else (v.shape[2], positions.shape[2])
    with launch_on(v):
        token_bonus_kernel[(-(-count // rows.tokens), members)](
            *tensors, out, out if weights is None else weights, out if gate is None else gate,
            out if positions is None else positions, count, time, taken, heads, key_width, value_width, *apart, eps,
            GIVEN=weights is not None, GATED=gate is not None, TAKEN=positions is not None, HEADS=rows.heads,
            BLOCK_R=rows.rows, BLOCK_K=padded(key_width), BLOCK_V=padded(value_width), num_warps=4,
        )  # fmt: skip
    return out


class FusedTokenBonus(torch.autograd.Function):
    """`token_bonus` in one launch each way."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, bonus: Tensor, y: Tensor, gain: Tensor, shift: Tensor, eps: float
    ) -> Tensor:
        (q, q_apart), (k, k_apart), (v, v_apart) = (spaced_rows(part, 2) for part in (q, k, v))
        bonus, y, gain, shift = (part.contiguous() for part in (bonus, y, gain, shift))
        ctx.save_for_backward(q, k, v, bonus, y, gain)
        ctx.apart, ctx.eps = (q_apart, k_apart, v_apart), eps
        return launch_token_bonus((q, k, v, bonus, y, gain, shift), ctx.apart, eps, None)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bonus, y, gain = ctx.saved_tensors
        members, (heads, key_width), value_width = q.shape[0], q.shape[-2:], v.shape[-1]
        count, rows = q[0].numel() // (heads * key_width), head_rows(heads, max(key_width, value_width))
        parts, each = split_rows(count, rows.tokens, members)
        made = [part.new_empty(part.shape) for part in (q, k, v, y)]
        sums = [
            q.new_empty(members, parts * rows.tokens, heads, width, dtype=torch.float32)
            for width in (key_width, value_width, value_width)
        ]
        with launch_on(v):
            token_bonus_gradient_kernel[(parts, members)](
                q, k, v, bonus, y, gain, gradient.contiguous(), *made, *sums, count, heads, key_width, value_width,
                *ctx.apart, ctx.eps, each, HEADS=rows.heads, BLOCK_R=rows.rows, BLOCK_K=padded(key_width),
                BLOCK_V=padded(value_width), num_warps=8,
            )  # fmt: skip
        dbonus, dgain, dshift = (add_parts(part, bonus.dtype) for part in sums)
        dq, dk, dv, dy = made
        return dq, dk, dv, dbonus, dy, dgain, dshift, None


class FusedWeightedBonus(torch.autograd.Function):
    """`weighted_bonus` in one launch each way, and one that adds up the gradients of gain and shift."""

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        v: Tensor,
        weights: Tensor,
        gain: Tensor,
        shift: Tensor,
        gate: Tensor | None,
        positions: Tensor | None,
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        same, (v, apart) = v, spaced_rows(v, 2)
        y, weights, gain, shift = (part.contiguous() for part in (y, weights, gain, shift))
        gate, positions = (None if part is None else part.contiguous() for part in (gate, positions))
        ctx.save_for_backward(y, v, weights, gain, shift, gate, positions)
        ctx.apart, ctx.eps = apart, eps
        ctx.set_materialize_grads(False)
        # with weights given, neither queries and keys nor a bonus are loaded
        return launch_token_bonus((v, v, v, gain, y, gain, shift), (apart,) * 3, eps, weights, gate, positions), same

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, offered: Tensor | None) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return None, offered, *(None,) * 6
        y, v, weights, gain, shift, gate, positions = ctx.saved_tensors
        members, (heads, width) = v.shape[0], v.shape[-2:]
        count, rows = gradient[0].numel() // (heads * width), head_rows(heads, width).halved()
        parts, each = split_rows(count, rows.tokens, members)
        if positions is None:
            dv, dy, slopes = y.new_empty(y.shape), torch.empty_like(y), torch.empty_like(weights)
        else:
            dv = torch.zeros_like(y) if offered is None else offered.clone(memory_format=torch.contiguous_format)
            dy, slopes = torch.zeros_like(y), torch.zeros_like(weights)
        dgate = None if gate is None else torch.empty_like(gate)
        sums = y.new_empty(2, members, parts * rows.tokens, heads, width, dtype=torch.float32)
        gradient, offered = gradient.contiguous(), None if offered is None else offered.contiguous()
        time, taken = (1, 1) if positions is None else (y.shape[2], positions.shape[2])
        with launch_on(y):
            weighted_bonus_gradient_kernel[(parts, members)](
                v, y, weights, gain, shift, y if gate is None else gate, gradient,
                gradient if offered is None else offered, dv, dy, dy if dgate is None else dgate, slopes, *sums,
                y if positions is None else positions, y if positions is None else find_repeats(positions), count, time,
                taken, heads, width, ctx.apart, ctx.eps, each, OFFERED=offered is not None, GATED=gate is not None,
                TAKEN=positions is not None, HEADS=rows.heads, BLOCK_R=rows.rows, BLOCK_V=padded(width),
                **rows.loop_options(width, GRADIENT_STAGES),
            )  # fmt: skip
        return dy, dv, slopes, *add_parts_of(sums, (gain, shift)), dgate, None, None
