"""Based: linear attention whose feature map is the Taylor series of the exponential to the second order.

    A_ij = 1 + s + s^2 / 2,   s = q_i·k_j / sqrt(K),   y_i = sum_j A_ij v_j / (sum_j A_ij + 1e-12), j <= i

Since 1 + s + s^2 / 2 = ((1 + s)^2 + 1) / 2, this is power attention at p = 2 on keys with one more coordinate, which
is 1, plus the running sum of the values, which the state of that power attention holds already. A weight is at least
1/2. State: (K + 1)(K + 2) / 2 features times V + 1 columns a head. Work a token: 4 operations for each. Source: Arora
et al. (arXiv 2402.18668); their models put a gated convolution below it and a sliding window beside it:
`gated-conv+based+window:w=64`.
"""

import math

from torch import Tensor
from torch.nn import functional

from icl_bench.architectures.base import ARCHITECTURES, LayerContext
from icl_bench.architectures.decays import DecayGate
from icl_bench.architectures.frame import Core
from icl_bench.architectures.layers import widen
from icl_bench.architectures.sums import FeatureHeads, Operands, Sums, SumsCore
from icl_bench.kernels.fleet.records import ScoreRule
from icl_bench.kernels.power.records import PowerState

EPSILON = 1e-12


@ARCHITECTURES.register("based")
class Based(FeatureHeads):
    """Based: attention by a Taylor series of the exponential, whose state is quadratic in the key width."""

    family = "power sums"
    operator = "power"

    @property
    def features(self) -> int:
        """Number of features of a key, of a resolved architecture."""
        return math.comb(self.key_width + 2, 2)

    def core(self, members: int, d_model: int, gate: DecayGate | None, layer: LayerContext) -> Core:
        return TaylorCore(self, layer)


class TaylorCore(SumsCore):
    """Power attention at p = 2 on keys with a constant first coordinate, and values with a column of ones."""

    aligned = True

    def __init__(self, config: Based, layer: LayerContext) -> None:
        super().__init__(Sums(config.heads, config.key_width + 1, config.value_width + 1, p=2, scale=1.0), layer)
        self.scale = config.key_width**-0.5

    @property
    def score_rule(self) -> ScoreRule | None:
        return ScoreRule(self.scale, p=2, eps=EPSILON, series=True) if self.impl == "auto" else None

    def operands(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Operands:
        scaled, ones = q * self.scale, (1, 0)
        keys = (functional.pad(scaled, ones, value=1.0), functional.pad(k, ones, value=1.0))
        return Operands(*keys, functional.pad(v, (0, 1), value=1.0), None)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        squares = super().forward(q, k, v, x)
        values = functional.pad(widen(v), (0, 1), value=1.0)
        return divide(squares, values.cumsum(2))

    def step(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, state: PowerState) -> tuple[Tensor, PowerState]:
        squares, state = super().step(q, k, v, x, state)
        constant = state.s[:, :, 0].unflatten(0, v.shape[:2])  # the first feature is the square of the constant
        return divide(squares, constant), state


def divide(squares: Tensor, sums: Tensor) -> Tensor:
    """Return the weighted mean of the values, from (1 + s)^2 sums and plain sums of values and ones, [..., V + 1]."""
    total = widen(squares) + sums
    return (total[..., :-1] / (total[..., -1:] + 2 * EPSILON)).to(squares.dtype)
