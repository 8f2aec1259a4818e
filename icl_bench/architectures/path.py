"""PaTH attention: softmax attention whose positions are products of reflections that depend on the tokens between.

    A_ij = exp(q_i^T H_i H_(i-1) ... H_(j+1) k_j / sqrt(K)), j <= i,   H_s = I - b_s w_s w_s^T
    y_i  = sum_j A_ij v_j / sum_j A_ij
    w_s = silu(conv(x_s W_1 W_2)), of length 1 in each head,   b_s = 2 sigmoid(x_s W_b + c), one for each head

Training solves a triangular system for each chunk of tokens, and takes queries from one chunk to the one before by a
matrix (`kernels/fleet/reflected_attention.py`). Work a token: 2 H (3 K + V) for each key seen. State: H (K + V) T
numbers, the keys in float32, as a token rewrites all of them, and the tail of the convolution. Source: Yang et al.
(arXiv 2505.16381), without its forget gate; W_1 has 32 columns.
"""

from typing import NamedTuple, cast

import torch
from pydantic import Field
from torch import Tensor

from icl_bench.architectures.base import ARCHITECTURES, Flops, LayerContext, StateSize
from icl_bench.architectures.decays import DecayGate
from icl_bench.architectures.frame import Core, fold
from icl_bench.architectures.heads import RecurrentHeads
from icl_bench.architectures.initialisation import constant
from icl_bench.architectures.layers import LowRankLinear, ShortConv, StackedLinear, widen
from icl_bench.kernels.backends import FleetImpl
from icl_bench.kernels.fleet.records import HeadColumns
from icl_bench.kernels.fleet.reflected_attention import SeenTokens, reflected_attention, reflected_step

REFLECTION_RANK = 32
REFLECTION_CONV = 3


@ARCHITECTURES.register("path")
class Path(RecurrentHeads):
    """PaTH attention: softmax attention that tracks states by reflections between query and key."""

    family = "attention"
    operator = "own"

    conv: int = Field(default=0, ge=0)
    """Width of the short convolution on queries, keys and values; 0 for none."""

    def core(self, members: int, d_model: int, gate: DecayGate | None, layer: LayerContext) -> Core:
        return PathCore(members, d_model, self, cast(FleetImpl, layer.impl))

    def core_size(self, length: int) -> StateSize:
        tail = (REFLECTION_CONV - 1) * self.heads * self.key_width
        return StateSize(sums=self.heads * self.key_width * length, cache=self.heads * self.value_width * length + tail)

    def core_flops(self, d_model: int, length: int) -> Flops:
        keys = self.heads * self.key_width
        own = REFLECTION_RANK * (d_model + keys) + REFLECTION_CONV * keys + d_model * self.heads
        return Flops(2.0 * own, self.heads * (3 * self.key_width + self.value_width) * (length + 1.0))


class PathState(NamedTuple):
    """State of a `PathCore`."""

    seen: SeenTokens
    """Keys [M, B, T, H, K], which tokens change as they do sums, in float32; values [M, B, T, H, V]."""
    tail: Tensor
    """Last inputs of the convolution of reflections, [M, B, 2, H K]."""


class PathCore(Core):
    """Softmax attention on reflected keys."""

    def __init__(self, members: int, d_model: int, config: Path, impl: FleetImpl) -> None:
        super().__init__()
        self.impl = impl
        self.shapes = (config.heads, config.key_width), (config.heads, config.value_width)
        keys = config.heads * config.key_width
        self.project = LowRankLinear(members, d_model, REFLECTION_RANK, keys)
        self.conv = ShortConv(members, keys, REFLECTION_CONV, silu=True)
        self.strength = StackedLinear(members, d_model, config.heads, bias=constant(0.0), decay=False)

    def strengths(self, x: Tensor) -> Tensor:
        """Return b [M, B, (T,) H], float32."""
        return 2 * widen(self.strength(x)).sigmoid()

    def reflections(self, x: Tensor) -> Tensor:
        """Return w [M, B, T, H, K], before it is brought to length 1."""
        (w,) = self.conv.heads(self.project(x), [HeadColumns(*self.shapes[0])])
        return w

    def forward(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        w, b = self.reflections(x), self.strengths(x)
        with torch.autocast(x.device.type, enabled=False):  # products of reflections lose too much in bfloat16
            y = reflected_attention(fold(q), fold(k), fold(v), fold(w), fold(b), impl=self.impl)
        return y.view(v.shape)

    def initial_state(self, batch: int, like: Tensor) -> PathState:
        k, v = (like.new_zeros(like.shape[0], batch, 0, *shape) for shape in self.shapes)
        return PathState(SeenTokens(widen(k), v), self.conv.initial_tail(batch))

    def step(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, state: PathState) -> tuple[Tensor, PathState]:
        mixed, tail = self.conv.step(self.project(x), state.tail)
        w, b = widen(mixed).unflatten(-1, self.shapes[0]), self.strengths(x)
        seen = SeenTokens(state.seen.keys, widen(state.seen.values))
        y, seen = reflected_step(widen(q), widen(k), widen(v), w, b, seen)
        return y.to(v.dtype), PathState(seen._replace(values=seen.values.to(v.dtype)), tail)
