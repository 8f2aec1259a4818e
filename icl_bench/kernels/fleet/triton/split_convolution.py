"""The convolution of joint queries, keys and values in Triton, with bias, SiLU and norm of heads in the same launch.

A launch for each part writes it as a tensor of its own, so that no gradient is joined by a copy. Backward, a launch for
each part computes what is before bias and activation anew from x, and writes its columns of the gradient of x.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.fleet.records import UNIT_EPS, HeadColumns
from icl_bench.kernels.triton.common import add_parts, logistic, padded, spaced_rows

WIDEST_BLOCK = 64
"""Most columns to a program, where heads are not normalised."""


class TokenWalk(NamedTuple):
    """Blocks of a launch that walks tokens."""

    sequences: int
    """Sequences to a program."""
    segment: int
    """Tokens to a program."""
    elements: int
    """Elements of a token to a thread."""
    tokens: int
    """Tokens that a program loads at once."""
    stages: int
    """Stages of the pipeline of these loads; 1 for none."""

    def programs(self, batch: int, time: int) -> int:
        """Return the programs for the sequences and tokens of a member."""
        return -(-batch // self.sequences) * -(-time // self.segment)

    def constants(self, columns: int) -> dict[str, int]:
        """Return the constants of a launch for blocks of so many columns."""
        block = padded(columns)
        warps = padded(self.sequences * block // (32 * self.elements), 1, 8)
        return {
            "BLOCK_S": self.sequences, "BLOCK_C": block, "TOKENS": self.tokens, "STAGES": self.stages,
            "num_warps": warps,
        }  # fmt: skip


FORWARD, BACKWARD = TokenWalk(8, 64, 4, 4, 2), TokenWalk(8, 64, 8, 4, 3)
"""Blocks of both passes, as measured on one H200."""
LONGER, MANY_SEQUENCES = 128, 4096
"""Tokens to a program of the backward pass where all members have so many sequences: at its ends a program loads six
tokens more."""


@triton.jit
def load_token(pointer, offsets, token, mask, low, high):
    """Load the columns of a token of each sequence; zeros for tokens before `low` and from `high` on."""
    place = tl.where(mask, token, low - 1)
    return tl.load(pointer + offsets, mask=(place >= low) & (place < high), other=0.0)


@triton.jit
def load_taps(taps, member, width, columns, valid, LENGTH: tl.constexpr):
    """Load the taps of the columns of a block, a tuple of [1, BLOCK_C] in float32, that of the current token first."""
    weights = ()
    for j in tl.static_range(LENGTH):
        tap = tl.load(taps + (member * LENGTH + j) * width + columns, mask=valid, other=0.0)
        weights = weights + (tap.to(tl.float32)[None, :],)
    return weights


@triton.jit
def inner_value(window, weights, shift, LENGTH: tl.constexpr, BIAS: tl.constexpr):
    """Return the convolution at a token plus the bias, from x at it and at those before it, the latest first."""
    value = window[0] * weights[0]
    for j in tl.static_range(1, LENGTH):
        value += window[j] * weights[j]
    if BIAS:
        value += shift
    return value


@triton.jit
def split_convolution_kernel(
    x, taps, bias, out, batch, length, width, first, span, step, apart, eps, each, LENGTH: tl.constexpr,
    BIAS: tl.constexpr, SILU: tl.constexpr, UNIT: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
    TOKENS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Walk `each` tokens of BLOCK_S sequences; write columns of silu(conv(x) + bias), normalised by head.

    Written are the `span` columns from `first` on. A block has `step` columns: those of a head, or BLOCK_C where
    nothing is normalised; blocks of the same rows follow one another. Grid (blocks of sequences times segments of
    tokens times blocks of columns, M).
    """
    blocks, member, index = tl.cdiv(span, step), tl.program_id(1), tl.arange(0, BLOCK_C)
    part, segments = tl.program_id(0) // blocks, tl.cdiv(length, each)
    rows, start = part // segments * BLOCK_S + tl.arange(0, BLOCK_S), part % segments * each
    end, local = tl.minimum(start + each, length), tl.program_id(0) % blocks * step + index
    valid = (index < step) & (local < span)
    mask = (rows < batch)[:, None] & valid[None, :]
    tokens = ((member.to(tl.int64) * batch + rows) * length)[:, None]
    inputs, results = tokens * apart + (first + local)[None, :], tokens * span + local[None, :]
    shift = 0.0
    if BIAS:
        shift = tl.load(bias + member * width + first + local, mask=valid, other=0.0).to(tl.float32)[None, :]
    weights, recent = load_taps(taps, member, width, first + local, valid, LENGTH), ()
    for j in tl.static_range(LENGTH - 1):
        token = start - 1 - j
        recent = recent + (load_token(x, inputs + token * apart, token, mask, 0, length).to(tl.float32),)
    for group in tl.range(0, tl.cdiv(end - start, TOKENS), num_stages=STAGES):
        earliest, given = start + group * TOKENS, ()
        for i in tl.static_range(TOKENS):
            given = given + (load_token(x, inputs + (earliest + i) * apart, earliest + i, mask, 0, end),)
        for i in tl.static_range(TOKENS):
            window = (given[i].to(tl.float32),) + recent
            value = inner_value(window, weights, shift, LENGTH, BIAS)
            if SILU:
                value *= logistic(value)
            if UNIT:
                if BIAS:
                    value = tl.where(mask, value, 0.0)
                value *= tl.rsqrt(tl.sum(value * value, 1) + eps)[:, None]
            recent = window[: LENGTH - 1]
            own = tl.where(mask, earliest + i, end) < end
            tl.store(out + results + (earliest + i) * span, value.to(out.dtype.element_ty), mask=own)


@triton.jit
def inner_gradient(
    window, weights, shift, upstream, mask, eps, LENGTH: tl.constexpr, BIAS: tl.constexpr, SILU: tl.constexpr,
    UNIT: tl.constexpr,
):  # fmt: skip
    """Return the gradient of conv(x) at a token, from x at it and at those before it, the latest first.

    For u = z s, s = 1 / sqrt(sum z^2 + eps), the gradient of z is s (g - z s^2 sum(g z)).
    """
    value = inner_value(window, weights, shift, LENGTH, BIAS)
    share = 1.0
    active = value
    if SILU:
        share = logistic(value)
        active = value * share
    if UNIT:
        if BIAS:
            active = tl.where(mask, active, 0.0)
        scale = tl.rsqrt(tl.sum(active * active, 1) + eps)
        along = tl.sum(upstream * active, 1) * scale * scale * scale
        upstream = upstream * scale[:, None] - active * along[:, None]
    if SILU:
        upstream *= share + active * (1.0 - share)
    return upstream


@triton.jit
def split_convolution_gradient_kernel(
    x, taps, bias, gradient, dx, partial, partial_bias, batch, length, width, first, span, step, apart, dx_apart, eps,
    each, LENGTH: tl.constexpr, BIAS: tl.constexpr, SILU: tl.constexpr, UNIT: tl.constexpr, BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr, TOKENS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Walk `each` tokens of BLOCK_S sequences from the last on; write dx, and their part of dtaps and dbias.

    With g the gradient of conv(x), dx_t = sum_j taps_j g_(t+j) and dtaps_j = sum_t g_t x_(t-j): what tokens share stays
    in registers. The grid is that of the forward pass.
    """
    blocks, member, index = tl.cdiv(span, step), tl.program_id(1), tl.arange(0, BLOCK_C)
    part, segments = tl.program_id(0) // blocks, tl.cdiv(length, each)
    rows, start = part // segments * BLOCK_S + tl.arange(0, BLOCK_S), part % segments * each
    end, local = tl.minimum(start + each, length), tl.program_id(0) % blocks * step + index
    valid = (index < step) & (local < span)
    mask = (rows < batch)[:, None] & valid[None, :]
    tokens = ((member.to(tl.int64) * batch + rows) * length)[:, None]
    inputs, upstreams = tokens * apart + (first + local)[None, :], tokens * span + local[None, :]
    results = tokens * dx_apart + (first + local)[None, :]
    empty = tl.zeros([BLOCK_S, BLOCK_C], tl.float32)
    shift = 0.0
    if BIAS:
        shift = tl.load(bias + member * width + first + local, mask=valid, other=0.0).to(tl.float32)[None, :]
    weights, recent, later, sums = load_taps(taps, member, width, first + local, valid, LENGTH), (), (), ()
    for _ in tl.static_range(LENGTH):
        sums = sums + (empty,)
    for j in tl.static_range(LENGTH - 1):
        token = end + LENGTH - 2 - j
        recent = recent + (load_token(x, inputs + token * apart, token, mask, 0, length).to(tl.float32),)
    for j in tl.static_range(LENGTH - 1):
        token = end + LENGTH - 2 - j
        oldest = token - LENGTH + 1
        window = recent + (load_token(x, inputs + oldest * apart, oldest, mask, 0, length).to(tl.float32),)
        upstream = load_token(gradient, upstreams + token * span, token, mask, 0, length).to(tl.float32)
        later = (inner_gradient(window, weights, shift, upstream, mask, eps, LENGTH, BIAS, SILU, UNIT),) + later
        recent = window[1:]
    total = empty
    for group in tl.range(0, tl.cdiv(end - start, TOKENS), num_stages=STAGES):
        latest = end - 1 - group * TOKENS
        earlier, given = (), ()
        for i in tl.static_range(TOKENS):
            token = latest - i
            oldest = token - LENGTH + 1
            earlier = earlier + (load_token(x, inputs + oldest * apart, oldest, mask, 0, length),)
            given = given + (load_token(gradient, upstreams + token * span, token, mask, start, length),)
        for i in tl.static_range(TOKENS):
            window = recent + (earlier[i].to(tl.float32),)
            upstream = given[i].to(tl.float32)
            inner = inner_gradient(window, weights, shift, upstream, mask, eps, LENGTH, BIAS, SILU, UNIT)
            later = (inner,) + later
            result, added = weights[0] * inner, (sums[0] + inner * window[0],)
            for j in tl.static_range(1, LENGTH):
                result += weights[j] * later[j]
                added = added + (sums[j] + inner * window[j],)
            sums, recent, later = added, window[1:], later[: LENGTH - 1]
            if BIAS:
                total += inner
            token = latest - i
            own = tl.where(mask, token, start - 1) >= start
            tl.store(dx + results + token * dx_apart, result.to(dx.dtype.element_ty), mask=own)
    place = member * (tl.num_programs(0) // blocks) + part
    for j in tl.static_range(LENGTH):
        tl.store(partial + (place * LENGTH + j) * width + first + local, tl.sum(sums[j], 0), mask=valid)
    if BIAS:
        tl.store(partial_bias + place * width + first + local, tl.sum(total, 0), mask=valid)


class FusedSplitConvolution(torch.autograd.Function):
    """`split_convolution` in one launch for each part forward and backward, and sums for taps and bias."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, taps: Tensor, bias: Tensor | None, parts: tuple[HeadColumns, ...], silu: bool
    ) -> tuple[Tensor, ...]:
        taps, bias = taps.contiguous(), None if bias is None else bias.contiguous()
        ctx.save_for_backward(x, taps, bias)
        ctx.parts, ctx.silu = parts, silu
        return launch_split_convolution(x, taps, bias, parts, silu)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, taps, bias = ctx.saved_tensors
        dx = x.new_empty(x.shape)
        return dx, *launch_split_gradient(x, taps, bias, ctx.parts, ctx.silu, gradients, dx), None, None


class FusedColumnConvolution(torch.autograd.Function):
    """`convolve_columns`, as `FusedSplitConvolution`."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, taps: Tensor, bias: Tensor | None, parts: tuple[HeadColumns, ...], silu: bool
    ) -> tuple[Tensor, ...]:
        taps, bias = taps.contiguous(), None if bias is None else bias.contiguous()
        ctx.save_for_backward(rows, taps, bias)
        ctx.parts, ctx.silu = parts, silu
        return rows, *launch_split_convolution(rows[..., : taps.shape[-1]], taps, bias, parts, silu)

    @staticmethod
    def backward(ctx: Any, drows: Tensor, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, taps, bias = ctx.saved_tensors
        x, dx = (whole[..., : taps.shape[-1]] for whole in (rows, drows))
        return drows, *launch_split_gradient(x, taps, bias, ctx.parts, ctx.silu, gradients, dx), None, None


def launch_split_convolution(
    x: Tensor, taps: Tensor, bias: Tensor | None, parts: tuple[HeadColumns, ...], silu: bool
) -> tuple[Tensor, ...]:
    """Return the parts; tokens of x may lie apart."""
    x, apart = spaced_rows(x, 1)
    members, batch, time, width = x.shape
    outs = tuple(x.new_empty(members, batch, time, part.heads, part.width) for part in parts)
    programs = FORWARD.programs(batch, time)
    with launch_on(x):
        for columns, out in zip(columns_of(parts), outs, strict=True):
            split_convolution_kernel[(programs * columns.blocks, members)](
                x, taps, x if bias is None else bias, out, batch, time, width, columns.first, columns.span,
                columns.step, apart, UNIT_EPS, FORWARD.segment, LENGTH=taps.shape[1], BIAS=bias is not None,
                SILU=silu, UNIT=columns.unit, **FORWARD.constants(columns.step),
            )  # fmt: skip
    return outs


def launch_split_gradient(
    x: Tensor, taps: Tensor, bias: Tensor | None, parts: tuple[HeadColumns, ...], silu: bool,
    gradients: Sequence[Tensor], dx: Tensor,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Fill dx, whose tokens may lie apart as those of x may, and return the gradients of the taps and of the bias."""
    (x, apart), (dx, dx_apart) = spaced_rows(x, 1), spaced_rows(dx, 1)
    members, batch, time, width = x.shape
    walk = BACKWARD._replace(segment=LONGER) if members * batch >= MANY_SEQUENCES else BACKWARD
    length, programs = taps.shape[1], walk.programs(batch, time)
    partial = x.new_empty(members, programs, length, width, dtype=torch.float32)
    partial_bias = None if bias is None else x.new_empty(members, programs, width, dtype=torch.float32)
    with launch_on(x):
        for columns, gradient in zip(columns_of(parts), gradients, strict=True):
            split_convolution_gradient_kernel[(programs * columns.blocks, members)](
                x, taps, x if bias is None else bias, gradient.contiguous(), dx, partial,
                partial if partial_bias is None else partial_bias, batch, time, width, columns.first, columns.span,
                columns.step, apart, dx_apart, UNIT_EPS, walk.segment, LENGTH=length, BIAS=bias is not None,
                SILU=silu, UNIT=columns.unit, **walk.constants(columns.step),
            )  # fmt: skip
    dbias = None if partial_bias is None or bias is None else add_parts(partial_bias, bias.dtype)
    return add_parts(partial, taps.dtype), dbias


class Columns(NamedTuple):
    """Columns of a part, and the blocks that launches cut them into."""

    first: int
    span: int
    blocks: int
    step: int
    """Columns to a block: those of a head where heads are normalised."""
    unit: bool


def columns_of(parts: Sequence[HeadColumns]) -> list[Columns]:
    """Return the columns of each part."""
    found, first = [], 0
    for part in parts:
        span = part.heads * part.width
        step = part.width if part.unit else padded(span, most=WIDEST_BLOCK)
        found.append(Columns(first, span, -(-span // step), step, part.unit))
        first += span
    return found
