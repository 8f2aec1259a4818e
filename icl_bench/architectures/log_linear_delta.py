"""Log-linear attention on the gated delta rule: one state for each level of a binary partition of the past.

    y_t = sum_l w_tl (S_t^(l))^T q_t / sqrt(K),   w_t = softplus(L * (x_t W_L)), one for each value head and level
    S_t^(l) = a_t (I - b_t k_t k_t^T) S_(t-1)^(l) for l > 0,   S_t^(0) = b_t k_t v_t^T
    out = (rms_norm(y_t) * silu(x_t W_g)) W_o

Every level goes through the transitions of `gated-delta-net`, whose a, b, q, k and v these are; levels and how they
join are those of `log-linear`. Summed with equal weights, the levels are the state of `gated-delta-net`. State: K V
sums a value head and level, 1 + ceil(log2 T) levels after T tokens, and the tail of the convolution. Work a token: 6 K
V for each level, a value head. Source: Guo et al. (arXiv 2506.04761). Training in half precision walks chunks as
`log-linear` does; else it solves a triangular system for each block of 16 tokens, whose scores it multiplies by their
weights, and for every level above, the first half of each of its spans writes a state by the delta rule, and the second
half reads it while it writes zeros.
"""

from typing import cast

import torch
from pydantic import Field
from torch import Tensor

from icl_bench.architectures.base import ARCHITECTURES, LayerContext, Mixer, StateSize
from icl_bench.architectures.decays import StepDecay
from icl_bench.architectures.deltas import WritingRate
from icl_bench.architectures.frame import fold
from icl_bench.architectures.gated_delta_net import GatedDeltaNet
from icl_bench.architectures.layers import widen
from icl_bench.architectures.log_linear import LevelsCore, LevelsMixer, live_levels
from icl_bench.kernels.delta.api import DeltaImpl, delta_rule
from icl_bench.kernels.delta.records import DeltaInputs, DeltaOptions
from icl_bench.kernels.fleet.level_sums import LevelTokens
from icl_bench.kernels.fleet.products import scale_heads


@ARCHITECTURES.register("log-linear-delta")
class LogLinearDelta(GatedDeltaNet):
    """Log-linear gated delta rule: a state for each doubling of the distance, weighted by each query."""

    levels: int = Field(default=12, ge=1)
    """Levels that have weights, for up to 2^(levels - 1) tokens."""

    def build(self, members: int, d_model: int, layer: LayerContext) -> Mixer:
        full = self.resolved(d_model)
        return LevelsMixer(members, d_model, full.layout, DeltaLevels(members, d_model, full, layer), None, layer)

    def core_size(self, length: int) -> StateSize:
        return StateSize(sums=live_levels(length - 1) * self.groups * self.key_width * self.value_width)

    def gate_products(self, d_model: int) -> int:
        return (2 + self.levels) * d_model * self.groups


class DeltaLevels(LevelsCore):
    """The gated delta rule with a sum for each level."""

    def __init__(self, members: int, d_model: int, config: LogLinearDelta, layer: LayerContext) -> None:
        super().__init__(config.sizes, config.levels, layer)
        self.shared, self.factor = config.groups // config.heads, config.key_width**-0.5
        self.rate = WritingRate(members, d_model, config.groups, config.negative_eigenvalues)
        self.decay = StepDecay(members, d_model, config.groups)
        self.add_weights(members, d_model)

    def spread_keys(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Repeat queries and keys [N, (T,) H, K] for the value heads that share them, in float32."""
        repeated = (part if self.shared == 1 else part.repeat_interleave(self.shared, dim=-2) for part in (q, k))
        q, k = (widen(part) for part in repeated)
        return self.factor * q, k

    def tokens(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> LevelTokens:
        return LevelTokens(q, k, v, self.decay(x), self.rate(x)).apply(fold)

    def across(self, first: LevelTokens, second: LevelTokens, weights: Tensor) -> Tensor:
        impl = cast(DeltaImpl, self.impl)
        before, after = (DeltaInputs(x.q, x.k, x.v, beta=x.rates, log_decay=x.log_decay) for x in (first, second))
        state = delta_rule(before, DeltaOptions(), impl)[1]
        read, _ = delta_rule(after._replace(v=torch.zeros_like(after.v), state=state), DeltaOptions(), impl)
        return scale_heads(read, weights)

    def step(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        queries, keys = self.spread_keys(fold(q), fold(k))
        rates, decays = fold(self.rate(x))[..., None], fold(self.decay(x)).exp()
        held = torch.einsum("nhlkv,nhk->nhlv", state, keys)
        erased = torch.einsum("nhk,nhlv->nhlkv", rates * keys, held)
        state = decays[..., None, None, None] * (state - erased)
        written = (rates * keys)[..., None] * widen(fold(v))[:, :, None]
        state = torch.cat([written[:, :, None], state[:, :, 1:]], dim=2)
        return self.read(queries, state, x).to(v.dtype).unflatten(0, x.shape[:2]), state
