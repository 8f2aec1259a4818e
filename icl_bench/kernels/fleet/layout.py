"""How the parameters of a fleet lie in one buffer, and what AdamW keeps of them."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

TILE = 4096
"""Elements that one program of the fused form updates."""


class Layout(NamedTuple):
    """Parameters one after the other, each a block [M, size]."""

    members: int
    sizes: tuple[int, ...]
    """Elements of one member in each block."""

    @property
    def elements(self) -> int:
        """Elements in all."""
        return self.members * sum(self.sizes)

    def blocks(self, flat: Tensor) -> list[Tensor]:
        """Views [M, size]; a single one for a lone member, whose blocks touch."""
        if self.members == 1:
            return [flat.view(1, -1)]
        return self.rows(flat)

    def rows(self, flat: Tensor) -> list[Tensor]:
        """Views [M, size]."""
        parts = flat.split([self.members * size for size in self.sizes])
        return [part.view(self.members, -1) for part in parts]

    def views(self, flat: Tensor, shapes: list[torch.Size]) -> list[Tensor]:
        """Views of the shapes of the parameters, [M, ...]."""
        parts = flat.split([self.members * size for size in self.sizes])
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

    def tiles(self) -> Tensor:
        """By tile: the start of its block, the size of that block, and its start in a member's part; int64."""
        rows, start = [], 0
        for size in self.sizes:
            rows += [(start, size, inner) for inner in range(0, size, TILE)]
            start += self.members * size
        return torch.tensor(rows, dtype=torch.int64)

    @property
    def alignment(self) -> int:
        """A power of two, at most 16, that divides the address of every tile."""
        return math.gcd(16, *self.sizes)


class Slots(NamedTuple):
    """Flat buffers of `Layout.elements` elements."""

    parameters: Tensor
    """float32."""
    gradients: Tensor
    """In the type of the working copy, or of the parameters where there is none."""
    means: Tensor
    """Mean gradient, float32."""
    squares: Tensor
    """Mean squared gradient, float32."""
    working: Tensor | None
    """The parameters rounded to the type that the model computes in; written with every step."""


class Fleet(NamedTuple):
    """What differs by member and by step, on the device."""

    losses: Tensor
    """[M]; a member whose loss is not finite dies."""
    steps: Tensor
    """Updates so far, a scalar int64; counted up by one."""
    table: Tensor
    """[steps + 1, 3] float32: learning rate relative to its peak, and the bias corrections 1 - beta^step, by step."""
    peak: Tensor
    """Peak learning rates, [M]."""
    decay: Tensor
    """Decoupled weight decays, [M]."""
    alive: Tensor
    """Members that are updated, [M] bool."""
    died_at: Tensor
    """Step of a member's death, [M] int64; 0 before it."""
