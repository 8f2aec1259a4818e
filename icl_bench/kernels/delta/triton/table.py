"""Blocks and launch options of the kernels, by the padded widths of keys and values, and lengths of segments."""

import math
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
    single: bool = False
    """In the backward pass, find the gradients of all states first, and then those of chunks by a program each."""


class DeltaShape(NamedTuple):
    """Widths, rule and gates, on which launches depend."""

    key_width: int
    value_width: int
    rule: str
    gate: str
    """Decays: "none", of "heads", of "channels" of keys, or of those of "values"."""
    segmented: bool
    """Segments of a sequence are taken in parallel."""
    own: bool = False
    """The kernels of `tied` or `channels` take the call."""

    @property
    def block_k(self) -> int:
        """Return K padded to a power of two."""
        return padded(self.key_width, 16)

    def block_v(self, most: int = 1024) -> int:
        """Return V padded to a power of two, at most `most` and what a program keeps of a state."""
        return padded(self.value_width, 16, min(most, max(16, STATE_ELEMENTS // self.block_k)))

    @property
    def narrow(self) -> bool:
        """A program of one warp has registers for a state and its gradient."""
        return self.block_k * self.block_v() <= 1024


def forward_launch(shape: DeltaShape) -> DeltaLaunch:
    """Return the launch of the forward pass, as measured on one H200 with what the backward pass reads.

    One warp a program: what products leave in registers then never moves between warps. Two where one would spill, and
    never four, with which Hopper takes products that are wrong for transposed operands. A pipeline needs registers too:
    at 64 x 64 there are some where the systems of chunks are solved before. Not measured are rules and gates at 128 x
    128 but the tied rule with gates of heads, and widths of keys that differ from those of values.
    """
    if shape.own:
        return own_launch(shape, backward=False)
    if shape.gate == "values" and shape.block_k < 64:
        return value_launch(shape)
    if shape.narrow:
        return DeltaLaunch(shape.block_v(), 1, 3 if shape.rule == "untied" else 2)
    if shape.block_k < 64:
        return DeltaLaunch(shape.block_v(), 1, 2 if shape.rule == "delta" and shape.gate == "heads" else 1)
    if shape.block_k > 64:
        return DeltaLaunch(padded(shape.value_width, 16, 32), 2, 1)
    if shape.rule == "untied":
        return DeltaLaunch(shape.block_v(), 2, 1)
    if shape.gate in ("channels", "values"):
        return DeltaLaunch(padded(shape.value_width, 16, 64), 2, 1)
    return DeltaLaunch(shape.block_v(), 1, 2 if shape.segmented else 1)


def backward_launch(shape: DeltaShape) -> DeltaLaunch:
    """Return the launch of the backward pass, measured as that of the forward pass was.

    A walk of its own over the states pays where their gradients and those of the inputs together spill much: beside
    wide keys with gates, and beside narrow ones for the untied rule and for wide values with gates of channels.
    """
    if shape.own:
        return own_launch(shape, backward=True)
    if shape.gate == "values" and shape.block_k < 64:
        return value_launch(shape)
    reads = shape.rule != "linear"
    if shape.block_k < 64 and not shape.narrow and shape.rule == "delta" and shape.gate == "heads":
        return DeltaLaunch(shape.block_v(1024 // shape.block_k), 1, 2)
    if shape.block_k < 64:
        single = reads and (shape.rule == "untied" or (shape.gate == "channels" and not shape.narrow))
        light = shape.gate == "none" or (shape.rule == "linear" and shape.gate == "channels")
        stages = 3 if shape.narrow and light and not single else 1
        return DeltaLaunch(shape.block_v(), 1 if shape.narrow else 2, stages, single=single)
    single = reads and (shape.rule == "untied" or shape.gate != "none" or shape.block_k > 64)
    whole = shape.block_k == 64 and shape.rule != "untied" and (single or shape.gate == "none")
    wide = 64 if whole else 32 if single else shape.block_v()
    stages = 2 if shape.block_k == 64 and shape.rule == "linear" and shape.gate == "channels" else 1
    return DeltaLaunch(padded(shape.value_width, 16, wide), 2, stages, single=single)


def own_launch(shape: DeltaShape, *, backward: bool) -> DeltaLaunch:
    """Return the launch of the kernels of `tied` and `channels`, as measured on one H200.

    Measured are 16 x 32, 32 x 32, 32 x 64 and 64 x 64, without decays at 32 x 32.
    """
    if shape.narrow and shape.gate == "none":
        return DeltaLaunch(shape.block_v(), 1, 2, registers=168)
    if shape.narrow and not backward:
        return DeltaLaunch(shape.block_v(), 1, 3)
    if shape.block_k < 64:
        return DeltaLaunch(shape.block_v(), 1, 2)
    if backward:
        return DeltaLaunch(padded(shape.value_width, 16, 64), 2, 2)
    return DeltaLaunch(padded(shape.value_width, 16, 32), 1, 2)


def value_launch(shape: DeltaShape) -> DeltaLaunch:
    """Return the launch of both passes for gates of values beside narrow keys, as measured at 32 x 64 on one H200.

    Beside the gates, their sums and both gradients of a chunk, a thread has room for few value channels: of 64 to two
    warps 3.3 kB spill, and the backward pass takes 3.5 times as long.
    """
    return DeltaLaunch(padded(shape.value_width, 16, 32), 1, 1)


def walk_launch(shape: DeltaShape) -> DeltaLaunch:
    """Return the launch of the walk that finds gradients of states alone."""
    piped = shape.block_k == 64 and shape.segmented and shape.gate != "channels"
    return DeltaLaunch(shape.block_v(), 1 if shape.block_k <= 64 else 2, 2 if piped else 1)


SYSTEMS = DeltaLaunch(16, 1, 1)
"""The launch of the kernel that solves the systems of chunks; it reads no values."""
FULL_DEVICE = 1056
"""Programs of one warp that a device of 132 multiprocessors holds at 255 registers a thread."""
SHORTEST = 1024
"""Tokens of the shortest sequence that is cut: below it the launches of three kernels more take as long as its walk."""


def join_launch(key_width: int) -> DeltaLaunch:
    """Return the launch of the kernel that joins segments: few rows a program, as its steps follow one another.

    Its maps are fetched some steps ahead, as far as shared memory holds them.
    """
    return DeltaLaunch(16, 8, 4 if key_width <= 64 else 2)


def segment_length(tokens: int, heads: int, key_width: int, value_width: int) -> int:
    """Return the tokens of a segment for `heads` heads of all sequences; `tokens` where there is nothing to gain.

    An estimate, not measured: segments cost a second walk over the chunks and a step each, so they are taken where they
    fill a device that sequences leave three quarters empty. The sum of the steps of a segment and of the steps that
    join S segments, of which one takes about a quarter of a walk over a chunk, is least near S = 2 sqrt(2 chunks).
    """
    block_v = padded(value_width, 16, max(16, STATE_ELEMENTS // padded(key_width, 16)))
    programs = heads * -(-value_width // block_v)
    chunks = -(-tokens // CHUNK)
    segments = min(FULL_DEVICE // programs, math.isqrt(8 * chunks))
    return tokens if segments < 4 or tokens < SHORTEST else -(-chunks // segments) * CHUNK
