"""Gated linear attention (GLA): linear attention with a decay for each key channel.

    S_t = D(a_t) S_(t-1) + k_t v_t^T,   log a_t = log sigmoid((x_t W_1) W_2 + b) / 16
    y_t = rms_norm(S_t^T q_t / sqrt(K)) * silu(x_t W_g)

No convolution, unless `conv` asks for one, which a SiLU follows: a single layer cannot bind neighbouring tokens, so put
`gated-conv` in front or take two layers. The divisor 16 puts decays near 0.96 at the start. State: K V sums a head.
Work a token: 4 K V a head. Source: Yang et al. (arXiv 2312.06635); keys are half as wide as values.
"""

from pydantic import Field
from torch import Tensor

from icl_bench.architectures.base import ARCHITECTURES, Flops, LayerContext
from icl_bench.architectures.decays import DecayGate
from icl_bench.architectures.deltas import DeltaCore
from icl_bench.architectures.frame import Core, HeadsLayout
from icl_bench.architectures.heads import RecurrentHeads
from icl_bench.architectures.initialisation import uniform_between
from icl_bench.architectures.layers import LowRankLinear
from icl_bench.kernels.delta.records import DeltaInputs, DeltaOptions
from icl_bench.kernels.fleet.adapters import adapted_decays

GATE_RANK = 16
GATE_DIVISOR = 16.0


@ARCHITECTURES.register("gla")
class GatedLinearAttention(RecurrentHeads):
    """Gated linear attention: a decay for each key channel and token."""

    family = "decay of channels"
    operator = "delta"

    conv: int = Field(default=0, ge=0)
    """Width of the short convolution on queries, keys and values; 0 for none."""

    def default_widths(self, d_model: int) -> tuple[int, int]:
        return max(1, d_model // (2 * self.heads)), d_model // self.heads

    @property
    def layout(self) -> HeadsLayout:
        return super().layout._replace(silu=self.conv > 0, output_norm="head", output_gate="silu")

    def core(self, members: int, d_model: int, gate: DecayGate | None, layer: LayerContext) -> Core:
        return GatedLinearCore(members, d_model, self, layer)

    def core_flops(self, d_model: int, length: int) -> Flops:
        own = GATE_RANK * (d_model + self.heads * self.key_width)
        return Flops(2.0 * own, 4.0 * self.heads * self.key_width * self.value_width)


class GatedLinearCore(DeltaCore):
    """Linear attention with a decay for each key channel."""

    def __init__(self, members: int, d_model: int, config: GatedLinearAttention, layer: LayerContext) -> None:
        width, bound = config.heads * config.key_width, GATE_RANK**-0.5
        super().__init__((config.heads, config.key_width, config.value_width), DeltaOptions(rule="linear"), layer)
        self.decay = LowRankLinear(members, d_model, GATE_RANK, width, bias=uniform_between(-bound, bound))

    def inputs(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> DeltaInputs:
        up, low = self.decay.up, self.decay.down(x)
        assert up.bias is not None
        log_decay = adapted_decays(low, up.weight, up.bias, "log-sigmoid", 1 / GATE_DIVISOR)
        return DeltaInputs(q, k, v, log_decay=log_decay.view(k.shape))
