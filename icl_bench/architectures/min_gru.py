"""The minimal gated recurrent unit (minGRU): gates that do not read the state, so that a scan computes it.

    h_t = (1 - z_t) * h_(t-1) + z_t * g(x_t W_h),   z_t = sigmoid(x_t W_z),   out = h W_o
    g(u) = u + 1/2 for u >= 0, else sigmoid(u)

State: one number for each of the E C channels, E C = `d_inner`. Work a token: 4 E C. Source: Feng et al. (arXiv
2410.01201). A vector of state, the reference for mixers whose state is a matrix. What it holds meets no query before
the output projection, so that it learns recall slowly, and only where it has many more channels than the model.
"""

from typing import ClassVar, Self, cast

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
from icl_bench.architectures.frame import fold
from icl_bench.architectures.layers import PublishedInit, StackedLinear, widen
from icl_bench.kernels.scan.api import ScanImpl, initial_scan_state, linear_scan, linear_scan_step

WIDEST_STATE = 65_536


@ARCHITECTURES.register("min-gru")
class MinGru(Architecture):
    """Minimal GRU: a vector of state, each channel with its own gate."""

    family = "scan"
    published_init: ClassVar[PublishedInit] = "torch"
    operator = "scan"
    holds_pairs: ClassVar[bool] = False

    size_parameters: ClassVar[tuple[str, ...]] = ("d_inner",)
    knobs: ClassVar = {"width": (Knob("d_inner", lambda config, d_model, length: range(1, WIDEST_STATE + 1)),)}

    d_inner: int | None = Field(default=None, ge=1)
    """Channels of the state; the model width by default."""

    def resolved(self, d_model: int) -> Self:
        return self.model_copy(update={"d_inner": self.d_inner or d_model})

    def channels(self, d_model: int) -> int:
        """Return the channels of the state."""
        return self.d_inner or d_model

    def build(self, members: int, d_model: int, layer: LayerContext) -> Mixer:
        return MinGruMixer(members, d_model, self.channels(d_model), layer)

    def state_size(self, d_model: int, length: int) -> StateSize:
        return StateSize(sums=self.channels(d_model))

    def flops(self, d_model: int, length: int) -> Flops:
        inner = self.channels(d_model)
        return Flops(6.0 * d_model * inner, 4.0 * inner)


class MinGruMixer(Mixer):
    """The linear scan between projections; the state is h, [M·B, E C]."""

    def __init__(self, members: int, d_model: int, inner: int, layer: LayerContext) -> None:
        super().__init__()
        self.inner, self.impl = inner, cast(ScanImpl, layer.impl)
        self.gate = StackedLinear(members, d_model, inner)
        self.candidate = StackedLinear(members, d_model, inner)
        self.output = StackedLinear(members, inner, d_model, layer.output_gain)

    def operands(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return decays and inputs of the scan, [M·B, (T,) E C], in float32."""
        gate = widen(self.gate(x))
        return fold((-gate).sigmoid()), fold(gate.sigmoid() * positive_part(widen(self.candidate(x))))

    def forward(self, x: Tensor, first: FirstLayer | None = None) -> Tensor:
        h = linear_scan(*self.operands(x), impl=self.impl)
        return self.project_out(h.to(x.dtype).unflatten(0, x.shape[:2]), x)

    def project_out(self, h: Tensor, x: Tensor) -> Tensor:
        """Turn states [M, B, (T,) E C] and inputs [M, B, (T,) C] into outputs."""
        return self.output(h)

    def initial_state(self, batch: int) -> Tensor:
        weight = self.gate.weight
        return initial_scan_state(weight.shape[0] * batch, self.inner, device=weight.device, dtype=weight.dtype)

    def step(self, x: Tensor, state: Tensor, position: int, first: FirstLayer | None = None) -> tuple[Tensor, Tensor]:
        h, state = linear_scan_step(*self.operands(x), state)
        return self.project_out(h.to(x.dtype).unflatten(0, x.shape[:2]), x), state


def positive_part(u: Tensor) -> Tensor:
    """Return u + 1/2 where u >= 0, else sigmoid(u): a continuous function that is never negative."""
    return torch.where(u >= 0, u + 0.5, u.sigmoid())
