"""Products of a gated MLP in Triton, with the activation where their tiles are written.

What the first product makes is kept for the backward pass, rounded, and the activation is that of the rounded numbers.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.fleet.projection import weight_gradient


class MLPTile(NamedTuple):
    """Rows and hidden columns of a tile, the most columns of a turn of its inner loop, warps, and pipeline depth."""

    rows: int
    columns: int
    inner: int
    warps: int
    stages: int


FORWARD_TILE, GRADIENT_TILE = MLPTile(128, 64, 32, 4, 4), MLPTile(64, 128, 128, 8, 2)
"""Chosen by time on an H200 for 5 to 32 members, 4,096 and 16,384 rows, C = 128 and H = 256 (`docs/log.md`)."""


@triton.jit
def gated_mlp_kernel(
    x, up, both, hidden, count, width, columns,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Write x W of a tile of rows, gates and what they multiply, and silu(gate) times that. Grid (tiles, M)."""
    tile, member = tl.program_id(0), tl.program_id(1).to(tl.int64)
    across = columns // BLOCK_C  # programs that share rows run side by side
    rows = member * count + (tile // across) * BLOCK_R + tl.arange(0, BLOCK_R)
    own, inner = (tile % across) * BLOCK_C + tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_K)
    left = x + rows[:, None] * width + inner[None, :]
    right = up + (member * width + inner)[:, None] * (2 * columns) + own[None, :]
    gate = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    value = gate
    for _ in range(0, width, BLOCK_K):
        factor = tl.load(left)
        gate = tl.dot(factor, tl.load(right), gate, input_precision="ieee")
        value = tl.dot(factor, tl.load(right + columns), value, input_precision="ieee")
        left += BLOCK_K
        right += BLOCK_K * 2 * columns
    kind = both.dtype.element_ty
    places = both + rows[:, None] * (2 * columns) + own[None, :]
    tl.store(places, gate.to(kind))
    tl.store(places + columns, value.to(kind))
    gate, value = gate.to(kind).to(tl.float32), value.to(kind).to(tl.float32)
    tl.store(hidden + rows[:, None] * columns + own[None, :], (gate * tl.sigmoid(gate) * value).to(kind))


@triton.jit
def gated_mlp_gradient_kernel(
    gradient, down, both, dboth, count, width, columns,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Write the gradient of x W of a tile of rows, from that of the output. Grid (tiles, M)."""
    tile, member = tl.program_id(0), tl.program_id(1).to(tl.int64)
    across = columns // BLOCK_C
    rows = member * count + (tile // across) * BLOCK_R + tl.arange(0, BLOCK_R)
    own, inner = (tile % across) * BLOCK_C + tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_K)
    left = gradient + rows[:, None] * width + inner[None, :]
    right = down + (member * columns + own)[:, None] * width + inner[None, :]
    total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for _ in range(0, width, BLOCK_K):
        total = tl.dot(tl.load(left), tl.trans(tl.load(right)), total, input_precision="ieee")
        left += BLOCK_K
        right += BLOCK_K
    kind = both.dtype.element_ty
    upstream = total.to(kind).to(tl.float32)
    places = rows[:, None] * (2 * columns) + own[None, :]
    gate, value = tl.load(both + places).to(tl.float32), tl.load(both + places + columns).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    slope = sigmoid + gate * sigmoid * (1.0 - sigmoid)
    tl.store(dboth + places, (upstream * value * slope).to(kind))
    tl.store(dboth + places + columns, (upstream * gate * sigmoid).to(kind))


class FusedGatedMLP(torch.autograd.Function):
    """`gated_mlp` of whole tiles."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, up: Tensor, down: Tensor) -> Tensor:
        x, up, down = x.contiguous(), up.contiguous(), down.contiguous()
        both = x.new_empty(*x.shape[:2], up.shape[2])
        hidden = x.new_empty(*x.shape[:2], down.shape[1])
        _launch(gated_mlp_kernel, FORWARD_TILE, (x, up, both, hidden), x.shape[2], down.shape[1])
        ctx.save_for_backward(x, up, down, both, hidden)
        return torch.bmm(hidden, down)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, up, down, both, hidden = ctx.saved_tensors
        gradient, dboth = gradient.contiguous(), torch.empty_like(both)
        _launch(gated_mlp_gradient_kernel, GRADIENT_TILE, (gradient, down, both, dboth), down.shape[2], down.shape[1])
        dx = torch.bmm(dboth, up.transpose(1, 2))
        return dx, weight_gradient(x, dboth), weight_gradient(hidden, gradient)


def _launch(mlp_kernel: Any, tile: MLPTile, tensors: tuple[Tensor, ...], width: int, columns: int) -> None:
    """Launch a kernel on the tiles of rows, the first of the tensors, and of hidden columns."""
    members, rows = tensors[0].shape[:2]
    with launch_on(tensors[0]):
        mlp_kernel[(rows // tile.rows * (columns // tile.columns), members)](
            *tensors, rows, width, columns, BLOCK_R=tile.rows, BLOCK_C=tile.columns, BLOCK_K=min(tile.inner, width),
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
