"""Mamba-3: a state-space model with two writes to a token, rotated keys and no convolution.

    C_t, B_t = rms_norm(x W) + one bias for each head, both rotated by phi_t;   d_t = softplus(x_t W_d + c)
    phi_t = phi_(t-1) + pi tanh(x_t W_r) d_t,   l_t = sigmoid(x_t W_l),   a_t = exp(-d_t max(softplus(x_t W_a), 1e-4))
    S_t = a_t S_(t-1) + (1 - l_t) d_t a_t B_(t-1) x_(t-1)^T + l_t d_t B_t x_t^T,   y_t = S_t^T C_t + D x_t
    out = (y * silu(x W_z)) W_out

Steps, decays and shares l are those of a head; the first half of the K channels of keys and queries is rotated, each
pair by an angle of its own. State: K V sums a head, and the key, the value and the angles of the token before. Work a
token: 6 K V a head. Source: arXiv 2603.15569, with one input to a head.
"""

import math
from typing import NamedTuple, Self, cast

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from icl_bench.architectures.base import ARCHITECTURES, Flops, LayerContext, StateSize
from icl_bench.architectures.decays import DecayGate, StepSizes
from icl_bench.architectures.deltas import folded
from icl_bench.architectures.frame import Core, HeadsLayout
from icl_bench.architectures.heads import RecurrentHeads
from icl_bench.architectures.initialisation import constant
from icl_bench.architectures.layers import Coefficients, StackedLinear, widen
from icl_bench.errors import SpecError
from icl_bench.kernels.delta.api import DeltaImpl, delta_rule, delta_step, initial_delta_state
from icl_bench.kernels.delta.records import DeltaInputs, DeltaOptions
from icl_bench.kernels.fleet.products import scale_heads
from icl_bench.kernels.fleet.projection import project
from icl_bench.kernels.fleet.rotation import rotate_pairs
from icl_bench.kernels.fleet.weighted_dots import weighted_dots

STATE_WIDTH = 16
LEAST_RATE = 1e-4


@ARCHITECTURES.register("mamba-3")
class Mamba3(RecurrentHeads):
    """Mamba-3: writes of this token and of the one before, and keys rotated by data-dependent angles."""

    family = "decay of heads"
    published_init = "torch"
    operator = "delta"

    shown = ("d_key",)

    conv: int = Field(default=0, ge=0)
    """Width of the short convolution on queries, keys and values; 0 for none."""

    def default_widths(self, d_model: int) -> tuple[int, int]:
        return STATE_WIDTH, 2 * d_model // self.heads

    def resolved(self, d_model: int) -> Self:
        full = super().resolved(d_model)
        if full.key_width < 4:
            raise SpecError(f"half of the keys is rotated in pairs, so d_key is at least 4; got {full.d_key}; raise it")
        return full

    def key_rank(self, d_model: int) -> tuple[int, int] | None:
        return None

    @property
    def pairs(self) -> int:
        """Number of rotated pairs of key channels, of a resolved architecture."""
        return self.key_width // 4

    @property
    def layout(self) -> HeadsLayout:
        return super().layout._replace(query_heads=1, key_heads=1, key_norm="rms", output_gate="silu")

    def core(self, members: int, d_model: int, gate: DecayGate | None, layer: LayerContext) -> Core:
        return TrapezoidCore(members, d_model, self, layer)

    def core_size(self, length: int) -> StateSize:
        token = self.heads * (self.key_width + self.value_width)
        sums = self.heads * (self.key_width * self.value_width + self.pairs)
        return StateSize(sums=sums, cache=token)

    def core_flops(self, d_model: int, length: int) -> Flops:
        own = d_model * (3 * self.heads + self.pairs)
        return Flops(2.0 * own, 6.0 * self.heads * self.key_width * self.value_width)


class TrapezoidState(NamedTuple):
    """State of a `TrapezoidCore`."""

    sums: Tensor
    """Sums of keys times values, [M·B, H, K, V]."""
    k: Tensor
    """Rotated key of the last token, [M, B, H, K]."""
    v: Tensor
    """Value of the last token, [M, B, H, V]."""
    angles: Tensor
    """Angles of the last token, [M, B, H, pairs]."""


class Coordinates(NamedTuple):
    """Rotated queries and keys [M, B, T, H, K], angles [M, B, T, H, pairs], and coefficients [M, B, T, H]."""

    q: Tensor
    k: Tensor
    angles: Tensor
    steps: Tensor
    log_decay: Tensor
    share: Tensor


class TrapezoidCore(Core):
    """Linear attention with a scalar decay and two writes to a token."""

    def __init__(self, members: int, d_model: int, config: Mamba3, layer: LayerContext) -> None:
        super().__init__()
        heads, self.pairs, self.sizes = config.heads, config.pairs, (config.heads, config.key_width, config.value_width)
        self.options, self.impl = DeltaOptions(rule="linear", scale=1.0), cast(DeltaImpl, layer.impl)
        self.ahead = self.options._replace(ahead=True)
        self.steps = StepSizes(members, d_model, heads)
        self.rate = StackedLinear(members, d_model, heads)
        self.share = StackedLinear(members, d_model, heads)
        self.speed = StackedLinear(members, d_model, self.pairs)
        self.query_bias = Coefficients(members, (heads, config.key_width), constant(1.0))
        self.key_bias = Coefficients(members, (heads, config.key_width), constant(1.0))
        self.skip = Coefficients(members, (heads, 1), constant(1.0))

    def coordinates(self, q: Tensor, k: Tensor, x: Tensor, before: Tensor | None) -> Coordinates:
        """Return rotated queries and keys and the coefficients of T tokens, after angles `before`, None for zeros.

        These are [M, B, heads, pairs].
        """
        parts = [self.steps.project.weight, self.rate.weight, self.share.weight, self.speed.weight]
        raw = widen(project(x.flatten(1, -2), torch.cat(parts, dim=-1)).view(*x.shape[:-1], -1))
        step, rate, share, speed = raw.split([part.shape[-1] for part in parts], dim=-1)
        steps = self.steps.sizes(step)
        rates = functional.softplus(rate).clamp(min=LEAST_RATE)
        angles = (math.pi * speed.tanh()[..., None, :] * steps[..., None]).cumsum(2)
        angles = angles if before is None else before[:, :, None] + angles
        cos, sin = angles.cos(), angles.sin()
        q, k = (rotate_pairs(part, cos, sin) for part in (q + self.query_bias(q), k + self.key_bias(k)))
        return Coordinates(q, k, angles, steps, -rates * steps, share.sigmoid())

    def forward(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        """Write each token once, as both of its writes, for all tokens behind it; its own query reads the first alone.

        A query reads the state before its token, so that no output depends on a later token.
        """
        at = self.coordinates(q, k, x, None)
        own = at.share * at.steps
        written = scale_heads(v, own + functional.pad(((1 - at.share) * at.steps)[:, :, 1:], (0, 0, 0, 1)))
        queries = scale_heads(at.q, at.log_decay.exp())
        y, _ = delta_rule(folded(DeltaInputs(queries, at.k, written, log_decay=at.log_decay)), self.ahead, self.impl)
        ones = at.q.new_ones(1).expand(at.q.shape[0], *at.q.shape[-2:])
        direct = self.skip(v)[..., 0] + own * weighted_dots(at.q, at.k, ones)
        return scale_heads(v, direct, y.view(v.shape))

    def initial_state(self, batch: int, like: Tensor) -> TrapezoidState:
        heads, key_width, value_width = self.sizes
        shape = (like.shape[0], batch, heads)
        sums = initial_delta_state(shape[0] * batch, *self.sizes, device=like.device, dtype=like.dtype)
        rows = like.new_zeros(*shape, key_width), like.new_zeros(*shape, value_width)
        return TrapezoidState(sums, *rows, sums.new_zeros(*shape, self.pairs))

    def step(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, state: TrapezoidState) -> tuple[Tensor, TrapezoidState]:
        q, k, value, x = (part[:, :, None] for part in (q, k, v, x))
        at = self.coordinates(q, k, x, state.angles)
        earlier = (1 - at.share) * at.steps * at.log_decay.exp()
        keys = torch.cat([state.k[:, :, None].to(at.k.dtype), at.k], dim=2)
        values = torch.cat([scale_heads(state.v[:, :, None], earlier), scale_heads(value, at.share * at.steps)], dim=2)
        inputs = folded(DeltaInputs(at.q, keys, values, log_decay=at.log_decay))
        y, sums = delta_step(inputs._replace(state=state.sums), self.options)
        return torch.addcmul(y.view(v.shape), self.skip(v), v), TrapezoidState(
            sums, at.k[:, :, 0], v, at.angles[:, :, 0]
        )
