"""Softmax attention: every key and value is kept.

    A_ij = exp(G_i - G_j) exp(q_i·k_j / sqrt(K)) for j <= i,   y_i = sum_j A_ij v_j / sum_j A_ij

State: the cache, G (K + V) T numbers, and G T more where there is a gate. Work a token: 2 H (K + V) for each key
seen. Source: Vaswani et al. (arXiv 1706.03762); the gate is that of the forgetting transformer (Lin et al.,
arXiv 2503.02130).
"""

from abc import abstractmethod
from typing import cast

from torch import Tensor

from icl_bench.architectures.base import ARCHITECTURES, StateSize
from icl_bench.architectures.heads import HeadsArchitecture, Memory
from icl_bench.kernels.attention.api import Impl, KeyValueCache, attention, attention_step, empty_cache


class CacheMemory(Memory):
    """Keys and values as they are, all of them or the last `window`."""

    def __init__(self, config: HeadsArchitecture, window: int | None, impl: Impl) -> None:
        self.config = config
        self.window = window
        self.impl: Impl = impl

    def attend(self, q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None) -> Tensor:
        return attention(q, k, v, log_g, window=self.window, impl=self.impl)

    def initial_state(self, n: int, like: Tensor) -> KeyValueCache:
        full = self.config
        return empty_cache(
            n,
            full.key_value_heads,
            full.key_width,
            full.value_width,
            gated=full.gate,
            device=like.device,
            dtype=like.dtype,
        )

    def step(
        self, q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, state: KeyValueCache
    ) -> tuple[Tensor, KeyValueCache]:
        return attention_step(q, k, v, log_g, state, window=self.window)


class CacheHeads(HeadsArchitecture):
    """Base of the architectures that keep keys and values: what their state and their work come to."""

    @property
    @abstractmethod
    def reach(self) -> int | None:
        """Keys kept at most; None for all."""

    def memory_size(self, length: int) -> StateSize:
        kept = length if self.reach is None else min(self.reach, length)
        decays = self.key_value_heads * kept if self.gate else 0
        return StateSize(sums=decays, cache=self.key_value_heads * (self.key_width + self.value_width) * kept)

    def memory_flops(self, length: int) -> float:
        kept = length if self.reach is None else min(self.reach, length)
        seen = (kept * (kept + 1) / 2 + (length - kept) * kept) / length
        return 2.0 * self.heads * (self.key_width + self.value_width) * seen

    def memory(self, impl: str) -> Memory:
        return CacheMemory(self, self.reach, cast(Impl, impl))


@ARCHITECTURES.register("softmax")
class Softmax(CacheHeads):
    """Softmax attention over the whole past: its state, the cache, grows with every token."""

    @property
    def reach(self) -> None:
        return None
