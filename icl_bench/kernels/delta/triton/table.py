"""Blocks and launch options of the kernels, by the padded widths of keys and values."""

from typing import NamedTuple

from icl_bench.kernels.triton.common import padded

CHUNK = 16
"""Tokens to a chunk: the rows of the smallest product, and of a triangular system that rows solve."""
STATE_ELEMENTS = 2048
"""Largest part of a state that a program keeps in registers."""


class DeltaLaunch(NamedTuple):
    """Value channels to a program, and the options that it is compiled with."""

    block_v: int
    warps: int
    stages: int
    """Stages of the software pipeline."""
    registers: int | None = None
    """Registers of a thread; None to leave them to the compiler."""


def delta_launch(key_width: int, value_width: int, *, backward: bool, gated: bool) -> DeltaLaunch:
    """Return the launch for key width K and value width V, as measured on one H200.

    One warp a program: what products leave in registers then never moves between warps. Two where one would spill, and
    never four, with which Hopper takes products that are wrong for transposed operands. A pipeline needs registers too.
    """
    block_k = padded(key_width, 16)
    block_v = padded(value_width, 16, max(16, STATE_ELEMENTS // block_k))
    narrow = block_k * block_v <= 1024
    warps = 1 if narrow or (block_k <= 64 and not backward) else 2
    return DeltaLaunch(block_v, warps, 3 if narrow and not gated else 1)
