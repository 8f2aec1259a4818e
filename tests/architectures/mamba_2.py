"""Mamba-2: a state-space model whose decay, input and output depend on the token.

    z, x, B, C, d = x W_in,   (x, B, C) = silu(conv(x, B, C) + b),   d = softplus(d + c)
    S_t = exp(-d_t exp(A)) S_(t-1) + B_t (d_t x_t)^T,   y_t = S_t^T C_t + D x_t
    out = rms_norm(y silu(z)) W_out

State: d_state numbers for each of the expand C inner channels, and the tail of the convolution. B and C are shared by
all heads, so that the recurrence is power attention at p = 1 with one key head. Source: Dao and Gu (arXiv 2405.21060).
"""

from typing import Any, ClassVar, NamedTuple, Self

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from icl_bench.architectures.base import (
    ARCHITECTURES,
    Architecture,
    FirstLayer,
    Flops,
    Knob,
    LayerContext,
    Mixer,
    StateSize,
)  # fmt: skip
from icl_bench.architectures.heads import fold
from icl_bench.architectures.initialisation import constant, inverse_softplus, log_uniform, mapped, uniform_between
from icl_bench.architectures.layers import RMSNorm, ShortConv, Stacked, StackedLinear
from icl_bench.errors import SpecError
from icl_bench.kernels.power.api import initial_power_state, power_attention, power_step


@ARCHITECTURES.register("mamba-2")
class Mamba2(Architecture):
    """Selective state space with a scalar decay for each head."""

    size_parameters = ("d_state", "expand", "d_head")
    shown = ("d_state",)
    knobs: ClassVar = {"width": (Knob("d_state", lambda config, d_model, length: range(1, 2049)),)}

    d_state: int = Field(default=16, ge=1)
    """State of an inner channel, N."""
    expand: int = Field(default=2, ge=1)
    """Inner channels, relative to the model width."""
    d_head: int = Field(default=8, ge=1)
    """Inner channels of a head, V."""
    conv: int = Field(default=4, ge=1)
    """Width of the short convolution."""

    def resolved(self, d_model: int) -> Self:
        if self.expand * d_model % self.d_head:
            raise SpecError(f"d_head must divide {self.expand * d_model}; got {self.d_head}; change d_head or expand")
        return self

    def channels(self, d_model: int) -> int:
        """Width of the convolution."""
        return self.expand * d_model + 2 * self.d_state

    def build(self, members: int, d_model: int, layer: LayerContext) -> Mixer:
        return Mamba2Mixer(members, d_model, self.resolved(d_model), layer)

    def state_size(self, d_model: int, length: int) -> StateSize:
        tail = (self.conv - 1) * self.channels(d_model)
        return StateSize(sums=self.expand * d_model * self.d_state, cache=tail)

    def flops(self, d_model: int, length: int) -> Flops:
        inner = self.expand * d_model
        projected = d_model * (2 * inner + self.channels(d_model) + inner // self.d_head)
        return Flops(2.0 * (projected + self.conv * self.channels(d_model)), 4.0 * inner * self.d_state)


class Mamba2State(NamedTuple):
    """State of a `Mamba2Mixer`."""

    sums: Any
    """State of the recurrence."""
    tail: Tensor
    """Last inputs of the convolution, [M, B, conv - 1, channels]."""


class Mamba2Mixer(Mixer, Stacked):
    """See the module; H heads of V inner channels each."""

    conv_bias: Tensor
    rate: Tensor
    step_bias: Tensor
    skip: Tensor

    def __init__(self, members: int, d_model: int, config: Mamba2, layer: LayerContext) -> None:
        super().__init__(members)
        self.config, self.inner = config, config.expand * d_model
        self.heads, self.impl = self.inner // config.d_head, layer.impl
        self.project = StackedLinear(members, d_model, self.inner + config.channels(d_model) + self.heads)
        self.conv = ShortConv(members, config.channels(d_model), config.conv)
        self.declare(
            "conv_bias", (config.channels(d_model),), uniform_between(-(config.conv**-0.5), config.conv**-0.5), False
        )
        self.declare("rate", (self.heads,), mapped(uniform_between(1, 16), torch.log), decay=False)
        self.declare("step_bias", (self.heads,), mapped(log_uniform(1e-3, 1e-1), inverse_softplus), decay=False)
        self.declare("skip", (self.heads,), constant(1.0), decay=False)
        self.norm = RMSNorm(members, self.inner)
        self.output = StackedLinear(members, self.inner, d_model, layer.output_gain)

    def along(self, parameter: Tensor, x: Tensor) -> Tensor:
        """Shape a parameter [M, ...] so that it broadcasts over the axes of x, [M, B, (T,) ...]."""
        return parameter.view(parameter.shape[0], *(1,) * (x.dim() - 2), -1)

    def split(self, projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Split the projection into z, the inputs of the convolution, and the raw steps."""
        z, mixed, step = projected.split([self.inner, self.inner + 2 * self.config.d_state, self.heads], dim=-1)
        return z, mixed, step

    def inputs(self, mixed: Tensor, step: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return queries, keys and values [..., H, .], log decays [..., H] and the inner x [..., H, V]."""
        mixed = functional.silu(mixed + self.along(self.conv_bias, mixed))
        x, key, query = mixed.split([self.inner, self.config.d_state, self.config.d_state], dim=-1)
        x = x.unflatten(-1, (self.heads, -1))
        step = functional.softplus(step + self.along(self.step_bias, step))
        shared = [one[..., None, :].expand(*one.shape[:-1], self.heads, -1) for one in (query, key)]
        return (*shared, step[..., None] * x, (-self.along(self.rate, step).exp() * step).float(), x)

    def project_out(self, y: Tensor, x: Tensor, z: Tensor) -> Tensor:
        """Add the skip, gate, normalise and project: y and x [..., H, V], z [..., inner]."""
        y = (y + self.along(self.skip, y[..., 0])[..., None] * x).flatten(-2)
        out: Tensor = self.output(self.norm(y * functional.silu(z)))
        return out

    def forward(self, x: Tensor, first: FirstLayer | None = None) -> Tensor:
        z, mixed, step = self.split(self.project(x))
        q, k, v, log_g, inner = self.inputs(self.conv(mixed), step)
        y = power_attention(fold(q), fold(k), fold(v), fold(log_g), p=1, scale=1.0, normalize="none", impl=self.impl)
        return self.project_out(y.view(v.shape), inner, z)

    def initial_state(self, batch: int) -> Mamba2State:
        weight = self.project.weight
        sums = initial_power_state(
            weight.shape[0] * batch, self.heads, self.config.d_state, self.config.d_head, p=1, normalize="none",
            device=weight.device, dtype=weight.dtype,
        )  # fmt: skip
        channels = self.inner + 2 * self.config.d_state
        return Mamba2State(sums, weight.new_zeros(weight.shape[0], batch, self.config.conv - 1, channels))

    def step(
        self, x: Tensor, state: Mamba2State, position: int, first: FirstLayer | None = None
    ) -> tuple[Tensor, Mamba2State]:
        z, mixed, step = self.split(self.project(x[:, :, None])[:, :, 0])
        mixed, tail = self.conv.step(mixed, state.tail)
        q, k, v, log_g, inner = self.inputs(mixed, step)
        y, sums = power_step(fold(q), fold(k), fold(v), fold(log_g), state.sums, p=1, scale=1.0, normalize="none")
        return self.project_out(y.view(v.shape), inner, z), Mamba2State(sums, tail)
