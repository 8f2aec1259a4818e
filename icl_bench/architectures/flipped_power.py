"""Powers of scores with the sign of the other parity, a control that has no recurrence of fixed size.

    A_ij = |s_ij|^p for odd p,   sign(s_ij) |s_ij|^p for even p,   s_ij = q_i·k_j / sqrt(K)
    y_i  = rms_norm(sum_j A_ij v_j), j <= i, per head

Beside `power` with the same p and a norm it tells what the degree does from what the sign of scores does: |s|^3 is as
steep as s^3, and all of its weights are positive, as those of s^2 are. Neither is a polynomial, so that no expansion of
the keys has such scores and all keys and values are kept.

State: the cache, H (K + V) T numbers. Work a token: 2 H (K + V) for each key seen. Source: power attention (arXiv
2507.04239); the control is this project's own.
"""

import torch
from pydantic import Field
from torch import Tensor

from icl_bench.architectures.base import ARCHITECTURES, Flops, LayerContext, StateSize
from icl_bench.architectures.decays import DecayGate
from icl_bench.architectures.frame import Core, HeadsLayout, fold
from icl_bench.architectures.heads import RecurrentHeads
from icl_bench.architectures.layers import widen
from icl_bench.kernels.attention.api import empty_cache
from icl_bench.kernels.attention.records import KeyValueCache
from icl_bench.kernels.fleet.flipped_powers import causal_flipped_powers, flipped_powers


@ARCHITECTURES.register("flipped-power")
class FlippedPower(RecurrentHeads):
    """Power attention with the signs of the other parity: |s|^p for odd p, sign(s) |s|^p for even p."""

    family = "attention"
    shown = ("p",)

    p: int = Field(default=3, ge=1, le=6)
    """Power of the absolute scores."""

    @property
    def layout(self) -> HeadsLayout:
        return super().layout._replace(output_norm="head", norm_eps=1e-6, decay_norms=True)

    def core(self, members: int, d_model: int, gate: DecayGate | None, layer: LayerContext) -> Core:
        return FlippedCore(self)

    def core_size(self, length: int) -> StateSize:
        return StateSize(cache=self.heads * (self.key_width + self.value_width) * length)

    def core_flops(self, d_model: int, length: int) -> Flops:
        return Flops(0.0, self.heads * (self.key_width + self.value_width) * (length + 1.0))


class FlippedCore(Core):
    """Sums of values weighted by powers of scores with flipped signs, by the definition."""

    def __init__(self, config: FlippedPower) -> None:
        super().__init__()
        self.p, self.widths, self.heads = config.p, (config.key_width, config.value_width), config.heads

    def forward(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        scores = torch.einsum("mbihk,mbjhk->mbhij", q, k)
        weights = causal_flipped_powers(scores, self.p, self.widths[0] ** -0.5)
        return torch.einsum("mbhij,mbjhv->mbihv", weights.to(v.dtype), v)

    def initial_state(self, batch: int, like: Tensor) -> KeyValueCache:
        rows = like.shape[0] * batch
        return empty_cache(rows, self.heads, *self.widths, gated=False, device=like.device, dtype=like.dtype)

    def step(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, state: KeyValueCache) -> tuple[Tensor, KeyValueCache]:
        keys, values = torch.cat([state.k, fold(k)[:, None]], 1), torch.cat([state.v, fold(v)[:, None]], 1)
        scores = widen(torch.einsum("nhk,nthk->nht", fold(q), keys)) * self.widths[0] ** -0.5
        weights = flipped_powers(scores, self.p).to(v.dtype)
        y = torch.einsum("nht,nthv->nhv", weights, values)
        return y.unflatten(0, q.shape[:2]), KeyValueCache(keys, values, None)
