"""Comba: the gated delta rule with a reading key of its own, and queries less what that key reads.

    S_t = a_t S_(t-1) + b_t k_t (v_t - S_(t-1)^T p_t)^T,   p_t = k_t sigmoid(d), one d for each head
    y_t = rms_norm(S_t^T (q_t - D p_t) / sqrt(K)) * sigmoid(x_t W_g)

The correction reads the state before its decay. Rates and decays are those of `gated-delta-net`; d starts at 1, and D
at 0.02, which its authors take for small models. State: K V sums a value head, and the tail of the convolution. Work a
token: 6 K V a value head. Source: Hu et al. (arXiv 2506.02475).
"""

from torch import Tensor

from icl_bench.architectures.base import ARCHITECTURES, LayerContext
from icl_bench.architectures.decays import DecayGate
from icl_bench.architectures.deltas import DeltaHeads
from icl_bench.architectures.frame import Core, HeadsLayout
from icl_bench.architectures.gated_delta_net import GatedDeltaCore
from icl_bench.architectures.initialisation import constant
from icl_bench.architectures.layers import Coefficients
from icl_bench.kernels.delta.records import DeltaInputs, DeltaOptions


@ARCHITECTURES.register("comba")
class Comba(DeltaHeads):
    """Comba: a gated delta rule that reads before it decays, with a weaker key."""

    def default_widths(self, d_model: int) -> tuple[int, int]:
        return d_model // self.heads, 2 * d_model // self.heads

    @property
    def layout(self) -> HeadsLayout:
        return super().layout._replace(output_gate="sigmoid")

    def core(self, members: int, d_model: int, gate: DecayGate | None, layer: LayerContext) -> Core:
        return CombaCore(members, d_model, self, layer)

    def gate_products(self, d_model: int) -> int:
        return 2 * d_model * self.groups


class CombaCore(GatedDeltaCore):
    """The gated delta rule that reads the undecayed state with p."""

    def __init__(self, members: int, d_model: int, config: Comba, layer: LayerContext) -> None:
        super().__init__(members, d_model, config, layer, DeltaOptions(reads="undecayed"))
        self.weakening = Coefficients(members, (config.heads, 1), constant(1.0))
        self.correction = Coefficients(members, (config.heads, 1), constant(0.02))

    def inputs(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> DeltaInputs:
        read = k * self.weakening(k).sigmoid()
        return super().inputs(q - self.correction(q) * read, k, v, x)._replace(read=read)
