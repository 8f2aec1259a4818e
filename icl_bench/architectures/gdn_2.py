"""Gated DeltaNet-2: a delta rule whose rates of erasing and of writing are vectors.

    S_t = D(a_t) S_(t-1) + k_t (w_t * v_t - (D(a_t) S_(t-1))^T (b_t * k_t))^T
    b_t = sigmoid(x_t W_b), or twice that, one for each key channel
    w_t = sigmoid(x_t W_w), one for each value channel
    log a_t = -exp(A) softplus((x_t W_1) W_2 + c), one for each key channel
    y_t = rms_norm(S_t^T q_t / sqrt(K)) * sigmoid((x_t W_3) W_4 + b)

q, k and v have a convolution and a SiLU; q and k have length 1. State: K V sums a value head, and the tail of the
convolution. Work a token: 6 K V a value head. Source: arXiv 2605.22791.
"""

from torch import Tensor

from icl_bench.architectures.base import ARCHITECTURES, LayerContext
from icl_bench.architectures.decays import DecayGate
from icl_bench.architectures.deltas import DeltaCore, DeltaHeads
from icl_bench.architectures.frame import Core, HeadsLayout
from icl_bench.architectures.kda import ChannelDecay
from icl_bench.architectures.layers import StackedLinear
from icl_bench.kernels.delta.records import DeltaInputs, DeltaOptions


@ARCHITECTURES.register("gdn-2")
class GatedDeltaNet2(DeltaHeads):
    """Gated DeltaNet-2: a decay, a rate of erasing and a rate of writing for each channel."""

    @property
    def layout(self) -> HeadsLayout:
        return super().layout._replace(output_gate="sigmoid", gate_rank=self.value_width)

    def core(self, members: int, d_model: int, gate: DecayGate | None, layer: LayerContext) -> Core:
        return ChannelRatesCore(members, d_model, self, layer)

    def gate_products(self, d_model: int) -> int:
        keys, values = self.heads * self.key_width, self.groups * self.value_width
        return d_model * (keys + values) + self.value_width * (d_model + self.groups * self.key_width)


class ChannelRatesCore(DeltaCore):
    """The delta rule that reads with b * k and writes w * v."""

    def __init__(self, members: int, d_model: int, config: GatedDeltaNet2, layer: LayerContext) -> None:
        super().__init__(config.sizes, DeltaOptions(), layer)
        keys, values = config.heads * config.key_width, config.groups * config.value_width
        self.erasing = StackedLinear(members, d_model, keys)
        self.writing = StackedLinear(members, d_model, values)
        self.doubled = config.negative_eigenvalues
        shape = (config.groups, config.key_width)
        self.decay = ChannelDecay(members, d_model, config.value_width, shape, safe=False)

    def inputs(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> DeltaInputs:
        read = k * self.erasing(x).sigmoid().view(k.shape).to(k.dtype)
        read = 2 * read if self.doubled else read
        values = v * self.writing(x).sigmoid().view(v.shape).to(v.dtype)
        return DeltaInputs(q, k, values, log_decay=self.decay(x), read=read)
