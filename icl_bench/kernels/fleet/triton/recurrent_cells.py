"""Recurrent cells in Triton: for each token a product with the matrices by the library, and one launch, each way.

Rows are sequences of all members and heads. Buffers over tokens hold members and heads first where a product over all
tokens reads them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.fleet.projection import weight_gradient
from icl_bench.kernels.fleet.records import BEFORE_ANY, CellForm
from icl_bench.kernels.triton.common import padded, softplus

ELEMENTS, MOST_COLUMNS = 1024, 128
"""Elements of a tile, eight for a thread, and its most columns."""


class Sizes(NamedTuple):
    """Sequences of a member, tokens, heads of a member, and channels of a head."""

    batch: Any
    time: Any
    heads: Any
    width: Any


class CellTile(NamedTuple):
    """Offsets of the channels of a tile of rows, and which are inside."""

    gates: Any
    """In gates [M, B, T, 4, H, J], the first gate at the token."""
    outputs: Any
    """In outputs [M, B, T, H, J] at the token."""
    row: Any
    """In [M, H, B, J]."""
    before: Any
    """In [M, H, T + 1, B, J], before the token; after it `step` later."""
    step: Any
    raw: Any
    """In [M, H, B, 4, J], the first gate."""
    slopes: Any
    """In [M, H, T, B, 4, J], the first gate at the token."""
    mask: Any


@triton.jit
def tanh(x):
    """Return the hyperbolic tangent by a sigmoid, 2^-23 from it."""
    return 2.0 * tl.sigmoid(2.0 * x) - 1.0


@triton.jit
def tile_at(t, sizes, count, BLOCK_R: tl.constexpr, BLOCK_J: tl.constexpr):
    """Return the tile of a program at token t. Grid (rows, channels)."""
    rows = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_J + tl.arange(0, BLOCK_J)
    group, sequence = rows // sizes.batch, rows % sizes.batch  # a group is a head of a member
    tokens = (group // sizes.heads * sizes.batch + sequence) * sizes.time + t
    head, inner = group % sizes.heads, sizes.heads * sizes.width
    outputs = (tokens * inner + head * sizes.width)[:, None] + columns[None, :]
    gates = (tokens * 4 * inner + head * sizes.width)[:, None] + columns[None, :]
    before = ((group * (sizes.time + 1) + t) * sizes.batch + sequence)[:, None] * sizes.width + columns[None, :]
    row, raw = rows[:, None] * sizes.width + columns[None, :], rows[:, None] * (4 * sizes.width) + columns[None, :]
    slopes = ((group * sizes.time + t) * sizes.batch + sequence)[:, None] * (4 * sizes.width) + columns[None, :]
    mask = (rows < count)[:, None] & (columns < sizes.width)[None, :]
    return CellTile(gates, outputs, row, before, sizes.batch * sizes.width, raw, slopes, mask)


@triton.jit
def raw_gates(gates, product, tile, sizes):
    """Return i, f, z and o of a tile in float32."""
    inner = sizes.heads * sizes.width
    i = tl.load(gates + tile.gates, mask=tile.mask, other=0.0).to(tl.float32)
    f = tl.load(gates + tile.gates + inner, mask=tile.mask, other=0.0).to(tl.float32)
    z = tl.load(gates + tile.gates + 2 * inner, mask=tile.mask, other=0.0).to(tl.float32)
    o = tl.load(gates + tile.gates + 3 * inner, mask=tile.mask, other=0.0).to(tl.float32)
    i += tl.load(product + tile.raw, mask=tile.mask, other=0.0).to(tl.float32)
    f += tl.load(product + tile.raw + sizes.width, mask=tile.mask, other=0.0).to(tl.float32)
    z += tl.load(product + tile.raw + 2 * sizes.width, mask=tile.mask, other=0.0).to(tl.float32)
    o += tl.load(product + tile.raw + 3 * sizes.width, mask=tile.mask, other=0.0).to(tl.float32)
    return i, f, z, o


@triton.jit
def store_gates(places, apart, i, f, z, o, mask):
    """Store four tiles, `apart` from one another."""
    kind = places.dtype.element_ty
    tl.store(places, i.to(kind), mask=mask)
    tl.store(places + apart, f.to(kind), mask=mask)
    tl.store(places + 2 * apart, z.to(kind), mask=mask)
    tl.store(places + 3 * apart, o.to(kind), mask=mask)


@triton.jit(do_not_specialize=["t"])
def cell_kernel(
    gates, product, c, n, m, y, out, t, sizes, count, SCALAR: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_J: tl.constexpr
):
    """Write the state and the output of a token. Grid (rows, channels)."""
    tile = tile_at(t, sizes, count, BLOCK_R, BLOCK_J)
    i, f, z, o = raw_gates(gates, product, tile, sizes)
    after = tile.before + tile.step
    old = tl.load(c + tile.before, mask=tile.mask, other=0.0)
    if SCALAR:
        kept = tl.load(m + tile.before, mask=tile.mask, other=0.0) - softplus(-f)
        largest = tl.maximum(kept, i)
        write, keep = tl.exp(i - largest), tl.exp(kept - largest)
        number = keep * old + write * tanh(z)
        weight = keep * tl.load(n + tile.before, mask=tile.mask, other=0.0) + write
        tl.store(m + after, largest, mask=tile.mask)
        tl.store(n + after, weight, mask=tile.mask)
        result = tl.sigmoid(o) * number / tl.where(tile.mask, weight, 1.0)
    else:
        number = tl.sigmoid(f) * old + tl.sigmoid(i) * tanh(z)
        result = tl.sigmoid(o) * tanh(number)
    tl.store(c + after, number, mask=tile.mask)
    tl.store(y + after, result.to(y.dtype.element_ty), mask=tile.mask)
    tl.store(out + tile.outputs, result.to(out.dtype.element_ty), mask=tile.mask)


@triton.jit(do_not_specialize=["t"])
def cell_gradient_kernel(
    gates, product, c, n, m, gradient, through, dc, dn, dgates, slopes, t, sizes, count,
    SCALAR: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_J: tl.constexpr,
):  # fmt: skip
    """Write the gradients of i, f, z and o of a token in both layouts, and those of the state before it in place.

    The gradient of the output is that of the layer's and `through` later tokens. Grid (rows, channels).
    """
    tile = tile_at(t, sizes, count, BLOCK_R, BLOCK_J)
    i, f, z, o = raw_gates(gates, product, tile, sizes)
    after, mask = tile.before + tile.step, tile.mask
    old, now = tl.load(c + tile.before, mask=mask, other=0.0), tl.load(c + after, mask=mask, other=0.0)
    upstream = tl.load(gradient + tile.outputs, mask=mask, other=0.0).to(tl.float32)
    upstream += tl.load(through + tile.row, mask=mask, other=0.0).to(tl.float32)
    dnow, opened, value = tl.load(dc + tile.row, mask=mask, other=0.0), tl.sigmoid(o), tanh(z)
    if SCALAR:
        largest, weight = tl.load(m + after, mask=mask, other=0.0), tl.load(n + after, mask=mask, other=1.0)
        write = tl.exp(i - largest)
        keep = tl.exp(tl.load(m + tile.before, mask=mask, other=0.0) - softplus(-f) - largest)
        share = now / weight
        d_o = upstream * share * opened * (1.0 - opened)
        dnow += upstream * opened / weight
        dweight = tl.load(dn + tile.row, mask=mask, other=0.0) - upstream * opened * share / weight
        d_i = (dnow * value + dweight) * write
        d_f = (dnow * old + dweight * tl.load(n + tile.before, mask=mask, other=0.0)) * keep * tl.sigmoid(-f)
        d_z = dnow * write * (1.0 - value * value)
        tl.store(dn + tile.row, dweight * keep, mask=mask)
    else:
        write, keep, shown = tl.sigmoid(i), tl.sigmoid(f), tanh(now)
        d_o = upstream * shown * opened * (1.0 - opened)
        dnow += upstream * opened * (1.0 - shown * shown)
        d_i = dnow * value * write * (1.0 - write)
        d_f = dnow * old * keep * (1.0 - keep)
        d_z = dnow * write * (1.0 - value * value)
    tl.store(dc + tile.row, dnow * keep, mask=mask)
    store_gates(dgates + tile.gates, sizes.heads * sizes.width, d_i, d_f, d_z, d_o, mask)
    store_gates(slopes + tile.slopes, sizes.width, d_i, d_f, d_z, d_o, mask)


class FusedRecurrentCells(torch.autograd.Function):
    """`recurrent_cells` for matrices in the type of the gates."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor, recur: Tensor, form: CellForm) -> Tensor:
        gates = gates.contiguous()
        (members, batch, time, _), (heads, width) = gates.shape, recur.shape[1:3]
        groups, matrices = members * heads, recur.flatten(0, 1)
        out = gates.new_empty(members, batch, time, heads * width)
        product = gates.new_empty(time, groups, batch, 4 * width)
        y = states(gates, groups, batch, width, gates.dtype)
        c = states(gates, groups, batch, width, torch.float32)
        n, m = (torch.empty_like(c), torch.empty_like(c)) if form == "s-lstm" else (c, c)
        if form == "s-lstm":
            n[:, 0], m[:, 0] = 0.0, BEFORE_ANY
        launch = launcher(cell_kernel, gates, recur.shape, form)
        for t in range(time):
            torch.bmm(y[:, t], matrices, out=product[t])
            launch(gates, product[t], c, n, m, y, out, t)
        ctx.save_for_backward(gates, matrices, product, c, n, m, y)
        ctx.form, ctx.shape = form, recur.shape
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        gates, matrices, product, c, n, m, y = ctx.saved_tensors
        time, (groups, batch, width) = gates.shape[2], y[:, 0].shape
        dgates, slopes = torch.empty_like(gates), gates.new_empty(groups, time, batch, 4 * width)
        through, transposed = gates.new_zeros(groups, batch, width), matrices.transpose(1, 2)
        dc = torch.zeros_like(through, dtype=torch.float32)
        dn = torch.zeros_like(dc) if ctx.form == "s-lstm" else dc
        launch, gradient = launcher(cell_gradient_kernel, gates, ctx.shape, ctx.form), gradient.contiguous()
        for t in reversed(range(time)):
            launch(gates, product[t], c, n, m, gradient, through, dc, dn, dgates, slopes, t)
            torch.bmm(slopes[:, t], transposed, out=through)
        return dgates, weight_gradient(y[:, :-1].flatten(1, 2), slopes.flatten(1, 2)).view(ctx.shape), None


def states(like: Tensor, groups: int, batch: int, width: int, dtype: torch.dtype) -> Tensor:
    """Return a buffer of states [groups, T + 1, B, J], zeros before the first token."""
    made = like.new_empty(groups, like.shape[2] + 1, batch, width, dtype=dtype)
    made[:, 0] = 0.0
    return made


def launcher(kernel: Any, gates: Tensor, shape: torch.Size, form: CellForm) -> Callable[..., None]:
    """Return the launch of a kernel on tensors at a token, the last argument, for matrices of a shape."""
    sizes = Sizes(*gates.shape[1:3], *shape[1:3])
    count, columns = shape[0] * sizes.heads * sizes.batch, padded(sizes.width, most=MOST_COLUMNS)
    rows = ELEMENTS // columns
    grid = (-(-count // rows), -(-sizes.width // columns))

    def launch(*arguments: Any) -> None:
        with launch_on(gates):
            kernel[grid](*arguments, sizes, count, SCALAR=form == "s-lstm", BLOCK_R=rows, BLOCK_J=columns, num_warps=4)

    return launch
