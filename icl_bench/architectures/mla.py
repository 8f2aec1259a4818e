"""Multi-head latent attention (MLA): softmax attention whose keys and values are made from one short vector a token.

    A_ij = exp((q_i·k_j + r_i·s_j) / sqrt(K + R)) for j <= i,   y_i = sum_j A_ij v_j / sum_j A_ij
    c_t = rms_norm(x_t W_c),   k_t, v_t = c_t W_k, c_t W_v, of each head,   out = y W_o
    s_t = R(t) x_t W_s, one for all heads,   q_t, R(t)^-1 r_t = x_t W_q, of each head

R(t) rotates by position (Su et al., arXiv 2104.09864). State: the cache of c and s, (L + R) T numbers, L = `d_latent`,
where softmax attention keeps H (K + V) T. Work a token: 2 H (2 L + R) for each key seen, with W_k taken into the query
and W_v into the output. Source: DeepSeek-AI (arXiv 2405.04434), with queries of full rank.
"""

from typing import ClassVar, NamedTuple, Self, cast

import torch
from pydantic import Field
from torch import Tensor

from icl_bench.architectures.base import ARCHITECTURES, FirstLayer, Flops, Knob, LayerContext, Mixer, StateSize
from icl_bench.architectures.frame import fold
from icl_bench.architectures.heads import HeadSizes
from icl_bench.architectures.layers import RMSNorm, StackedLinear, widen
from icl_bench.architectures.rotation import rotate
from icl_bench.errors import SpecError
from icl_bench.kernels.attention.api import AttentionImpl, attention

WIDEST_LATENT = 2048


@ARCHITECTURES.register("mla")
class LatentAttention(HeadSizes):
    """Multi-head latent attention: a cache of one short vector a token, from which all heads make keys and values."""

    family = "attention"
    operator = "attention"

    size_parameters: ClassVar[tuple[str, ...]] = ("heads", "d_key", "d_value", "d_latent", "d_rope")
    knobs: ClassVar = {"width": (Knob("d_latent", lambda config, d_model, length: range(1, WIDEST_LATENT + 1)),)}
    shown = ("d_latent",)

    d_latent: int | None = Field(default=None, ge=1)
    """Width of the vector from which keys and values are made, L; half the model width by default."""
    d_rope: int | None = Field(default=None, ge=2)
    """Width of the rotated part of queries and keys, R, an even number; about half a head's width by default."""

    def resolved(self, d_model: int) -> Self:
        full = super().resolved(d_model)
        given = {
            "d_latent": self.d_latent or max(1, d_model // 2),
            "d_rope": self.d_rope or 2 * (full.key_width // 4) or 2,
        }
        full = full.model_copy(update=given)
        if full.rotated_width % 2:
            raise SpecError(f"rotated keys have an even width; got d_rope={full.d_rope}; change d_rope")
        return full

    @property
    def latent_width(self) -> int:
        """Width of the vector from which keys and values are made, of a resolved architecture."""
        assert self.d_latent is not None
        return self.d_latent

    @property
    def rotated_width(self) -> int:
        """Width of the rotated part of a key, of a resolved architecture."""
        assert self.d_rope is not None
        return self.d_rope

    def build(self, members: int, d_model: int, layer: LayerContext) -> Mixer:
        return LatentMixer(members, d_model, self.resolved(d_model), layer)

    def state_size(self, d_model: int, length: int) -> StateSize:
        full = self.resolved(d_model)
        return StateSize(cache=(full.latent_width + full.rotated_width) * length)

    def flops(self, d_model: int, length: int) -> Flops:
        full = self.resolved(d_model)
        heads, latent, rotated = full.heads, full.latent_width, full.rotated_width
        projections = d_model * (heads * (full.key_width + rotated + full.value_width) + latent + rotated)
        absorbed = heads * latent * (full.key_width + full.value_width)
        return Flops(2.0 * (projections + absorbed), heads * (2.0 * latent + rotated) * (length + 1.0))


class LatentState(NamedTuple):
    """State of a `LatentMixer`."""

    latent: Tensor
    """Normalised vectors from which keys and values are made, [M, B, T, L]."""
    rotated: Tensor
    """Rotated keys, one for all heads, [M, B, T, R]."""


class LatentMixer(Mixer):
    """Softmax attention over keys and values that are made from the cached vectors."""

    def __init__(self, members: int, d_model: int, config: LatentAttention, layer: LayerContext) -> None:
        super().__init__()
        self.config, self.impl = config, cast(AttentionImpl, layer.impl)
        heads, latent = config.heads, config.latent_width
        self.query = StackedLinear(members, d_model, heads * (config.key_width + config.rotated_width))
        self.compress = StackedLinear(members, d_model, latent + config.rotated_width)
        self.norm = RMSNorm(members, latent, decay=False)
        self.expand = StackedLinear(members, latent, heads * (config.key_width + config.value_width))
        self.output = StackedLinear(members, heads * config.value_width, d_model, layer.output_gain)

    def coordinates(self, x: Tensor, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries [M, B, (T,) H, K + R], normalised vectors [.., L] and rotated keys [.., R] of tokens x."""
        sizes = [self.config.key_width, self.config.rotated_width]
        q = self.query(x).unflatten(-1, (self.config.heads, sum(sizes)))
        plain, turned = q.split(sizes, dim=-1)
        latent, key = self.compress(x).split([self.config.latent_width, sizes[1]], dim=-1)
        turned, key = rotate(turned, key[..., None, :], places)
        return torch.cat([plain, turned], dim=-1), self.norm(latent), key.squeeze(-2)

    def keys_and_values(self, latent: Tensor, rotated: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys [M, B, T, H, K + R] and values [M, B, T, H, V] from what the cache holds."""
        made = self.expand(latent).unflatten(-1, (self.config.heads, -1))
        k, v = made.split([self.config.key_width, self.config.value_width], dim=-1)
        shared = rotated[..., None, :].expand(*k.shape[:-1], -1)
        return torch.cat([k, shared], dim=-1), v

    def forward(self, x: Tensor, first: FirstLayer | None = None) -> Tensor:
        q, latent, rotated = self.coordinates(x, torch.arange(x.shape[2], device=x.device)[:, None])
        k, v = self.keys_and_values(latent, rotated)
        y = attention(fold(q), fold(k), fold(v), impl=self.impl)
        return self.output(y.reshape(*x.shape[:-1], -1))

    def initial_state(self, batch: int) -> LatentState:
        weight, sizes = self.query.weight, (self.config.latent_width, self.config.rotated_width)
        return LatentState(*(weight.new_zeros(weight.shape[0], batch, 0, width) for width in sizes))

    def step(
        self, x: Tensor, state: LatentState, position: int, first: FirstLayer | None = None
    ) -> tuple[Tensor, LatentState]:
        q, latent, rotated = self.coordinates(x, torch.tensor([position], device=x.device))
        pairs = zip(state, (latent, rotated), strict=True)
        state = LatentState(*(torch.cat([kept.to(new.dtype), new[:, :, None]], dim=2) for kept, new in pairs))
        k, v = self.keys_and_values(*state)
        scores = (widen(k) * widen(q)[:, :, None]).sum(-1) * q.shape[-1] ** -0.5
        y = (scores.softmax(2)[..., None] * widen(v)).sum(2)
        return self.output(y.to(x.dtype).flatten(-2)), state
