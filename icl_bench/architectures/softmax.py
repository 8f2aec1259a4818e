"""Softmax attention: every key and value is kept.

    A_ij = exp(G_i - G_j) exp(q_i·k_j / sqrt(K)) for j <= i,   y_i = sum_j A_ij v_j / sum_j A_ij

State: the cache, G (K + V) T numbers, and G T more where there is a gate. Work a token: 2 H (K + V) for each key
seen. Source: Vaswani et al. (arXiv 1706.03762); the gate is that of the forgetting transformer (Lin et al.,
arXiv 2503.02130).
"""

from typing import cast

from torch import Tensor

from icl_bench.architectures.base import ARCHITECTURES, Flops, LayerContext, StateSize
from icl_bench.architectures.decays import DecayGate
from icl_bench.architectures.frame import Core, fold
from icl_bench.architectures.heads import HeadsArchitecture
from icl_bench.kernels.attention.api import AttentionImpl, attention, attention_step, empty_cache
from icl_bench.kernels.attention.records import KeyValueCache


class CacheCore(Core):
    """Keys and values unchanged, all of them or the last `reach`."""

    def __init__(
        self, sizes: tuple[int, int, int], reach: int | None, gated: bool, gate: DecayGate | None, layer: LayerContext
    ) -> None:
        super().__init__(gate)
        self.sizes, self.reach, self.gated = sizes, reach, gated
        self.impl = cast(AttentionImpl, layer.impl)

    def folded(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return the arguments of attention, with members and batch in one axis."""
        log_g = self.log_gate(x)
        return fold(q), fold(k), fold(v), None if log_g is None else fold(log_g)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        y = attention(*self.folded(q, k, v, x), window=self.reach, impl=self.impl)
        return y.view(*q.shape[:-1], -1)

    def initial_state(self, batch: int, like: Tensor) -> KeyValueCache:
        sequences = like.shape[0] * batch
        return empty_cache(sequences, *self.sizes, gated=self.gated, device=like.device, dtype=like.dtype)

    def step(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, state: KeyValueCache) -> tuple[Tensor, KeyValueCache]:
        y, state = attention_step(*self.folded(q, k, v, x), state, window=self.reach)
        return y.view(*q.shape[:-1], -1), state


class CacheHeads(HeadsArchitecture):
    """Base of the architectures that keep keys and values: the size of their state and their work."""

    family = "attention"
    operator = "attention"

    def core_size(self, length: int) -> StateSize:
        kept = length if self.reach is None else min(self.reach, length)
        decays = self.key_value_heads * kept if self.gate else 0
        return StateSize(sums=decays, cache=self.key_value_heads * (self.key_width + self.value_width) * kept)

    def core_flops(self, d_model: int, length: int) -> Flops:
        kept = length if self.reach is None else min(self.reach, length)
        seen = (kept * (kept + 1) / 2 + (length - kept) * kept) / length
        return Flops(0.0, 2.0 * self.heads * (self.key_width + self.value_width) * seen)

    def core(self, members: int, d_model: int, gate: DecayGate | None, layer: LayerContext) -> Core:
        return CacheCore(self.sizes, self.reach, self.gate, gate, layer)


@ARCHITECTURES.register("softmax")
class Softmax(CacheHeads):
    """Softmax attention over the whole past: its state, the cache, grows with every token."""
