"""ReBased: power attention at p = 2 on queries and keys that are normalised and shifted by learned numbers.

    A_ij = (f(q_i)·g(k_j) / sqrt(K))^2,   f(x) = a layer_norm(x) + b, g alike with its own a and b
    y_i  = sum_j A_ij v_j / sum_j A_ij, j <= i

State: K (K + 1) / 2 features times V + 1 columns a head. Work a token: 4 operations for each. Source: Aksenov et al.
(arXiv 2402.10644).
"""

import math

from pydantic import Field
from torch import Tensor

from icl_bench.architectures.base import ARCHITECTURES, Flops, LayerContext, StateSize
from icl_bench.architectures.decays import DecayGate
from icl_bench.architectures.frame import Core
from icl_bench.architectures.heads import RecurrentHeads
from icl_bench.architectures.layers import LayerNorm
from icl_bench.architectures.sums import Operands, Sums, SumsCore

FEATURE_WIDTH = 16


@ARCHITECTURES.register("re-based")
class ReBased(RecurrentHeads):
    """ReBased: squared scores of normalised and shifted queries and keys."""

    family = "power sums"
    operator = "power"

    shown = ("d_key",)

    conv: int = Field(default=0, ge=0)
    """Width of the short convolution on queries, keys and values; 0 for none."""

    def default_widths(self, d_model: int) -> tuple[int, int]:
        return FEATURE_WIDTH, d_model // self.heads

    def core(self, members: int, d_model: int, gate: DecayGate | None, layer: LayerContext) -> Core:
        return SquaresCore(members, self, layer)

    def core_size(self, length: int) -> StateSize:
        return StateSize(sums=self.heads * math.comb(self.key_width + 1, 2) * (self.value_width + 1))

    def core_flops(self, d_model: int, length: int) -> Flops:
        return Flops(0.0, 4.0 * self.core_size(length).sums)


class SquaresCore(SumsCore):
    """Power attention at p = 2, normalised by the sum of scores."""

    def __init__(self, members: int, config: ReBased, layer: LayerContext) -> None:
        super().__init__(Sums(config.heads, config.key_width, config.value_width, p=2, normalize="sum"), layer)
        self.query_norm = LayerNorm(members, (config.key_width,), bias=True)
        self.key_norm = LayerNorm(members, (config.key_width,), bias=True)

    def operands(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Operands:
        return Operands(self.query_norm(q), self.key_norm(k), v, None)
