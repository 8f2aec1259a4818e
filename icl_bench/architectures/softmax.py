"""Softmax attention: every key and value is kept.

    A_ij = exp(G_i - G_j) exp(q_i·k_j / sqrt(K)) for j <= i,   y_i = sum_j A_ij v_j / sum_j A_ij

State: the cache, G (K + V) T numbers, and G T more where there is a gate. Work a token: 2 H (K + V) for each key
seen. Source: Vaswani et al. (arXiv 1706.03762); the gate is that of the forgetting transformer (Lin et al.,
arXiv 2503.02130). With `alibi`, G_i = -2^(-8 h / G) i in head h = 1..G, a fixed penalty of distance (Press et al.,
arXiv 2108.12409), which needs no state. With `sinks`, exp(s_h) is added to the sum of scores, s_h a learned number for
each query head, 0 at the start, so that a query may read little (attention sinks; OpenAI, arXiv 2508.10925).
"""

from typing import Self, cast

import torch
from torch import Tensor
from torch.nn import functional

from icl_bench.architectures.base import ARCHITECTURES, Flops, LayerContext, StateSize
from icl_bench.architectures.decays import DecayGate
from icl_bench.architectures.frame import Core, fold
from icl_bench.architectures.heads import HeadsArchitecture
from icl_bench.architectures.initialisation import constant
from icl_bench.architectures.layers import Coefficients
from icl_bench.errors import SpecError
from icl_bench.kernels.attention.api import AttentionImpl, attention, attention_step, empty_cache
from icl_bench.kernels.attention.records import KeyValueCache
from icl_bench.kernels.fleet.records import ScoreRule
from icl_bench.schema import later


class CacheCore(Core):
    """Keys and values unchanged, all of them or the last `reach`."""

    reads_input = False
    ignores_zeros = True

    def __init__(
        self, sizes: tuple[int, int, int], reach: int | None, gated: bool, gate: DecayGate | None, layer: LayerContext
    ) -> None:
        super().__init__(gate)
        self.sizes, self.reach, self.gated = sizes, reach, gated
        self.impl = cast(AttentionImpl, layer.impl)

    @property
    def score_rule(self) -> ScoreRule | None:
        plain = not self.gated and self.impl == "auto"
        return ScoreRule(self.sizes[1] ** -0.5, window=self.reach) if plain else None

    def folded(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return the arguments of attention, with members and batch in one axis."""
        log_g = self.log_gate(x)
        return fold(q), fold(k), fold(v), None if log_g is None else fold(log_g)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        y = attention(*self.folded(q, k, v, x), window=self.reach, scale=self.sizes[1] ** -0.5, impl=self.impl)
        return y.view(*q.shape[:-1], -1)

    def initial_state(self, batch: int, like: Tensor) -> KeyValueCache:
        sequences = like.shape[0] * batch
        return empty_cache(sequences, *self.sizes, gated=self.gated, device=like.device, dtype=like.dtype)

    def step(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, state: KeyValueCache) -> tuple[Tensor, KeyValueCache]:
        y, state = attention_step(*self.folded(q, k, v, x), state, window=self.reach)
        return y.view(*q.shape[:-1], -1), state


class AlibiCore(CacheCore):
    """Keys and values unchanged, with scores that fall by a constant of each head for each token of distance."""

    def __init__(self, sizes: tuple[int, int, int], reach: int | None, layer: LayerContext) -> None:
        super().__init__(sizes, reach, gated=False, gate=None, layer=layer)

    @property
    def score_rule(self) -> ScoreRule | None:
        return None

    def slopes(self, x: Tensor) -> Tensor:
        """Return 2^(-8 h / G) for the heads h = 1..G, float32, or float64 as x: [G]."""
        heads = self.sizes[0]
        kind = torch.promote_types(x.dtype, torch.float32)
        return torch.exp2(torch.arange(1, heads + 1, device=x.device, dtype=kind) * (-8 / heads))

    def log_gate(self, x: Tensor) -> Tensor:
        return -self.slopes(x).expand(*x.shape[:-1], -1)

    def step(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, state: KeyValueCache) -> tuple[Tensor, KeyValueCache]:
        sequences, kept = state.k.shape[:2]
        ages = torch.arange(kept - 1, -1, -1, device=x.device)[:, None]
        decay = (-ages * self.slopes(x)).expand(sequences, -1, -1)
        y, after = super().step(q, k, v, x, state._replace(decay=decay))
        return y, after._replace(decay=None)


SINK_COLUMNS = 8
"""Columns that a sink adds to queries and keys: one is used, the others keep rows whole for a GPU."""


class SinkCore(CacheCore):
    """Keys and values unchanged, and a first key of value 0 whose score is a learned number of the query head."""

    ignores_zeros = False

    def __init__(self, members: int, heads: int, sizes: tuple[int, int, int], layer: LayerContext) -> None:
        super().__init__(sizes, None, gated=False, gate=None, layer=layer)
        self.sinks = Coefficients(members, (heads, 1), constant(0.0))

    @property
    def score_rule(self) -> ScoreRule | None:
        return None

    def queries(self, q: Tensor) -> Tensor:
        """Return queries [M, B, (T,) H, K] with the score of the sink in their next column, folded."""
        logits = (self.sinks(q) * self.sizes[1] ** 0.5).expand(*q.shape[:-1], 1)
        return fold(functional.pad(torch.cat([q, logits], dim=-1), (0, SINK_COLUMNS - 1)))

    def with_sink(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys [N, T, G, K] and values with the sink before them."""
        k = functional.pad(k, (0, SINK_COLUMNS, 0, 0, 1, 0))
        sink = torch.zeros_like(k[:, :1])
        sink[..., self.sizes[1]] = 1.0
        return torch.cat([sink, k[:, 1:]], dim=1), functional.pad(v, (0, 0, 0, 0, 1, 0))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        queries = functional.pad(self.queries(q), (0, 0, 0, 0, 1, 0))
        y = attention(queries, *self.with_sink(fold(k), fold(v)), scale=self.sizes[1] ** -0.5, impl=self.impl)
        return y[:, 1:].reshape(*q.shape[:-1], -1)

    def step(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, state: KeyValueCache) -> tuple[Tensor, KeyValueCache]:
        key, cache = functional.pad(fold(k), (0, SINK_COLUMNS)), self.with_sink(state.k, state.v)
        scale = self.sizes[1] ** -0.5
        y, after = attention_step(self.queries(q), key, fold(v), None, KeyValueCache(*cache, None), scale=scale)
        kept = KeyValueCache(after.k[:, 1:, :, : self.sizes[1]], after.v[:, 1:], None)
        return y.view(*q.shape[:-1], -1), kept


class CacheHeads(HeadsArchitecture):
    """Base of the architectures that keep keys and values: the size of their state and their work."""

    family = "attention"
    operator = "attention"

    alibi: bool = later(False)
    """Let scores fall with distance by constants of the heads (ALiBi); not together with `gate`."""

    def resolved(self, d_model: int) -> Self:
        if self.alibi and self.gate:
            raise SpecError("alibi is a fixed decay in the place of gate; got both; set gate=false or alibi=false")
        return super().resolved(d_model)

    def core_size(self, length: int) -> StateSize:
        kept = length if self.reach is None else min(self.reach, length)
        decays = self.key_value_heads * kept if self.gate else 0
        return StateSize(sums=decays, cache=self.key_value_heads * (self.key_width + self.value_width) * kept)

    def core_flops(self, d_model: int, length: int) -> Flops:
        kept = length if self.reach is None else min(self.reach, length)
        seen = (kept * (kept + 1) / 2 + (length - kept) * kept) / length
        return Flops(0.0, 2.0 * self.heads * (self.key_width + self.value_width) * seen)

    def core(self, members: int, d_model: int, gate: DecayGate | None, layer: LayerContext) -> Core:
        if self.alibi:
            return AlibiCore(self.sizes, self.reach, layer)
        return CacheCore(self.sizes, self.reach, self.gate, gate, layer)


@ARCHITECTURES.register("softmax")
class Softmax(CacheHeads):
    """Softmax attention over the whole past: its state, the cache, grows with every token."""

    sinks: bool = later(False)
    """Add a learned number for each query head to the sum of scores; not together with `gate` or `alibi`."""

    def resolved(self, d_model: int) -> Self:
        if self.sinks and (self.gate or self.alibi):
            raise SpecError("sinks have scores that do not decay; got gate or alibi too; set both false or sinks=false")
        return super().resolved(d_model)

    def core(self, members: int, d_model: int, gate: DecayGate | None, layer: LayerContext) -> Core:
        if self.sinks:
            return SinkCore(members, self.heads, self.sizes, layer)
        return super().core(members, d_model, gate, layer)
