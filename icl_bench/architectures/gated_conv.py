"""Gated convolution: the first layer of the published recall hybrids, which binds neighbouring tokens.

    y = conv(x) * (x W) + x,   conv causal, depthwise, of width `conv`

State: the last conv - 1 inputs, (conv - 1) C numbers. Source: BaseConv of Arora et al., "Zoology" (arXiv 2312.04927),
section 4; their sweeps put one such layer in front of the mixer under study (`gated-conv+softmax` here).
"""

from typing import Self

from pydantic import Field
from torch import Tensor

from icl_bench.architectures.base import ARCHITECTURES, Architecture, FirstLayer, Flops, LayerContext, Mixer, StateSize
from icl_bench.architectures.layers import ShortConv, StackedLinear
from icl_bench.kernels.fleet.convolution import gated_convolution


@ARCHITECTURES.register("gated-conv")
class GatedConv(Architecture):
    """Gated short convolution: no memory beyond its width; a first layer for hybrids."""

    family = "convolution"
    operator = "short_convolution"

    short_range = True

    conv: int = Field(default=3, ge=1)
    """Width of the convolution, the current token included."""

    def resolved(self, d_model: int) -> Self:
        return self

    def build(self, members: int, d_model: int, layer: LayerContext) -> Mixer:
        return GatedConvMixer(members, d_model, self.conv)

    def state_size(self, d_model: int, length: int) -> StateSize:
        return StateSize(cache=(self.conv - 1) * d_model)

    def flops(self, d_model: int, length: int) -> Flops:
        return Flops(2.0 * d_model * (d_model + self.conv), 0.0)


class GatedConvMixer(Mixer):
    """conv(x) * (x W) + x; the state is the last inputs, [M, B, conv - 1, C]."""

    def __init__(self, members: int, d_model: int, length: int) -> None:
        super().__init__()
        self.conv = ShortConv(members, d_model, length)
        self.project = StackedLinear(members, d_model, d_model)

    def forward(self, x: Tensor, first: FirstLayer | None = None) -> Tensor:
        return gated_convolution(x, self.conv.weight, self.project.weight)

    def initial_state(self, batch: int) -> Tensor:
        return self.conv.initial_tail(batch)

    def step(self, x: Tensor, state: Tensor, position: int, first: FirstLayer | None = None) -> tuple[Tensor, Tensor]:
        mixed, tail = self.conv.step(x, state)
        return mixed * self.project(x) + x, tail
