"""Native sparse attention (NSA): means of blocks, a few selected blocks and a window, mixed by gates.

    y_t = g_t1 a_t + g_t2 b_t + g_t3 c_t,   g_t = sigmoid(x_t W_g), three for each head
    a_t: softmax attention over the mean keys and values of blocks of `block` tokens that have ended by t, 0 without any
    b_t: softmax attention over the tokens up to t of `selected` blocks; c_t: over the last `w` tokens
    selected: the first block, that of t and the one before it, then those of the largest weights in a_t

All three read the same keys and values, with scores q·k / sqrt(K). State: the cache, H (K + V) T numbers, since a block
may be selected at any later token; means of blocks follow from it. Work a token: 2 H (K + V) for each token or block
that is read. Source: Yuan et al. (arXiv 2502.11089), with means in the place of their network over blocks, as in
flash-linear-attention, without rotation, and with a selection for each head.
"""

from typing import ClassVar, NamedTuple, cast

import torch
from pydantic import Field
from torch import Tensor

from icl_bench.architectures.base import ARCHITECTURES, Flops, LayerContext, StateSize
from icl_bench.architectures.decays import DecayGate
from icl_bench.architectures.frame import Core, fold
from icl_bench.architectures.heads import RecurrentHeads
from icl_bench.architectures.layers import StackedLinear, widen
from icl_bench.kernels.attention.api import AttentionImpl, attention
from icl_bench.kernels.fleet.block_attention import block_attention, scores_of
from icl_bench.kernels.fleet.causal_softmax import best_blocks, causal_softmax
from icl_bench.kernels.fleet.products import scale_heads
from icl_bench.kernels.fleet.records import BlockChoice, SeenKeys

BRANCHES = 3
FORCED = 3
"""Blocks that are always selected: the first, that of the token and the one before it."""


@ARCHITECTURES.register("nsa")
class NativeSparseAttention(RecurrentHeads):
    """Native sparse attention: block means, selected blocks and a window; it reads little, but keeps every token."""

    family = "attention"
    operator = "own"

    size_parameters: ClassVar[tuple[str, ...]] = ("heads", "d_key", "d_value", "w", "block", "selected")
    shown = ("w", "block", "selected")

    conv: int = Field(default=0, ge=0)
    """Width of the short convolution on queries, keys and values; 0 for none."""
    w: int = Field(default=16, ge=1)
    """Number of keys in the window, the current one included."""
    block: int = Field(default=8, ge=1)
    """Tokens of a block."""
    selected: int = Field(default=4, ge=FORCED)
    """Blocks that a query selects, those included that it always reads."""

    def core(self, members: int, d_model: int, gate: DecayGate | None, layer: LayerContext) -> Core:
        return SparseCore(members, d_model, self, cast(AttentionImpl, layer.impl))

    def core_size(self, length: int) -> StateSize:
        return StateSize(cache=self.heads * (self.key_width + self.value_width) * length)

    def core_flops(self, d_model: int, length: int) -> Flops:
        read = length / (2 * self.block) + min(length, self.selected * self.block) + min(length, self.w)
        widths = self.heads * (self.key_width + self.value_width)
        return Flops(2.0 * d_model * self.heads * BRANCHES, 2.0 * widths * read)


class SparseState(NamedTuple):
    """State of a `SparseCore`: keys [M·B, T, H, K] and values [M·B, T, H, V]."""

    k: Tensor
    v: Tensor


class SparseCore(Core):
    """Three attentions over one cache, and their gates."""

    def __init__(self, members: int, d_model: int, config: NativeSparseAttention, impl: AttentionImpl) -> None:
        super().__init__()
        self.config, self.impl = config, impl
        self.branches = StackedLinear(members, d_model, config.heads * BRANCHES)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        queries, cache = fold(q), SparseState(fold(k), fold(v))
        nearest = attention(queries, *cache, window=self.config.w, impl=self.impl)
        y = self.mix(self.read(queries, cache, 0), nearest, fold(self.gates_of(x)))
        return y.to(v.dtype).view(*q.shape[:-1], -1)

    def initial_state(self, batch: int, like: Tensor) -> SparseState:
        widths = self.config.key_width, self.config.value_width
        return SparseState(*(like.new_zeros(like.shape[0] * batch, 0, self.config.heads, width) for width in widths))

    def step(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, state: SparseState) -> tuple[Tensor, SparseState]:
        pairs = zip(state, (k, v), strict=True)
        state = SparseState(*(torch.cat([kept.to(new.dtype), fold(new)[:, None]], dim=1) for kept, new in pairs))
        queries, first = fold(q)[:, None], state.k.shape[1] - 1
        keys, values = (kept[:, -self.config.w :] for kept in state)
        window = causal_softmax(scores_of(queries, keys), SeenKeys(first), q.shape[-1] ** -0.5)
        nearest = (window @ values.transpose(1, 2)).transpose(1, 2)
        y = self.mix(self.read(queries, state, first), nearest, fold(self.gates_of(x))[:, None])
        return y.to(v.dtype).view(*q.shape[:-1], -1), state

    def gates_of(self, x: Tensor) -> Tensor:
        """Return the gates of all branches, [M, B, (T,) H, 3], float32."""
        gates: Tensor = widen(self.branches(x)).sigmoid().unflatten(-1, (self.config.heads, BRANCHES))
        return gates

    def read(self, q: Tensor, cache: SparseState, first: int) -> list[Tensor]:
        """Return a and b of the queries [N, Q, H, K] from position `first` on, [N, Q, H, V] each."""
        config, scale, tokens = self.config, q.shape[-1] ** -0.5, cache.k.shape[1]
        ended = tokens // config.block
        means = [part[:, : ended * config.block].unflatten(1, (ended, config.block)).mean(2) for part in cache]
        scores = scores_of(q, means[0])
        weights = causal_softmax(scores, SeenKeys(first, config.block), scale)
        chosen = best_blocks(scores, BlockChoice(first, config.block, config.selected), -(-tokens // config.block))
        return [(weights @ means[1].transpose(1, 2)).transpose(1, 2), block_attention(q, *cache, chosen, config.block)]

    def mix(self, parts: list[Tensor], nearest: Tensor, gates: Tensor) -> Tensor:
        """Return the sum of a, b and c [N, Q, H, V] times their gates [N, Q, H, 3]."""
        shares = gates.unbind(-1)
        mixed = scale_heads(parts[0], shares[0])
        for part, share in zip([*parts[1:], nearest], shares[1:], strict=True):
            mixed = scale_heads(part, share, mixed)
        return mixed
