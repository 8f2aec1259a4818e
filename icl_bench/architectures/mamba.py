"""Mamba: a diagonal state-space model in which step, input and output depend on the token.

    x, z = in W,   x = silu(conv(x) + b),   (d, B, C) = x W_x,   d = softplus(d W_d + c)
    h_t[i, n] = exp(-d_t[i] exp(A[i, n])) h_(t-1)[i, n] + d_t[i] B_t[n] x_t[i]
    y_t[i] = sum_n C_t[n] h_t[i, n] + D[i] x_t[i],   out = (y * silu(z)) W_out

There are E C inner channels i, E = `expand`, with N = `d_state` numbers each; d passes through C / 16 columns. At the
start exp(A[i, n]) = n + 1. State: E C N sums, and the tail of the convolution. Work a token: 4 E C N. Source: Gu and
Dao (arXiv 2312.00752). On recall it learns in a narrow range of learning rates (arXiv 2508.19029): sweep them finely.
"""

import math
from typing import ClassVar, NamedTuple, Self, cast

import torch
from pydantic import Field
from torch import Tensor

from icl_bench.architectures.base import (
    ARCHITECTURES,
    Architecture,
    FirstLayer,
    Flops,
    Knob,
    LayerContext,
    Mixer,
    StateSize,
)
from icl_bench.architectures.decays import TORCH_GAIN
from icl_bench.architectures.frame import fold
from icl_bench.architectures.initialisation import constant, fixed, step_bias, uniform_between
from icl_bench.architectures.layers import Coefficients, ShortConv, StackedLinear
from icl_bench.kernels.fleet.products import gated_product
from icl_bench.kernels.scan.api import ScanImpl, initial_scan_state, selective_scan, selective_scan_step

STEP_RANK_DIVISOR = 16


@ARCHITECTURES.register("mamba")
class Mamba(Architecture):
    """Mamba: a selective state space with a decay for each channel and each number of its state."""

    family = "scan"
    published_init = "torch"
    operator = "scan"

    size_parameters = ("d_state", "expand")
    shown = ("d_state",)
    knobs: ClassVar = {
        "width": (
            Knob("d_state", lambda config, d_model, length: range(1, 2049)),
            Knob("expand", lambda config, d_model, length: (2, 1, 3, 4)),
        )
    }

    d_state: int = Field(default=16, ge=1)
    """Numbers in the state of a channel, N."""
    expand: int = Field(default=2, ge=1)
    """Inner channels, relative to the model width, E."""
    conv: int = Field(default=4, ge=1)
    """Width of the short convolution."""

    def resolved(self, d_model: int) -> Self:
        return self

    def build(self, members: int, d_model: int, layer: LayerContext) -> Mixer:
        return MambaMixer(members, d_model, self, layer)

    def state_size(self, d_model: int, length: int) -> StateSize:
        inner = self.expand * d_model
        return StateSize(sums=inner * self.d_state, cache=(self.conv - 1) * inner)

    def flops(self, d_model: int, length: int) -> Flops:
        inner, rank = self.expand * d_model, step_rank(d_model)
        products = inner * (3 * d_model + self.conv + 2 * rank + 2 * self.d_state)
        return Flops(2.0 * products, 4.0 * inner * self.d_state)


def step_rank(d_model: int) -> int:
    """Return the number of columns through which step sizes pass."""
    return math.ceil(d_model / STEP_RANK_DIVISOR)


class MambaState(NamedTuple):
    """State of a `MambaMixer`."""

    sums: Tensor
    """State of the scan, [M·B, E C, N]."""
    tail: Tensor
    """Last inputs of the convolution, [M, B, conv - 1, E C]."""


class MambaMixer(Mixer):
    """The selective scan between projections; see the module."""

    def __init__(self, members: int, d_model: int, config: Mamba, layer: LayerContext) -> None:
        super().__init__()
        inner, rank, bound = config.expand * d_model, step_rank(d_model), config.conv**-0.5
        self.shape, self.impl = (inner, config.d_state), cast(ScanImpl, layer.impl)
        self.project = StackedLinear(members, d_model, 2 * inner)
        self.conv = ShortConv(members, inner, config.conv, silu=True, bias=uniform_between(-bound, bound))
        self.select = StackedLinear(members, inner, rank + 2 * config.d_state)
        self.steps = StackedLinear(members, rank, inner, gain=TORCH_GAIN)
        rates = torch.arange(1, config.d_state + 1, dtype=torch.float64).log().repeat(inner)
        self.log_rate = Coefficients(members, (inner * config.d_state,), fixed(rates))  # a vector, which is not rounded
        self.step_bias = Coefficients(members, (inner,), step_bias())
        self.skip = Coefficients(members, (inner,), constant(1.0))
        self.output = StackedLinear(members, inner, d_model, layer.output_gain)

    def operands(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return the arguments of the scan from the inner x [M, B, (T,) E C], members and batch in one axis."""
        rank = self.steps.weight.shape[1]
        low, b, c = self.select(x).split([rank, self.shape[1], self.shape[1]], dim=-1)
        decays = -self.log_rate.weight.exp().unflatten(-1, self.shape)
        return fold(x), fold(self.steps(low)), decays, fold(b), fold(c), self.skip.weight, self.step_bias.weight

    def forward(self, x: Tensor, first: FirstLayer | None = None) -> Tensor:
        inner, z = self.project.parts(x, [self.shape[0]] * 2)
        y = selective_scan(*self.operands(self.conv(inner)), impl=self.impl)
        return self.output(gated_product(y.view(z.shape), z, "silu"))

    def initial_state(self, batch: int) -> MambaState:
        weight = self.project.weight
        sums = initial_scan_state(weight.shape[0] * batch, *self.shape, device=weight.device, dtype=weight.dtype)
        return MambaState(sums, self.conv.initial_tail(batch))

    def step(
        self, x: Tensor, state: MambaState, position: int, first: FirstLayer | None = None
    ) -> tuple[Tensor, MambaState]:
        inner, z = self.project(x).chunk(2, dim=-1)
        inner, tail = self.conv.step(inner, state.tail)
        y, sums = selective_scan_step(*self.operands(inner), state.sums)
        return self.output(gated_product(y.view(z.shape), z, "silu")), MambaState(sums, tail)
