"""Native sparse attention (NSA): means of blocks, a few selected blocks and a window, mixed by gates.

    y_t = g_t1 a_t + g_t2 b_t + g_t3 c_t,   g_t = sigmoid(x_t W_g), three for each head
    a_t: softmax attention over the mean keys and values of blocks of `block` tokens that have ended by t, 0 without any
    b_t: softmax attention over the tokens up to t of `selected` blocks; c_t: over the last `w` tokens
    selected: the first block, that of t and the one before it, then those of the largest weights in a_t

All three read the same keys and values, with scores q·k / sqrt(K). State: the cache, H (K + V) T numbers, since a block
may be selected at any later token; means of blocks follow from it. Work a token: 2 H (K + V) for each token or block
that is read. Source: Yuan et al. (arXiv 2502.11089), with means in the place of their network over blocks, as in
flash-linear-attention, without rotation, and with a selection for each head. Training takes T^2 scores a head.
"""

from typing import ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from icl_bench.architectures.base import ARCHITECTURES, Flops, LayerContext, StateSize
from icl_bench.architectures.decays import DecayGate
from icl_bench.architectures.frame import Core, fold
from icl_bench.architectures.heads import RecurrentHeads
from icl_bench.architectures.layers import StackedLinear, widen

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
        return SparseCore(members, d_model, self)

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

    def __init__(self, members: int, d_model: int, config: NativeSparseAttention) -> None:
        super().__init__()
        self.config = config
        self.branches = StackedLinear(members, d_model, config.heads * BRANCHES)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        positions = torch.arange(x.shape[2], device=x.device)
        y = self.read(fold(q), SparseState(fold(k), fold(v)), positions, fold(self.gates_of(x)))
        return y.to(v.dtype).view(*q.shape[:-1], -1)

    def initial_state(self, batch: int, like: Tensor) -> SparseState:
        widths = self.config.key_width, self.config.value_width
        return SparseState(*(like.new_zeros(like.shape[0] * batch, 0, self.config.heads, width) for width in widths))

    def step(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, state: SparseState) -> tuple[Tensor, SparseState]:
        pairs = zip(state, (k, v), strict=True)
        state = SparseState(*(torch.cat([kept.to(new.dtype), fold(new)[:, None]], dim=1) for kept, new in pairs))
        position = torch.tensor([state.k.shape[1] - 1], device=x.device)
        y = self.read(fold(q)[:, None], state, position, fold(self.gates_of(x))[:, None])
        return y.to(v.dtype).view(*q.shape[:-1], -1), state

    def gates_of(self, x: Tensor) -> Tensor:
        """Return the gates of all branches, [M, B, (T,) H, 3], float32."""
        gates: Tensor = widen(self.branches(x)).sigmoid().unflatten(-1, (self.config.heads, BRANCHES))
        return gates

    def read(self, q: Tensor, cache: SparseState, positions: Tensor, gates: Tensor) -> Tensor:
        """Return y of the queries [N, Q, H, K] at `positions` [Q] with gates [N, Q, H, 3]: [N, Q, H, V]."""
        block, tokens = self.config.block, cache.k.shape[1]
        k, v = (widen(part).transpose(1, 2) for part in cache)  # [N, H, T, .]
        queries = widen(q).transpose(1, 2) * q.shape[-1] ** -0.5
        ended = tokens // block
        means = [part[:, :, : ended * block].unflatten(2, (ended, block)).mean(3) for part in (k, v)]
        ends = torch.arange(1, ended + 1, device=q.device) * block - 1
        weights = masked_softmax(queries @ means[0].mT, ends <= positions[:, None])
        scores, places = queries @ k.mT, torch.arange(tokens, device=q.device)
        past = places <= positions[:, None]
        chosen = self.chosen(weights, positions, -(-tokens // block)).repeat_interleave(block, -1)[..., :tokens]
        parts = [weights @ means[1], masked_softmax(scores, chosen & past) @ v]
        parts.append(masked_softmax(scores, past & (places > positions[:, None] - self.config.w)) @ v)
        mixed: Tensor = (torch.stack(parts, dim=-2).transpose(1, 2) * gates[..., None]).sum(-2)
        return mixed

    def chosen(self, weights: Tensor, positions: Tensor, blocks: int) -> Tensor:
        """Return which of all blocks a query selects, by its weights of ended ones: [N, H, Q, blocks]."""
        own, numbers = positions[:, None] // self.config.block, torch.arange(blocks, device=weights.device)
        always = (numbers == 0) | (numbers == own) | (numbers == own - 1)
        ended = numbers[: weights.shape[-1]] < (positions[:, None] + 1) // self.config.block
        ranks = torch.where(ended, weights, -1.0)
        ranks = functional.pad(ranks, (0, blocks - weights.shape[-1]), value=-1.0).masked_fill(always, 2.0)
        best, index = ranks.topk(min(self.config.selected, blocks), dim=-1)
        return torch.zeros_like(ranks, dtype=torch.bool).scatter(-1, index, best >= 0)


def masked_softmax(scores: Tensor, seen: Tensor) -> Tensor:
    """Return the softmax of the scores that are seen; zeros in rows that see none."""
    lowest = torch.finfo(scores.dtype).min  # a row of -inf would have no gradient
    return scores.masked_fill(~seen, lowest).softmax(-1).masked_fill(~seen, 0.0)
