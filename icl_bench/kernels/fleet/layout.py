"""The layout of a fleet's parameters in one flat buffer, and the records that an update of AdamW reads and writes."""

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

ADAMW_TILE = 4096
"""Elements that one program of the Triton form updates."""
MATRIX_UNIT = 8
"""Elements of a half type in 16 bytes: matrices that start elsewhere get kernels that load one number at a time."""


class ParameterLayout(NamedTuple):
    """Parameters of M members one after the other, each a block [M, size]."""

    members: int
    sizes: tuple[int, ...]
    """Elements of one member in each block."""
    exempt: tuple[int, ...] = ()
    """Indices of the blocks to which no weight decay applies."""
    unit: int = 1
    """Number of which the first element of each block is a multiple; zeros lie between the blocks."""

    @property
    def starts(self) -> list[int]:
        """First element of each block, and the end of the last one."""
        spans = [-(-self.members * size // self.unit) * self.unit for size in self.sizes]
        return list(accumulate(spans, initial=0))

    @property
    def elements(self) -> int:
        """Number of elements in all."""
        return self.starts[-1]

    def blocks(self, flat: Tensor) -> list[Tensor]:
        """Return views [M, size]; a single one for a lone member, whose blocks touch, where all of them decay."""
        touch = self.elements == self.members * sum(self.sizes)
        return [flat.view(1, -1)] if self.members == 1 and touch and not self.exempt else self.rows(flat)

    def rows(self, flat: Tensor) -> list[Tensor]:
        """Return a view [M, size] of each parameter."""
        places = zip(self.starts, self.sizes, strict=False)
        return [flat[start : start + self.members * size].view(self.members, -1) for start, size in places]

    def views(self, flat: Tensor, shapes: list[torch.Size]) -> list[Tensor]:
        """Return views of the shapes of the parameters, [M, ...]."""
        return [part.view(shape) for part, shape in zip(self.rows(flat), shapes, strict=True)]

    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        """Return the flat buffer of the parameters [M, ...]."""
        flat = parts[0].new_zeros(self.elements)
        for row, part in zip(self.rows(flat), parts, strict=True):
            row.copy_(part.reshape(self.members, -1))
        return flat

    def tiles(self) -> Tensor:
        """Return the tiles, [tiles, 4]: start and size of the block, start in a member's part, 1 where it decays."""
        rows = [
            (start, size, inner, int(i not in self.exempt))
            for i, (start, size) in enumerate(zip(self.starts, self.sizes, strict=False))
            for inner in range(0, size, ADAMW_TILE)
        ]
        return torch.tensor(rows, dtype=torch.int64)

    @property
    def alignment(self) -> int:
        """Power of two, at most 16, that divides the address of every tile."""
        return math.gcd(16, *self.sizes, *self.starts)


class AdamWOptions(NamedTuple):
    """The numbers of an update that all members share, as `adamw_step` takes them."""

    beta1: float
    beta2: float
    clip: float | None
    eps: float


class OptimiserBuffers(NamedTuple):
    """Flat buffers of `ParameterLayout.elements` elements."""

    parameters: Tensor
    """Parameters, float32."""
    gradients: Tensor
    """Gradients, in the type of the working copy, or of the parameters where there is none."""
    means: Tensor
    """Mean gradient, float32."""
    squares: Tensor
    """Mean squared gradient, float32."""
    working: Tensor | None
    """The parameters rounded to the type that the model computes in; written with every step."""


class MemberState(NamedTuple):
    """The values of an update that differ by member or by step, on the device."""

    losses: Tensor
    """Losses, [M]; a member whose loss is not finite has diverged."""
    steps: Tensor
    """Number of updates so far, a scalar int64; counted up by one."""
    table: Tensor
    """Learning rate relative to its peak, and bias corrections 1 - beta^step, for each step: [steps + 1, 3] float32."""
    peak: Tensor
    """Peak learning rates, [M]."""
    decay: Tensor
    """Decoupled weight decays, [M]."""
    active: Tensor
    """Members that are updated, [M] bool."""
    diverged_at: Tensor
    """Step at which a member diverged, [M] int64; 0 before it."""
