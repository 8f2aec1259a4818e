"""Cross-entropy in Triton: the forward kernel carries dloss / dx along, so that the backward makes logits once more.

Forward: two products a tile (logits, and the mean word under the softmax, as attention would with the words as keys and
values). Backward: two products a tile for the words' gradient. Nothing is added atomically.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from icl_bench.errors import KernelUnavailableError
from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.fleet.triton.cross_entropy_kernels import (
    finish_kernel,
    means_kernel,
    others_kernel,
    scale_kernel,
    weight_gradient_kernel,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WIDEST = 256
FULL = 128
"""Programs that fill a device, about; twice as many hide each other's waits."""


class Tile(NamedTuple):
    """Shape of a program: the stationary side, the side it walks along, warps and pipeline depth."""

    stationary: int
    moving: int
    warps: int
    stages: int


def cross_entropy_triton(x: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """`api.cross_entropy` for rows of up to 256 columns in float32, bfloat16 or float16.

    Raises:
        KernelUnavailableError: The width or type is none that the kernels take.
    """
    if x.dtype not in DTYPES or x.shape[-1] > WIDEST:
        raise KernelUnavailableError(
            f"impl='triton' takes float32, bfloat16 and float16, and widths up to {WIDEST}; "
            f"got {x.dtype} and C={x.shape[-1]}: use impl='torch'"
        )
    result: tuple[Tensor, Tensor] = TritonCrossEntropy.apply(x, weight, targets)
    return result


class TritonCrossEntropy(torch.autograd.Function):
    """Losses and hits, [M, R] float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Launch the forward kernels."""
        made = forward(x.contiguous(), weight, targets.contiguous(), any(ctx.needs_input_grad))
        if made.directions is not None:
            ctx.save_for_backward(x, weight, targets, made.wholes, made.shares, made.directions)
        ctx.mark_non_differentiable(made.hits)
        ctx.set_materialize_grads(False)
        return made.losses, made.hits

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _hits: None) -> tuple[Tensor | None, ...]:
        """From the gradient of the losses, read where it lies: a mean's is one number a member."""
        x, weight, targets, wholes, shares, directions = ctx.saved_tensors
        dweight = weight_gradient(x.contiguous(), weight, targets.contiguous(), wholes, shares, gradient)
        return scale(directions, gradient), dweight, None


class Made(NamedTuple):
    """What the forward kernels make, [M, R] each but for the directions, [M, R, C]."""

    losses: Tensor
    hits: Tensor
    wholes: Tensor | None
    """Log-sum-exp, base 2."""
    shares: Tensor | None
    """Probability of all words but the target."""
    directions: Tensor | None
    """Gradient of the loss of a row with respect to that row, in the type of x."""


def forward(x: Tensor, weight: Tensor, targets: Tensor, gradient: bool) -> Made:
    """Walk along the vocabulary for every tile of rows; few rows share it out over several programs."""
    (members, count, width), words = x.shape, weight.shape[1]
    tile = choose(x.dtype, width)
    block_c = columns_block(width)
    row_tiles = -(-count // tile.stationary)
    word_tiles = -(-words // tile.moving)
    parts = max(1, min(word_tiles, 16, 2 * FULL // (row_tiles * members)))
    each = -(-word_tiles // parts) * tile.moving
    tops, sums = x.new_empty(2, parts, members, count, dtype=torch.float32)
    mixes = x.new_empty(parts, members, count, width, dtype=torch.float32) if gradient else tops
    rows = x.new_empty(4, members, count, dtype=torch.float32)
    directions = torch.empty_like(x) if gradient else tops
    with launch_on(x):
        others_kernel[(row_tiles, parts, members)](
            x, weight, targets, tops, sums, mixes, count, words, width, each, *weight.stride(),
            BLOCK_R=tile.stationary, BLOCK_W=tile.moving, BLOCK_C=block_c, GRADIENT=gradient, num_warps=tile.warps,
            num_stages=tile.stages,
        )  # fmt: skip
        finish_kernel[(-(-count // 32), members)](
            x, weight, targets, tops, sums, mixes, *rows, directions, count, width, parts, *weight.stride(),
            BLOCK_R=32, BLOCK_C=block_c, GRADIENT=gradient, num_warps=4,
        )  # fmt: skip
    return Made(rows[0], rows[1], rows[2], rows[3], directions) if gradient else Made(rows[0], rows[1], *[None] * 3)


def scale(directions: Tensor, gradient: Tensor) -> Tensor:
    """The gradient of the rows."""
    members, count, width = directions.shape
    dx = torch.empty_like(directions)
    with launch_on(directions):
        scale_kernel[(-(-count // 32), members)](
            directions, gradient, dx, count, width, *gradient.stride(), BLOCK_R=32, BLOCK_C=columns_block(width)
        )
    return dx


def weight_gradient(
    x: Tensor, weight: Tensor, targets: Tensor, wholes: Tensor, shares: Tensor, gradient: Tensor
) -> Tensor:
    """The gradient of the words, laid out like them."""
    (members, count, width), words = x.shape, weight.shape[1]
    tile = choose(x.dtype, width)
    out = torch.empty_like(weight)
    with launch_on(x):
        weight_gradient_kernel[(-(-words // tile.stationary), members)](
            x, weight, targets, wholes, shares, gradient, out, count, words, width, *weight.stride(), *out.stride(),
            *gradient.stride(), EVEN=gradient.stride(1) == 0, BLOCK_R=tile.moving, BLOCK_W=tile.stationary,
            BLOCK_C=columns_block(width), num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    return out


def mean_losses_triton(
    losses: Tensor, hits: Tensor, sums: Tensor, course: Tensor, limits: tuple[float, float, int]
) -> Tensor:
    """`means.mean_losses`, the forward half, for contiguous sums and course."""
    members, count = losses.shape
    means = losses.new_empty(members)
    with launch_on(losses):
        means_kernel[(members,)](
            losses.contiguous(), hits.contiguous(), means, sums, course, count, *limits, BLOCK=4096, num_warps=8
        )
    return means


def columns_block(width: int) -> int:
    """The columns of a tile: a power of two, at least what a matrix product takes."""
    return max(16, 1 << (width - 1).bit_length())


def choose(dtype: torch.dtype, width: int) -> Tile:
    """The tile for a model width; of nine at width 128 in bfloat16 on an H200 within 13 % of the fastest."""
    if dtype == torch.float32:
        return Tile(32, 32, 4, 2)
    return Tile(64, 64, 4, 2 if width > 128 else 3)
