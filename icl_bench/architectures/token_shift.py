"""Shared parts of the RWKV mixers: inputs mixed with the token before, around an operator; ramps over channels."""

from abc import abstractmethod
from typing import NamedTuple, cast

import torch
from torch import Tensor

from icl_bench.architectures.base import FirstLayer, LayerContext, Mixer, StateSize
from icl_bench.architectures.deltas import folded
from icl_bench.architectures.heads import HeadSizes
from icl_bench.kernels.delta.api import DeltaImpl, delta_rule, delta_step, initial_delta_state
from icl_bench.kernels.delta.records import DeltaInputs, DeltaOptions
from icl_bench.kernels.fleet.rows import take_rows
from icl_bench.kernels.fleet.token_pairs import token_pairs

NORM_EPS = 1e-5
"""Added to the variance in the norm of each head, for each of its columns; 0.00064 at the published 64 columns."""


class ShiftedHeads(HeadSizes):
    """Base of the mixers whose inputs are mixed with the token before: the state is a matrix a head, and that token."""

    def state_size(self, d_model: int, length: int) -> StateSize:
        full = self.resolved(d_model)
        return StateSize(sums=full.heads * full.key_width * full.value_width, cache=d_model)

    def channels(self) -> tuple[int, int]:
        """Return the widths of keys and of values, all heads together, of a resolved architecture."""
        return self.heads * self.key_width, self.heads * self.value_width


class ShiftState(NamedTuple):
    """State of a mixer with token shift."""

    sums: Tensor
    """Values by key, [M·B, H, K, V]."""
    x: Tensor
    """Input of the last token, [M, B, C]."""


class ShiftMixer(Mixer):
    """Token shift, projections and a gate around the delta rule or gated linear attention of a subclass."""

    options: DeltaOptions

    def __init__(self, d_model: int, config: ShiftedHeads, layer: LayerContext) -> None:
        super().__init__()
        self.d_model, self.layer, self.impl = d_model, layer, cast(DeltaImpl, layer.impl)
        self.key_shape, self.value_width = (config.heads, config.key_width), config.value_width

    @property
    def value_shape(self) -> tuple[int, int]:
        return self.key_shape[0], self.value_width

    @abstractmethod
    def parts(self, x: Tensor, before: Tensor | None) -> dict[str, Tensor]:
        """Project x and the token before it, [M, B, (T,) C] each: [M, B, (T,) width] by name; `g` is for the gate.

        Where `before` is None, it is that in x [M, B, T, C], zeros before the first.
        """

    @abstractmethod
    def inputs(self, parts: dict[str, Tensor], v: Tensor) -> DeltaInputs:
        """Return the inputs of the operator without the state, [M, B, (T,) H, .] each."""

    @abstractmethod
    def finish(self, y: Tensor, inputs: DeltaInputs) -> Tensor:
        """Normalise the output of the operator: [M, B, (T,) H, V] -> [M, B, (T,) H V]."""

    @abstractmethod
    def project_out(self, y: Tensor, g: Tensor) -> Tensor:
        """Apply output gate and output projection."""

    def exchange(self, parts: dict[str, Tensor], first: FirstLayer | None) -> Tensor:
        """Return the values [M, B, (T,) H, V]; the first layer offers them to later ones."""
        v: Tensor = parts["v"].unflatten(-1, self.value_shape)
        if first is not None and self.layer.index == 0:
            first.values = v
        return v

    def forward(self, x: Tensor, first: FirstLayer | None = None) -> Tensor:
        return self.project_out(*self.mix(x, first))

    def forward_at(self, x: Tensor, positions: Tensor, first: FirstLayer | None = None) -> Tensor:
        return self.project_out(*self.mix(x, first, positions))

    def mix(self, x: Tensor, first: FirstLayer | None, positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the normalised output of all heads [M, B, T or S, H V], and the part that is for the gate."""
        return self.mix_parts(self.parts(x, None), first, positions)

    def mix_parts(
        self, parts: dict[str, Tensor], first: FirstLayer | None, positions: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Compute `mix` from the projections of x by name."""
        inputs = self.inputs(parts, self.exchange(parts, first))
        y, _ = delta_rule(folded(inputs), self.options, self.impl)
        y, g = self.finish(y.unflatten(0, parts["g"].shape[:2]), inputs), parts["g"]
        return (y, g) if positions is None else (take_rows(y, positions), take_rows(g, positions))

    def initial_state(self, batch: int) -> ShiftState:
        like = next(self.parameters())
        sizes = (*self.key_shape, self.value_width)
        sums = initial_delta_state(like.shape[0] * batch, *sizes, device=like.device, dtype=like.dtype)
        return ShiftState(sums, like.new_zeros(like.shape[0], batch, self.d_model))

    def step(
        self, x: Tensor, state: ShiftState, position: int, first: FirstLayer | None = None
    ) -> tuple[Tensor, ShiftState]:
        parts = self.parts(x, state.x)
        inputs = self.inputs(parts, self.exchange(parts, first))
        y, sums = delta_step(one_token(inputs)._replace(state=state.sums), self.options)
        return self.project_out(self.finish(y[:, 0].unflatten(0, x.shape[:2]), inputs), parts["g"]), ShiftState(sums, x)


def beside_before(x: Tensor, before: Tensor | None, d_model: int) -> Tensor:
    """Return tokens beside the token before each, [M, B, (T,) 2 C]; `before` None is that in x, or stands there."""
    if before is not None:
        return torch.cat([x, before], dim=-1)
    return token_pairs(x) if x.shape[-1] == d_model else x


def one_token(inputs: DeltaInputs) -> DeltaInputs:
    """Return inputs [M, B, ...] of one token with members and batch joined and an axis T of 1; a bonus has no T."""
    joined = folded(inputs)
    return DeltaInputs._make(None if x is None else x[:, None] for x in joined)._replace(bonus=joined.bonus)


def rising(count: int) -> Tensor:
    """Return `count` numbers from 0 to 1, evenly spaced, in float64; 0 alone for one."""
    return torch.linspace(0, 1, count, dtype=torch.float64)


def depth(layer: LayerContext) -> float:
    """Return the place of a layer between the first, 0, and the last, 1; 0 in a model of one layer."""
    return layer.index / (layer.layers - 1) if layer.layers > 1 else 0.0
