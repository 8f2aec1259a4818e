"""HGRN: a vector of state with forget gates that have a lower bound, rising over the layers.

    h_t = f_t * h_(t-1) + (1 - f_t) * silu(x_t W_i),   f_t = l + (1 - l) sigmoid(x_t W_f)
    out = (rms_norm(h_t) * sigmoid(x_t W_g)) W_o

The lower bound l is that of `hgrn2`. State: one number for each of the E C channels, E C = `d_inner`. Work a token: 4 E
C. Source: Qin et al. (arXiv 2311.04823), with real states.
"""

from torch import Tensor
from torch.nn import functional

from icl_bench.architectures.base import ARCHITECTURES, Flops, LayerContext, Mixer
from icl_bench.architectures.frame import fold
from icl_bench.architectures.hgrn2 import lower_bound
from icl_bench.architectures.layers import RMSNorm, StackedLinear, widen
from icl_bench.architectures.min_gru import MinGru, MinGruMixer

NORM_EPS = 1e-5


@ARCHITECTURES.register("hgrn")
class Hgrn(MinGru):
    """HGRN: a vector of state, each channel with a forget gate that has a lower bound."""

    def build(self, members: int, d_model: int, layer: LayerContext) -> Mixer:
        return HgrnMixer(members, d_model, self.channels(d_model), layer)

    def flops(self, d_model: int, length: int) -> Flops:
        inner = self.channels(d_model)
        return Flops(8.0 * d_model * inner, 4.0 * inner)


class HgrnMixer(MinGruMixer):
    """The linear scan of bounded gates, and a norm and a gate after it."""

    def __init__(self, members: int, d_model: int, inner: int, layer: LayerContext) -> None:
        super().__init__(members, d_model, inner, layer)
        self.bound = lower_bound(members, (inner,), layer)
        self.norm = RMSNorm(members, inner, NORM_EPS, decay=False)
        self.output_gate = StackedLinear(members, d_model, inner)

    def operands(self, x: Tensor) -> tuple[Tensor, Tensor]:
        keep, candidate = widen(self.gate(x)).sigmoid(), functional.silu(widen(self.candidate(x)))
        if self.bound is not None:
            bound = self.bound(keep).sigmoid()
            keep = bound + (1 - bound) * keep
        return fold(keep), fold((1 - keep) * candidate)

    def project_out(self, h: Tensor, x: Tensor) -> Tensor:
        return self.output(self.norm(h) * self.output_gate(x).sigmoid())
