"""ReBased: power attention at p = 2 on queries and keys that are normalised and shifted by learned numbers.

    A_ij = (f(q_i)·g(k_j) / sqrt(K))^2,   f(x) = a layer_norm(x) + b, g alike with its own a and b
    y_i  = sum_j A_ij v_j / sum_j A_ij, j <= i

State: K (K + 1) / 2 features times V + 1 columns a head. Work a token: 4 operations for each. Source: Aksenov et al.
(arXiv 2402.10644).
"""

import math

from torch import Tensor

from icl_bench.architectures.base import ARCHITECTURES, LayerContext
from icl_bench.architectures.decays import DecayGate
from icl_bench.architectures.frame import Core
from icl_bench.architectures.layers import LayerNorm
from icl_bench.architectures.sums import FeatureHeads, Operands, Sums, SumsCore


@ARCHITECTURES.register("re-based")
class ReBased(FeatureHeads):
    """ReBased: squared scores of normalised and shifted queries and keys."""

    family = "power sums"
    operator = "power"

    @property
    def features(self) -> int:
        return math.comb(self.key_width + 1, 2)

    def core(self, members: int, d_model: int, gate: DecayGate | None, layer: LayerContext) -> Core:
        return SquaresCore(members, self, layer)


class SquaresCore(SumsCore):
    """Power attention at p = 2, normalised by the sum of scores."""

    def __init__(self, members: int, config: ReBased, layer: LayerContext) -> None:
        super().__init__(Sums(config.heads, config.key_width, config.value_width, p=2, normalize="sum"), layer)
        self.query_norm = LayerNorm(members, (config.key_width,), bias=True)
        self.key_norm = LayerNorm(members, (config.key_width,), bias=True)

    def operands(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Operands:
        return Operands(self.query_norm(q), self.key_norm(k), v, None)
