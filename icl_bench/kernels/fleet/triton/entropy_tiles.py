"""Shapes of the programs of the cross-entropy, and what they read by copies of the hardware."""

from typing import NamedTuple

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

HOPPER = (9, 0)
"""First compute capability with copies of tiles by the hardware."""
COPIED_BYTES = 16
"""Unit of the addresses of what the hardware copies."""


class EntropyTile(NamedTuple):
    """The shape of a program: its own rows or tokens, those of each turn of its loop, warps and pipeline depth."""

    stationary: int
    moving: int
    warps: int
    stages: int
    registers: int | None = None
    """Most registers of a thread, where what follows the loop would take more than the loop."""
    held: bool = False
    """Keep the tokens of a gradient of the table in registers."""


def entropy_tile(dtype: torch.dtype, width: int, gradient: bool) -> EntropyTile:
    """Return the tile of the forward pass, by launches at width 128 in bfloat16 on an H200.

    Of an evaluation, which makes no gradient, programs of 128 rows take .81 of the time of 64.
    """
    if dtype == torch.float32:
        return EntropyTile(32, 32, 4, 2)
    if width > 128:
        return EntropyTile(64, 64, 4, 2)
    return EntropyTile(64, 64, 4, 3, registers=168) if gradient else EntropyTile(128, 64, 8, 2)


def table_tile(dtype: torch.dtype, width: int) -> EntropyTile:
    """Return the tile of the gradient of the table, by launches as those of the forward pass."""
    if dtype == torch.float32:
        return EntropyTile(32, 32, 4, 2)
    return EntropyTile(64, 64, 4, 2) if width > 128 else EntropyTile(64, 64, 4, 3, held=True)


def described(x: Tensor, rows: int) -> TensorDescriptor | None:
    """Describe [M, N, C] as [M N, C] for copies of `rows` rows by the hardware; None where it cannot copy them.

    Before Hopper no hardware does, and Triton would make plain loads of them.
    """
    if x.is_cuda and torch.cuda.get_device_capability(x.device) < HOPPER:
        return None
    if x.element_size() > 2 or not x.is_contiguous() or x.data_ptr() % COPIED_BYTES:
        return None
    return TensorDescriptor.from_tensor(x.flatten(0, 1), [rows, x.shape[2]])
