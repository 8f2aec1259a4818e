"""Differential attention: the difference of two softmax attentions over the same values.

    y_i  = rms_norm(sum_j (A_ij / sum_l A_il - w B_ij / sum_l B_il) v_j) (1 - w_0)
    A_ij = exp(q_i·k_j / sqrt(K)), B_ij = exp(q'_i·k'_j / sqrt(K)), both for j <= i
    w = exp(a·b) - exp(a'·b') + w_0,   w_0 = 0.8 - 0.6 exp(-0.3 l) in layer l = 0, 1, ...

The norm is over each head, a, b, a' and b' are learned vectors of the layer. State: the cache, H (2 K + V) T numbers.
Work a token: 2 H (2 K + 2 V) for each key seen. Source: Ye et al. (arXiv 2410.05258), without rotation. K is half the
model width / heads by default, so that queries, keys and values are as wide as in softmax attention.
"""

import math
from typing import NamedTuple, cast

import torch
from pydantic import Field
from torch import Tensor

from icl_bench.architectures.base import ARCHITECTURES, Flops, LayerContext, StateSize
from icl_bench.architectures.decays import DecayGate
from icl_bench.architectures.frame import Core, HeadsLayout, fold
from icl_bench.architectures.heads import RecurrentHeads
from icl_bench.architectures.initialisation import normal
from icl_bench.architectures.layers import RMSNorm, Stacked, spread, widen
from icl_bench.kernels.attention.api import AttentionImpl, attention, attention_step
from icl_bench.kernels.attention.records import KeyValueCache

INITIAL_VECTOR_STD = 0.1


@ARCHITECTURES.register("differential")
class DifferentialAttention(RecurrentHeads):
    """Differential attention: two softmax attentions, the second subtracted with a learned weight."""

    family = "attention"
    operator = "attention"

    conv: int = Field(default=0, ge=0)
    """Width of the short convolution on queries, keys and values; 0 for none."""

    def default_widths(self, d_model: int) -> tuple[int, int]:
        return d_model // (2 * self.heads), d_model // self.heads

    @property
    def layout(self) -> HeadsLayout:
        return super().layout._replace(key_width=2 * self.key_width)

    def key_rank(self, d_model: int) -> tuple[int, int] | None:
        width = self.resolved(d_model).key_width
        return min(width, d_model), width

    def core(self, members: int, d_model: int, gate: DecayGate | None, layer: LayerContext) -> Core:
        return DifferenceCore(members, self, layer)

    def core_size(self, length: int) -> StateSize:
        return StateSize(cache=self.heads * (2 * self.key_width + self.value_width) * length)

    def core_flops(self, d_model: int, length: int) -> Flops:
        return Flops(0.0, self.heads * (2 * self.key_width + 2 * self.value_width) * (length + 1.0))


class Pair(NamedTuple):
    """State of a `DifferenceCore`: both keys of every token side by side, [M·B, T, H, 2 K], and values [.., V]."""

    k: Tensor
    v: Tensor


class DifferenceCore(Core):
    """The difference of two attentions, its norm and its constant factor."""

    def __init__(self, members: int, config: DifferentialAttention, layer: LayerContext) -> None:
        super().__init__()
        self.shapes = (config.heads, 2 * config.key_width), (config.heads, config.value_width)
        self.impl = cast(AttentionImpl, layer.impl)
        self.weight = DifferenceWeight(members, config.key_width, 0.8 - 0.6 * math.exp(-0.3 * layer.index))
        self.norm = RMSNorm(members, config.value_width, eps=1e-5, decay=False)

    def finish(self, plus: Tensor, minus: Tensor, v: Tensor) -> Tensor:
        """Subtract the second attention, [M·B, ...] each, and apply norm and factor: [M, B, ...] as v."""
        plus, minus = (y.view(*v.shape[:-1], y.shape[-1]) for y in (plus, minus))
        return self.norm(plus - self.weight(minus).to(v.dtype) * minus) * (1 - self.weight.initial)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        halves = zip(fold(q).chunk(2, dim=-1), fold(k).chunk(2, dim=-1), strict=True)
        plus, minus = (attention(*pair, fold(v), impl=self.impl) for pair in halves)
        return self.finish(plus, minus, v)

    def initial_state(self, batch: int, like: Tensor) -> Pair:
        return Pair(*(like.new_zeros(like.shape[0] * batch, 0, *shape) for shape in self.shapes))

    def step(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, state: Pair) -> tuple[Tensor, Pair]:
        halves = (part.chunk(2, dim=-1) for part in (fold(q), fold(k), state.k))
        read = [
            attention_step(query, key, fold(v), None, KeyValueCache(kept, state.v, None))
            for query, key, kept in zip(*halves, strict=True)
        ]
        (plus, first), (minus, second) = read
        return self.finish(plus, minus, v), Pair(torch.cat([first.k, second.k], dim=-1), first.v)


class DifferenceWeight(Stacked):
    """exp(a·b) - exp(a'·b') + w_0, one number for a member, float32."""

    a: Tensor
    b: Tensor
    c: Tensor
    d: Tensor

    def __init__(self, members: int, width: int, initial: float) -> None:
        super().__init__(members)
        self.initial = initial
        for name in "abcd":
            self.declare(name, (width,), normal(INITIAL_VECTOR_STD), decay=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the weight, broadcasting over x [M, ...]."""
        a, b, c, d = (widen(vector) for vector in (self.a, self.b, self.c, self.d))
        return spread(((a * b).sum(-1).exp() - (c * d).sum(-1).exp() + self.initial)[:, None], x)
