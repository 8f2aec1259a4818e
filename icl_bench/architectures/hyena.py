"""Hyena: gated long convolutions with filters that a small network makes from the distance.

    y_t = sum_(s <= t) f(t - s) u_s + D u_t,   u = v * x1,   x1, x2, v = conv(x W + b) + b',   out = (y * x2) W_o
    f(t) = MLP([t / L, cos(2 pi r t / L), -sin(2 pi r t / L)]) * exp(-(t / L) |a|), r over `bands` rates from 0

The MLP has three hidden layers with sines, sin(w u) with a learned w for each unit; the decays a of the channels are
fixed, from 3.1 to 15.4 a filter length. L = `length` is part of the model: shorter inputs take the first taps, and a
longer one is refused. State: no finite recurrence; the cache of u, C T numbers, and the tail of the convolution on
three streams. Work a token: C (T + 1) multiply-adds in the recurrent form. Source: Poli et al. (arXiv 2302.10866) in
the form of the published recall code, with two bands, where that has one of frequency 0.
"""

import math
from typing import NamedTuple, Self, cast

import torch
from pydantic import Field
from torch import Tensor

from icl_bench.architectures.base import ARCHITECTURES, Architecture, FirstLayer, Flops, LayerContext, Mixer, StateSize
from icl_bench.architectures.frame import fold
from icl_bench.architectures.initialisation import constant, normal, uniform_between
from icl_bench.architectures.layers import ShortConv, Stacked, StackedLinear, widen
from icl_bench.errors import SpecError
from icl_bench.kernels.long_convolution.api import ConvolutionImpl, long_convolution, long_convolution_step

LOWEST_RATE = 1e-4
"""Rate of the first band; it is 0 but for a linear term."""
DECAYS = (-math.log(0.01) / 1.5, -math.log(0.01) / 0.3)
"""Smallest and largest decay over the length of a filter."""


@ARCHITECTURES.register("hyena")
class Hyena(Architecture):
    """Hyena: one long convolution between two gates, without attention and without a finite state."""

    family = "convolution"
    operator = "long_convolution"

    length: int = Field(default=1024, ge=1)
    """Longest sequence, L: the filters are functions of the distance relative to it."""
    hidden: int = Field(default=64, ge=1)
    """Width of the network that makes the filters."""
    bands: int = Field(default=2, ge=1)
    """Frequencies of the distance that the network sees."""
    conv: int = Field(default=3, ge=1)
    """Width of the short convolution."""

    def resolved(self, d_model: int) -> Self:
        return self

    def build(self, members: int, d_model: int, layer: LayerContext) -> Mixer:
        return HyenaMixer(members, d_model, self, layer)

    def state_size(self, d_model: int, length: int) -> StateSize:
        return StateSize(cache=d_model * length + 3 * d_model * (self.conv - 1))

    def flops(self, d_model: int, length: int) -> Flops:
        return Flops(2.0 * d_model * (4 * d_model + 3 * self.conv), d_model * (length + 1.0))


class ImplicitFilters(Stacked):
    """Filters [M, C, T] of the first T distances, made by a network with sines; float32 whatever the precision."""

    def __init__(self, members: int, channels: int, config: Hyena) -> None:
        super().__init__(members)
        self.length, self.bands = config.length, config.bands
        widths = [2 * config.bands + 1, config.hidden, config.hidden, config.hidden, channels]
        for i in range(4):
            bound = widths[i] ** -0.5
            shape = (widths[i], widths[i + 1])
            self.declare(f"weight{i}", shape, uniform_between(-bound, bound), kind="matrix")
            if i < 3:
                self.declare(f"bias{i}", shape[1:], uniform_between(-bound, bound), decay=False)
        self.declare("frequency", (config.hidden,), constant(1.0), decay=False)
        self.declare("direct", (channels,), normal(1.0), decay=False)

    def forward(self, taps: int) -> Tensor:
        if taps > self.length:
            raise SpecError(
                f"filters of hyena reach over at most `length` tokens; got {taps} for length = {self.length}; raise it"
            )
        p = {name: widen(getattr(self, name)) for name in self.inits}
        channels, like = p["direct"].shape[1], p["direct"]
        with torch.autocast(like.device.type, enabled=False):
            share = torch.arange(taps, device=like.device, dtype=like.dtype) / self.length
            rates = torch.linspace(LOWEST_RATE, self.bands - 1, self.bands, device=like.device, dtype=like.dtype)
            angles = 2 * math.pi * share[:, None] * rates
            h = torch.cat([share[:, None], angles.cos(), -angles.sin()], dim=-1).expand(self.members, -1, -1)
            for i in range(3):
                h = (p["frequency"][:, None] * torch.baddbmm(p[f"bias{i}"][:, None], h, p[f"weight{i}"])).sin()
            decays = torch.linspace(*DECAYS, channels, device=like.device, dtype=like.dtype)
            filters = (h @ p["weight3"] * torch.exp(-share[:, None] * decays)).transpose(1, 2)
            return torch.cat([filters[..., :1] + p["direct"][..., None], filters[..., 1:]], dim=-1)


class HyenaState(NamedTuple):
    """State of a `HyenaMixer`."""

    cache: Tensor
    """Inputs of the long convolution, [M·B, P, C]."""
    tail: Tensor
    """Last inputs of the short convolution, [M, B, conv - 1, 3 C]."""


class HyenaMixer(Mixer):
    """A long convolution between two gates; see the module."""

    def __init__(self, members: int, d_model: int, config: Hyena, layer: LayerContext) -> None:
        super().__init__()
        bound, self.impl = config.conv**-0.5, cast(ConvolutionImpl, layer.impl)
        self.project = StackedLinear(members, d_model, 3 * d_model, bias=constant(0.0), decay=False)
        self.conv = ShortConv(members, 3 * d_model, config.conv, bias=uniform_between(-bound, bound))
        self.filters = ImplicitFilters(members, d_model, config)
        self.output = StackedLinear(members, d_model, d_model, layer.output_gain)

    def forward(self, x: Tensor, first: FirstLayer | None = None) -> Tensor:
        x1, x2, v = self.conv(self.project(x)).chunk(3, dim=-1)
        y = long_convolution(fold(v * x1), self.filters(x.shape[2]), impl=self.impl)
        return self.output(y.view(x2.shape) * x2)

    def initial_state(self, batch: int) -> HyenaState:
        tail = self.conv.initial_tail(batch)
        return HyenaState(tail.new_zeros(tail.shape[0] * batch, 0, tail.shape[-1] // 3), tail)

    def step(
        self, x: Tensor, state: HyenaState, position: int, first: FirstLayer | None = None
    ) -> tuple[Tensor, HyenaState]:
        mixed, tail = self.conv.step(self.project(x), state.tail)
        x1, x2, v = mixed.chunk(3, dim=-1)
        u = fold(v * x1)
        y, cache = long_convolution_step(u, self.filters(position + 1), state.cache.to(u.dtype))
        return self.output(y.view(x2.shape) * x2), HyenaState(cache, tail)
