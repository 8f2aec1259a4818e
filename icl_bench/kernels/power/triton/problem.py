"""The sizes and constants of a call of power attention, as its Triton kernels are launched."""

from typing import NamedTuple

import torch
from torch import Tensor

from icl_bench.kernels.power.triton import table as config
from icl_bench.kernels.power.triton.basis import Layout


class Problem(NamedTuple):
    """The sizes and constants of one call."""

    layout: Layout
    n: int
    t: int
    heads: int
    groups: int
    v: int
    scale: float
    normalize: bool
    eps: float
    chunk: int
    dtype: torch.dtype
    stateful: bool
    """Whether a state is read: with more than one chunk, or one that enters or receives a gradient."""

    @property
    def arithmetic(self) -> str:
        """The arithmetic of `triton_config`."""
        return config.arithmetic(self.dtype, self.layout.p, self.stateful)

    @property
    def chunks(self) -> int:
        """Chunks in a sequence."""
        return -(-self.t // self.chunk)

    @property
    def expanded(self) -> int:
        """State elements before the normaliser."""
        return self.layout.expanded * self.v

    @property
    def used(self) -> int:
        """State elements of one head at one chunk."""
        return self.expanded + self.layout.normaliser(self.normalize)

    @property
    def elements(self) -> int:
        """The same, padded so that every state starts at a multiple of 16 elements."""
        return -(-self.used // 16) * 16

    @property
    def short(self) -> bool:
        """Whether rows are so short that they wait for memory rather than for products; for equal widths alone.

        With others, the ptxas of Triton 3.6 compiles what is made for such rows wrong: see `triton_config`.
        """
        return self.chunk <= config.SHORT and (self.layout.linear or not self.stateful) and not self.mixed

    @property
    def mixed(self) -> bool:
        """Whether keys and values are padded to different widths."""
        return config.padded(self.layout.key_width) != config.padded(self.v)

    def whole(self, blocks: config.Blocks) -> bool:
        """Whether no block of rows reaches beyond the sequence."""
        return self.t % blocks.m == 0 and self.t % blocks.n == 0

    @property
    def width(self) -> int:
        """What launch configurations go by."""
        return max(self.layout.key_width, self.v)

    @property
    def scale_in(self) -> float:
        """The factor on q.k inside the power; the rest of the scale is applied to sums."""
        return self.scale if self.layout.p > 2 else 1.0

    @property
    def scale_out(self) -> float:
        """The factor on sums of powers."""
        return 1.0 if self.layout.p > 2 else self.scale**self.layout.p

    @property
    def state_factor(self) -> float:
        """The factor on what is read from a state, before `scale_out`."""
        return self.scale**self.layout.p / self.scale_out

    def blocks(self, kernel: str, *, tiled: bool, gated: bool = False) -> config.Blocks:
        """The launch configuration; `tiled` where the kernel meets a state in tiles."""
        return config.blocks(kernel, self.form(kernel, tiled=tiled), self.arithmetic, self.width, gated)

    def form(self, kernel: str, *, tiled: bool) -> str:
        """The form of `triton_config`."""
        if kernel == "key_gradient" and self.mixed:
            return "mixed"
        if tiled and not self.layout.linear:
            return "tiles"
        return "rows" if self.chunk <= config.SHORT or kernel == "chunk_sums" else "long"


class TokenFactors(NamedTuple):
    """What each token counts by, float32 [N, H, T]: in the values' part of a state, and in its normaliser."""

    value: Tensor
    sum: Tensor


def strides(*tensors: Tensor) -> list[int]:
    """The strides of all but the last axis of each tensor, one after another."""
    return [stride for x in tensors for stride in x.stride()[:3]]
