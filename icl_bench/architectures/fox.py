"""The forgetting transformer (FoX): softmax attention with a forget gate, without positions.

    A_ij = exp(G_i - G_j) exp(q_i·k_j / sqrt(K)), j <= i,   G = running sum of log sigmoid(x W_f + b_f)
    y_i  = sum_j A_ij v_j / sum_j A_ij

In its `pro` block, keys and values are mixed with those of the token before, queries and keys have an RMS norm with a
gain, and the output a norm and a gate:

    k_t <- s_t k_(t-1) + (1 - s_t) k_t,   s_t = sigmoid(x_t W_s), one for each head; values alike with their own s
    out = (rms_norm(y) * sigmoid(x W_g)) W_o

State: the cache, H (K + V + 1) T numbers, and one key and value a head in the pro block. Work a token: 2 H (K + V) for
each key seen. Source: Lin et al. (arXiv 2503.02130).
"""

from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from icl_bench.architectures.base import ARCHITECTURES, Flops, LayerContext, StateSize
from icl_bench.architectures.decays import DecayGate
from icl_bench.architectures.frame import Core, HeadsLayout
from icl_bench.architectures.heads import RecurrentHeads
from icl_bench.architectures.initialisation import uniform_between
from icl_bench.architectures.layers import RMSNorm, StackedLinear, delayed
from icl_bench.architectures.softmax import CacheCore
from icl_bench.kernels.attention.records import KeyValueCache


@ARCHITECTURES.register("fox")
class Fox(RecurrentHeads):
    """Forgetting transformer: softmax attention whose scores decay by a learned gate."""

    family = "attention"
    operator = "attention"

    conv: int = Field(default=0, ge=0)
    """Width of the short convolution on queries, keys and values; 0 for none."""
    pro: bool = True
    """Mix keys and values with those of the token before, and add norms and the output gate."""

    @property
    def layout(self) -> HeadsLayout:
        return super().layout._replace(output_norm="head", output_gate="sigmoid") if self.pro else super().layout

    def core(self, members: int, d_model: int, gate: DecayGate | None, layer: LayerContext) -> Core:
        return (ProCore if self.pro else ForgettingCore)(members, d_model, self, layer)

    def core_size(self, length: int) -> StateSize:
        widths = self.heads * (self.key_width + self.value_width)
        return StateSize(sums=self.heads * length, cache=widths * (length + self.pro))

    def core_flops(self, d_model: int, length: int) -> Flops:
        gates = self.heads * (3 if self.pro else 1)
        return Flops(2.0 * d_model * gates, self.heads * (self.key_width + self.value_width) * (length + 1.0))


class ForgettingCore(CacheCore):
    """Softmax attention with a forget gate of its own."""

    def __init__(self, members: int, d_model: int, config: Fox, layer: LayerContext) -> None:
        sizes, bound = (config.heads, config.key_width, config.value_width), d_model**-0.5
        super().__init__(sizes, None, True, None, layer)
        self.forget = DecayGate(members, d_model, config.heads, bias=uniform_between(-bound, bound), decay=False)

    def log_gate(self, x: Tensor) -> Tensor:
        return self.forget(x)


class ProState(NamedTuple):
    """State of a `ProCore`."""

    cache: KeyValueCache
    k: Tensor
    """Key of the last token before it was mixed, [M, B, H, K]."""
    v: Tensor
    """Value of the last token before it was mixed, [M, B, H, V]."""


class ProCore(Core):
    """Softmax attention with a forget gate on mixed keys and values; queries and keys are normalised."""

    def __init__(self, members: int, d_model: int, config: Fox, layer: LayerContext) -> None:
        super().__init__()
        self.attention = ForgettingCore(members, d_model, config, layer)
        self.key_shift = StackedLinear(members, d_model, config.heads)
        self.value_shift = StackedLinear(members, d_model, config.heads)
        self.query_norm = RMSNorm(members, config.key_width, eps=1e-5, decay=False)
        self.key_norm = RMSNorm(members, config.key_width, eps=1e-5, decay=False)

    def mixed(self, k: Tensor, v: Tensor, x: Tensor, before: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Mix keys and values with those of the tokens before."""
        shares = (self.key_shift(x).sigmoid()[..., None], self.value_shift(x).sigmoid()[..., None])
        return torch.lerp(k, before[0], shares[0].to(k.dtype)), torch.lerp(v, before[1], shares[1].to(v.dtype))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        k, v = self.mixed(k, v, x, (delayed(k), delayed(v)))
        return self.attention(self.query_norm(q), self.key_norm(k), v, x)

    def initial_state(self, batch: int, like: Tensor) -> ProState:
        heads, key_width, value_width = self.attention.sizes
        shape = (like.shape[0], batch, heads)
        rows = like.new_zeros(*shape, key_width), like.new_zeros(*shape, value_width)
        return ProState(self.attention.initial_state(batch, like), *rows)

    def step(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, state: ProState) -> tuple[Tensor, ProState]:
        key, value = self.mixed(k, v, x, (state.k, state.v))
        y, cache = self.attention.step(self.query_norm(q), self.key_norm(key), value, x, state.cache)
        return y, ProState(cache, k, v)
