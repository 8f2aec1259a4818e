"""Launches of the long convolution: block sizes and layouts; the caller makes the device of the tensors current."""

import torch
from torch import Tensor

from icl_bench.kernels.long_convolution.triton.kernels import (
    ToeplitzConstants,
    filters_kernel,
    lag_sums_kernel,
    rows_kernel,
    toeplitz_kernel,
)
from icl_bench.kernels.triton.common import padded, precision_of

LONGEST_BLOCK = 64
"""Tokens to a block of long sequences."""
MOST_ROWS = 128
"""Rows of a tile, where a member has as many."""
MOST_BLOCKS = 4
"""Blocks of a sequence in one tile: a tile goes as far back as the last of its blocks."""
SUM_ROWS = 64
"""Sequences to a step of the sums over them."""
SUM_PROGRAMS = 2112
"""Programs that sum products by lag: 16 for each of the 132 processors of an H200."""
TRANSPOSED_CHANNELS = 64


def block_length(length: int) -> int:
    """Return the tokens to a block."""
    return padded(length, 16, LONGEST_BLOCK)


def rows_shape(shape: torch.Size, members: int) -> tuple[int, int, int, int]:
    """Return the shape of the rows of a tensor [N, T, C]."""
    n, t, c = shape
    return members, c, n // members, -(-t // block_length(t)) * block_length(t)


def to_rows(x: Tensor, members: int) -> Tensor:
    """Return the rows [M, C, B, P] of x [N, T, C], whose last stride is 1; P is T rounded up to whole blocks."""
    rows = torch.empty(rows_shape(x.shape, members), device=x.device, dtype=x.dtype)
    _launch_rows(x, rows, back=False)
    return rows


def from_rows(rows: Tensor, shape: torch.Size) -> Tensor:
    """Return x [N, T, C] from its rows."""
    x = torch.empty(shape, device=rows.device, dtype=rows.dtype)
    _launch_rows(x, rows, back=True)
    return x


def _launch_rows(x: Tensor, rows: Tensor, back: bool) -> None:
    n, t, c = x.shape
    block, channels = block_length(t), padded(c, 16, TRANSPOSED_CHANNELS)
    rows_kernel[(n * -(-t // block) * -(-c // channels),)](
        x, rows, x.stride(0), x.stride(1), c, rows.shape[2], t, rows.shape[3],
        BACK=back, S=block, BLOCK_C=channels, num_warps=4,
    )  # fmt: skip


def _constants(rows: Tensor, length: int, most_rows: int) -> ToeplitzConstants:
    """Return the constants of a kernel that multiplies rows."""
    block, each = block_length(length), padded(rows.shape[2], 16, most_rows)
    group = min(MOST_BLOCKS, most_rows // each, padded(-(-length // block)))
    return ToeplitzConstants(block, each * group, group, rows.dtype == torch.bfloat16, precision_of(rows))


def convolve(rows: Tensor, filters: Tensor, length: int, transposed: bool = False) -> Tensor:
    """Return the rows of outputs, or of the gradient of the inputs from rows of gradients of the outputs."""
    members, channels, each, size = rows.shape
    constants = _constants(rows, length, MOST_ROWS)
    taps = torch.empty(members, channels, constants.S + size, device=rows.device)
    taps = taps.view(torch.int32) if constants.SPLIT else taps
    filters_kernel[(members * channels * (size // constants.S + 1),)](
        filters, taps, length, filters.shape[2], size, S=constants.S, SPLIT=constants.SPLIT, num_warps=1
    )
    out = torch.empty_like(rows)
    groups, tiles = -(-size // (constants.S * constants.GROUP)), -(-each * constants.GROUP // constants.ROWS)
    toeplitz_kernel[(members * channels * groups * tiles,)](
        rows, taps, out, each, length, size, TRANSPOSED=transposed, C=constants, num_warps=4, num_stages=1,
    )  # fmt: skip
    return out


def lag_sums(late: Tensor, early: Tensor, length: int) -> Tensor:
    """Return sums over sequences and tokens of late_t early_(t - l), by blocks of lags l: [M, C, blocks, 2, S]."""
    members, channels, each, size = late.shape
    constants = _constants(late, length, SUM_ROWS)
    items = members * channels * (size // constants.S)
    programs = min(items, SUM_PROGRAMS)
    strips = torch.empty(programs, constants.S, constants.S, device=late.device, dtype=torch.float32)
    sums = torch.empty(members, channels, size // constants.S, 2, constants.S, device=late.device)
    lag_sums_kernel[(programs,)](
        late, early, strips, sums, each, length, size, items, C=constants, num_warps=4, num_stages=3
    )
    return sums
