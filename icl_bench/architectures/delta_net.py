"""The delta rule: a linear recurrence that corrects what its key reads.

    S_t = S_(t-1) + b_t k_t (v_t - S_(t-1)^T k_t)^T,   b_t = sigmoid(x_t W_b), or twice that
    y_t = rms_norm(S_t^T q_t / sqrt(K))

q, k and v have a convolution and a SiLU; q and k have length 1, so that a transition has no norm above 1. State: K V
sums a head, and the tail of the convolution. Work a token: 6 K V a head. Sources: Schlag et al. (arXiv 2102.11174) and
Yang et al. (arXiv 2406.06484); negative eigenvalues: Grazzi et al. (arXiv 2411.12537).
"""

from torch import Tensor

from icl_bench.architectures.base import ARCHITECTURES, LayerContext
from icl_bench.architectures.decays import DecayGate
from icl_bench.architectures.deltas import DeltaCore, DeltaHeads, WritingRate
from icl_bench.architectures.frame import Core
from icl_bench.kernels.delta.records import DeltaInputs, DeltaOptions


@ARCHITECTURES.register("delta-net")
class DeltaNet(DeltaHeads):
    """Delta rule: each write replaces the value that its key held."""

    def core(self, members: int, d_model: int, gate: DecayGate | None, layer: LayerContext) -> Core:
        return DeltaNetCore(members, d_model, self, layer)

    def gate_products(self, d_model: int) -> int:
        return d_model * self.groups


class DeltaNetCore(DeltaCore):
    """The delta rule without decay."""

    def __init__(self, members: int, d_model: int, config: DeltaNet, layer: LayerContext) -> None:
        super().__init__(config.sizes, DeltaOptions(), layer)
        self.rate = WritingRate(members, d_model, config.groups, config.negative_eigenvalues)

    def inputs(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> DeltaInputs:
        return DeltaInputs(q, k, v, beta=self.rate(x))
