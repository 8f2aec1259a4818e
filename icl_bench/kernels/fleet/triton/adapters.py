"""Second factors of adapters in Triton: z = act(x) W from few columns x, and what reads z, in one launch each way.

One launch more adds up the gradients of the parameters. The gradient reads z: making it again, by a product a tile
ahead, costs more time than its bytes.
"""

from typing import Any, Literal, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.fleet.records import ColumnForm, DecayForm
from icl_bench.kernels.triton.common import (
    FULL_DEVICE_PROGRAMS,
    RESIDENT_PROGRAMS,
    add_parts,
    logistic,
    padded,
    softplus,
    spaced_rows,
    split_rows,
)

SIGMOID: tl.constexpr = tl.constexpr(1)
TANH: tl.constexpr = tl.constexpr(2)
ACTIVATIONS: dict[ColumnForm, int] = {"none": 0, "sigmoid": 1, "tanh": 2}
PLAIN: tl.constexpr = tl.constexpr(0)
DECAY: tl.constexpr = tl.constexpr(1)
LOG_DECAY: tl.constexpr = tl.constexpr(2)
EXP_DECAY: tl.constexpr = tl.constexpr(3)
GATE: tl.constexpr = tl.constexpr(4)
BLEND: tl.constexpr = tl.constexpr(5)
MIX: tl.constexpr = tl.constexpr(6)
AdapterForm = Literal["plain", "sigmoid", "log-sigmoid", "exp", "gate", "blend", "mix"]
"""Function of z: z + bias; factor f(z + bias) for f of sigmoid, log sigmoid and exp(min(z, 0)); one z; one + (other -
one) s for s of sigmoid(z + bias) and z + bias, the two of `other`."""
FORMS: dict[AdapterForm, int] = {
    "plain": 0, "sigmoid": 1, "log-sigmoid": 2, "exp": 3, "gate": 4, "blend": 5, "mix": 6
}  # fmt: skip
PROGRAMS = 8192
"""Programs of the forward pass, over all members, each of which loads a matrix."""


class AdapterTile(NamedTuple):
    """Rows of a tile, and the warps and stages of its program."""

    rows: int
    warps: int
    stages: int
    programs: int = FULL_DEVICE_PROGRAMS
    """Programs of the gradient, over all members, each of which writes its part of that of the weight."""


FORWARD_TILES = {"gate": AdapterTile(64, 4, 2), "sigmoid": AdapterTile(64, 4, 3)}
FORWARD_TILES |= {"blend": AdapterTile(32, 8, 3), "mix": AdapterTile(32, 4, 3)}
"""By form where it is not `TILE`, by launches on an H200 (docs/log.md, adapters in the operators that read them)."""
GRADIENT_TILES = {"sigmoid": AdapterTile(32, 8, 2), "log-sigmoid": AdapterTile(32, 8, 2), "gate": AdapterTile(32, 8, 2)}
GRADIENT_TILES |= {"exp": AdapterTile(32, 8, 2), "mix": AdapterTile(32, 4, 2)}
GRADIENT_TILES |= {"blend": AdapterTile(16, 4, 4, RESIDENT_PROGRAMS)}
"""By form where it is not `TILE`, as above."""
TILE, WIDE_TILE = AdapterTile(64, 8, 3, RESIDENT_PROGRAMS), AdapterTile(32, 8, 1)
"""Else, and for float32, whose rows take twice the shared memory."""
BIASED_TILE = AdapterTile(32, 8, 4, RESIDENT_PROGRAMS)
"""For the gradient of a product with a bias, whose sums else leave registers for one program of a multiprocessor."""


class Adapter(NamedTuple):
    """Columns, and the second factor of an adapter that reads them."""

    x: Tensor
    """[M, ..., R], before the activation; its rows may lie apart."""
    weight: Tensor
    """[M, R, C], contiguous."""
    activation: ColumnForm = "none"
    bias: Tensor | None = None
    """[M, C], contiguous; None for a form that has none."""


class AdapterOperands(NamedTuple):
    """Other tensors of a form, [M, ..., C], whose rows may lie apart; and its factor."""

    one: Tensor | None = None
    other: Tensor | None = None
    factor: float = 1.0


@triton.jit
def load_tile(x, member, count, rows, columns, width, apart):
    """Load columns of rows of a member, zeros where there are none; rows are `apart` elements apart."""
    mask = (rows < count)[:, None] & (columns < width)[None, :]
    return tl.load(x + (member.to(tl.int64) * count + rows)[:, None] * apart + columns[None, :], mask=mask, other=0.0)


@triton.jit
def store_tile(x, value, member, count, rows, columns, width, apart):
    """Store columns of rows as `load_tile` loads them."""
    mask = (rows < count)[:, None] & (columns < width)[None, :]
    places = (member.to(tl.int64) * count + rows)[:, None] * apart + columns[None, :]
    tl.store(x + places, value.to(x.dtype.element_ty), mask=mask)


@triton.jit
def load_activated(x, member, count, rows, columns, width, apart, ACTIVATION: tl.constexpr):
    """Load columns as `load_tile` does, and activate them in float32."""
    value = load_tile(x, member, count, rows, columns, width, apart).to(tl.float32)
    if ACTIVATION == SIGMOID:
        value = logistic(value)
    if ACTIVATION == TANH:
        # The difference loses the digits of small numbers; and of 0, which a first factor starts with, 0 must be left.
        series = value - value * value * value * (1.0 / 3.0)
        value = tl.where(tl.abs(value) < 0.03125, series, 2.0 * logistic(2.0 * value) - 1.0)
    return value


@triton.jit
def load_shift(bias, member, columns, width):
    """Load a bias in float32, [1, columns]."""
    return tl.load(bias + member * width + columns, mask=columns < width, other=0.0).to(tl.float32)[None, :]


@triton.jit
def adapter_kernel(
    x, weight, bias, one, other, out, raw, count, rank, width, x_apart, one_apart, other_apart, factor, each,
    ACTIVATION: tl.constexpr, FORM: tl.constexpr, BIAS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr, SAVE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Write what a form makes of z, and z itself where SAVE, for `each` rows. Grid (parts, columns, M)."""
    part, member = tl.program_id(0), tl.program_id(2)
    inner, columns = tl.arange(0, BLOCK_K), tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    matrix = load_tile(weight, member, rank, inner, columns, width, width)
    if BIAS:
        shift = load_shift(bias, member, columns, width)
    for start in tl.range(part * each, tl.minimum((part + 1) * each, count), BLOCK_R, num_stages=STAGES):
        rows = start + tl.arange(0, BLOCK_R)
        value = load_activated(x, member, count, rows, inner, rank, x_apart, ACTIVATION)
        z = tl.dot(value.to(matrix.dtype), matrix, input_precision="ieee")
        if SAVE:
            store_tile(raw, z, member, count, rows, columns, width, width)
        if FORM == PLAIN:
            if BIAS:
                z += shift
        if FORM == DECAY:
            z = factor * logistic(z + shift)
        if FORM == LOG_DECAY:
            z = -factor * softplus(-z - shift)
        if FORM == EXP_DECAY:
            z = factor * tl.exp(tl.minimum(z + shift, 0.0))
        if FORM >= BLEND:
            first = load_tile(one, member, count, rows, columns, width, one_apart).to(tl.float32)
            second = load_tile(other, member, count, rows, columns, width, other_apart).to(tl.float32)
            share = z + shift
            if FORM == BLEND:
                share = logistic(share)
            z = first + (second - first) * share
        if FORM == GATE:
            z *= load_tile(one, member, count, rows, columns, width, one_apart).to(tl.float32)
        store_tile(out, z, member, count, rows, columns, width, width)


@triton.jit
def adapter_gradient_kernel(
    x, raw, weight, bias, one, other, gradient, dx, done, dother, partial_weight, partial_bias, count, rank, width,
    x_apart, one_apart, other_apart, dx_apart, done_apart, dother_apart, factor, each, plane,
    ACTIVATION: tl.constexpr, FORM: tl.constexpr, BIAS: tl.constexpr, ADD: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Write the gradients of `each` rows, and their part of those of the parameters. Grid (parts, columns, M).

    The part of a block of columns in dx is `plane` elements behind that of the block before. Where ADD, gradients of
    `one` and `other` are added to what is there.
    """
    part, member = tl.program_id(0), tl.program_id(2)
    inner, columns = tl.arange(0, BLOCK_K), tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    matrix = load_tile(weight, member, rank, inner, columns, width, width)
    total, total_bias = tl.zeros([BLOCK_K, BLOCK_C], tl.float32), tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    if BIAS:
        shift = load_shift(bias, member, columns, width)
    for start in tl.range(part * each, tl.minimum((part + 1) * each, count), BLOCK_R, num_stages=STAGES):
        rows = start + tl.arange(0, BLOCK_R)
        value = load_activated(x, member, count, rows, inner, rank, x_apart, ACTIVATION)
        slope = load_tile(gradient, member, count, rows, columns, width, width).to(tl.float32)
        if FORM != PLAIN:
            z = load_tile(raw, member, count, rows, columns, width, width).to(tl.float32)
        if FORM == DECAY:
            share = logistic(z + shift)
            slope *= factor * share * (1.0 - share)
        if FORM == LOG_DECAY:
            slope *= factor * logistic(-z - shift)
        if FORM == EXP_DECAY:
            slope *= factor * tl.where(z + shift <= 0.0, tl.exp(z + shift), 0.0)
        if FORM >= BLEND:
            first = load_tile(one, member, count, rows, columns, width, one_apart).to(tl.float32)
            second = load_tile(other, member, count, rows, columns, width, other_apart).to(tl.float32)
            share = z + shift
            if FORM == BLEND:
                share = logistic(share)
            early, late = slope * (1.0 - share), slope * share
            if ADD:
                early += load_tile(done, member, count, rows, columns, width, done_apart).to(tl.float32)
                late += load_tile(dother, member, count, rows, columns, width, dother_apart).to(tl.float32)
            store_tile(done, early, member, count, rows, columns, width, done_apart)
            store_tile(dother, late, member, count, rows, columns, width, dother_apart)
            slope *= second - first
            if FORM == BLEND:
                slope *= share * (1.0 - share)
        if FORM == GATE:
            store_tile(done, slope * z, member, count, rows, columns, width, done_apart)
            slope *= load_tile(one, member, count, rows, columns, width, one_apart).to(tl.float32)
        if BIAS:
            total_bias += slope
        narrow = slope.to(matrix.dtype)
        # both products read the slope from shared memory: as left operands its layouts would be made from the loads on
        below = tl.trans(tl.dot(matrix, tl.trans(narrow), input_precision="ieee"))
        if ACTIVATION == SIGMOID:
            below *= value * (1.0 - value)
        if ACTIVATION == TANH:
            below *= 1.0 - value * value
        block = dx + tl.program_id(1).to(tl.int64) * plane
        store_tile(block, below, member, count, rows, inner, rank, dx_apart)
        total = tl.dot(tl.trans(value.to(matrix.dtype)), narrow, total, input_precision="ieee")
    place = member * tl.num_programs(0) + part
    store_tile(partial_weight, total, place, rank, inner, columns, width, width)
    if BIAS:
        tl.store(partial_bias + place * width + columns, tl.sum(total_bias, 0), mask=columns < width)


def launch_adapter(
    adapter: Adapter, form: AdapterForm, operands: AdapterOperands, *, save: bool = True
) -> tuple[Tensor, Tensor]:
    """Return what a form makes of z, and z for the gradient, [M, ..., C] in the type of x.

    z is no other tensor where a form needs none, or where not `save`.
    """
    (x, x_apart), (members, rank, width) = spaced_rows(adapter.x, 1), adapter.weight.shape
    (one, one_apart), (other, other_apart) = (spaced_rows(x if y is None else y, 1) for y in operands[:2])
    out, count, block_c = x.new_empty(*x.shape[:-1], width), x[0].numel() // rank, padded(width, 16, 128)
    tile = WIDE_TILE if x.element_size() > 2 else FORWARD_TILES.get(form, TILE)
    save &= form != "plain"
    z, (parts, each) = torch.empty_like(out) if save else out, split_rows(count, tile.rows, members, PROGRAMS)
    with launch_on(x):
        adapter_kernel[(parts, -(-width // block_c), members)](
            x, adapter.weight, x if adapter.bias is None else adapter.bias, one, other, out, z, count, rank, width,
            x_apart, one_apart, other_apart, operands.factor, each, ACTIVATION=ACTIVATIONS[adapter.activation],
            FORM=FORMS[form], BIAS=adapter.bias is not None, BLOCK_R=tile.rows, BLOCK_K=padded(rank, 16),
            BLOCK_C=block_c, SAVE=save, STAGES=tile.stages, num_warps=tile.warps,
        )  # fmt: skip
    return out, z


def launch_adapter_gradient(
    adapter: Adapter, form: AdapterForm, operands: AdapterOperands, z: Tensor, gradient: Tensor,
    targets: tuple[Tensor, Tensor | None, Tensor | None], add: bool = False,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Fill the targets, the gradients of x, `one` and `other`; return those of weight and bias, None without any.

    Rows of the targets may lie apart; where `add`, the gradients of `one` and `other` are added to what is there. A
    program has a block of columns of z: where there are several, the gradient of x is added up in float32.
    """
    (x, x_apart), (members, rank, width) = spaced_rows(adapter.x, 1), adapter.weight.shape
    (one, one_apart), (other, other_apart) = (spaced_rows(x if y is None else y, 1) for y in operands[:2])
    count, block_c = x[0].numel() // rank, padded(width, 16, 128)
    usual = BIASED_TILE if form == "plain" and adapter.bias is not None else TILE
    tile = WIDE_TILE if x.element_size() > 2 else GRADIENT_TILES.get(form, usual)
    blocks, (parts, each) = -(-width // block_c), split_rows(count, tile.rows, members, tile.programs)
    below = targets[0] if blocks == 1 else x.new_empty(blocks, *x.shape, dtype=torch.float32)
    (dx, dx_apart), (done, done_apart), (dother, dother_apart) = (
        spaced_rows(below if y is None else y, 1) for y in (below, *targets[1:])
    )
    sums = x.new_empty(members, parts, rank, width, dtype=torch.float32)
    shifts = None if adapter.bias is None else x.new_empty(members, parts, width, dtype=torch.float32)
    with launch_on(x):
        adapter_gradient_kernel[(parts, blocks, members)](
            x, z, adapter.weight, x if adapter.bias is None else adapter.bias, one, other, gradient.contiguous(), dx,
            done, dother, sums, sums if shifts is None else shifts, count, rank, width, x_apart, one_apart, other_apart,
            dx_apart, done_apart, dother_apart, operands.factor, each, x.numel(),
            ACTIVATION=ACTIVATIONS[adapter.activation], FORM=FORMS[form], BIAS=adapter.bias is not None, ADD=add,
            BLOCK_R=tile.rows, BLOCK_K=padded(rank, 64), BLOCK_C=block_c, STAGES=tile.stages, num_warps=tile.warps,
        )  # fmt: skip
    if blocks > 1:
        targets[0].copy_(dx.sum(0))
    dbias = None if shifts is None or adapter.bias is None else add_parts(shifts, adapter.bias.dtype)
    return add_parts(sums, adapter.weight.dtype), dbias


class FusedAdaptedProduct(torch.autograd.Function):
    """`adapted_product` in one launch each way, and two that add up the gradients of the parameters."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        weight, bias = weight.contiguous(), bias.contiguous()
        ctx.save_for_backward(x, weight, bias)
        return launch_adapter(Adapter(x, weight, bias=bias), "plain", AdapterOperands())[0]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        adapter, dx = Adapter(x, weight, bias=bias), x.new_empty(x.shape)
        return dx, *launch_adapter_gradient(adapter, "plain", AdapterOperands(), gradient, gradient, (dx, None, None))


class FusedAdaptedGate(torch.autograd.Function):
    """`adapted_gate` in one launch each way, and one that adds up the gradient of the weight."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, weight: Tensor, activation: ColumnForm) -> Tensor:
        weight = weight.contiguous()
        out, z = launch_adapter(Adapter(x, weight, activation), "gate", AdapterOperands(y))
        ctx.save_for_backward(y, x, weight, z)
        ctx.activation = activation
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        y, x, weight, z = ctx.saved_tensors
        dy, dx, adapter = y.new_empty(y.shape), x.new_empty(x.shape), Adapter(x, weight, ctx.activation)
        dweight, _ = launch_adapter_gradient(adapter, "gate", AdapterOperands(y), z, gradient, (dx, dy, None))
        return dy, dx, dweight, None


class FusedColumnProduct(torch.autograd.Function):
    """`product_of_columns` in one launch each way, and one that adds up the gradient of the weight."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, first: int, weight: Tensor, activation: ColumnForm) -> Tensor:
        weight, ctx.place, ctx.activation = weight.contiguous(), slice(first, first + weight.shape[1]), activation
        ctx.save_for_backward(rows, weight)
        return launch_adapter(Adapter(rows[..., ctx.place], weight, activation), "plain", AdapterOperands())[0]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        drows, adapter = torch.empty_like(rows), Adapter(rows[..., ctx.place], weight, ctx.activation)
        targets = drows[..., ctx.place], None, None
        dweight, _ = launch_adapter_gradient(adapter, "plain", AdapterOperands(), gradient, gradient, targets)
        return drows, None, dweight, None


class FusedAdaptedDecays(torch.autograd.Function):
    """`adapted_decays` in one launch each way, and two that add up the gradients of the parameters."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, form: DecayForm, factor: float, activation: ColumnForm
    ) -> Tensor:
        weight, bias = weight.contiguous(), bias.contiguous()
        out, z = launch_adapter(Adapter(x, weight, activation, bias), form, AdapterOperands(factor=factor))
        ctx.save_for_backward(x, weight, bias, z)
        ctx.form, ctx.factor, ctx.activation = form, factor, activation
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, z = ctx.saved_tensors
        adapter, operands = Adapter(x, weight, ctx.activation, bias), AdapterOperands(factor=ctx.factor)
        dx = x.new_empty(x.shape)
        made = launch_adapter_gradient(adapter, ctx.form, operands, z, gradient, (dx, None, None))
        return dx, *made, None, None, None


class FusedColumnBlend(torch.autograd.Function):
    """`blend_columns` in one launch each way, and two that add up the gradients of the parameters."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, first: int, y: Tensor, adapter: int, weight: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        weight, bias = weight.contiguous(), bias.contiguous()
        ctx.places = slice(first, first + y.shape[-1]), slice(adapter, adapter + weight.shape[1])
        x, low = (rows[..., place] for place in ctx.places)
        out, z = launch_adapter(Adapter(low, weight, bias=bias), "blend", AdapterOperands(x, y))
        ctx.save_for_backward(rows, y, weight, bias, z)
        return rows, out

    @staticmethod
    def backward(ctx: Any, drows: Tensor, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, y, weight, bias, z = ctx.saved_tensors
        (x, low), (dx, dlow) = ([source[..., place] for place in ctx.places] for source in (rows, drows))
        adapter, operands, dy = Adapter(low, weight, bias=bias), AdapterOperands(x, y), y.new_empty(y.shape)
        made = launch_adapter_gradient(adapter, "blend", operands, z, gradient, (dlow, dx, dy))
        return drows, None, dy, None, *made
