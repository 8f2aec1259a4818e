"""Kimi delta attention (KDA): the delta rule with a decay for each key channel.

    S_t = D(a_t) S_(t-1) + b_t k_t (v_t - (D(a_t) S_(t-1))^T k_t)^T,   b_t = sigmoid(x_t W_b), or twice that
    log a_t = -5 sigmoid(exp(A) z_t),   z_t = (x_t W_1) W_2 + c, one for each channel; A = 0 at the start, one a head
    log a_t = -exp(A) softplus(z_t) without `safe_gate`; exp(A) starts in (1, 16)
    y_t = rms_norm(S_t^T q_t / sqrt(K)) * sigmoid((x_t W_3) W_4 + b)

q, k and v have a convolution and a SiLU; q and k have length 1. The gate is bounded from below, so that products of
decays over 16 tokens stay in the range of float32. State: K V sums a value head, and the tail of the convolution. Work
a token: 6 K V a value head. Source: Kimi Linear (arXiv 2510.26692); its own models put one layer of attention after
three of these.
"""

import torch
from torch import Tensor
from torch.nn import functional

from icl_bench.architectures.base import ARCHITECTURES, LayerContext
from icl_bench.architectures.decays import TORCH_GAIN, DecayGate
from icl_bench.architectures.deltas import DeltaCore, DeltaHeads, WritingRate
from icl_bench.architectures.frame import Core, HeadsLayout
from icl_bench.architectures.initialisation import constant, mapped, step_bias, stratified
from icl_bench.architectures.layers import LowRankLinear, Stacked, spread, widen
from icl_bench.kernels.delta.records import DeltaInputs, DeltaOptions
from icl_bench.kernels.fleet.adapters import adapted_decays

LEAST_LOG_DECAY = -5.0
"""Lower bound of the safe gate."""


@ARCHITECTURES.register("kda")
class Kda(DeltaHeads):
    """Kimi delta attention: a decay for each key channel, and writes that replace what their key held."""

    safe_gate: bool = True
    """Bound the logarithm of decays by -5; else they have no lower bound."""

    @property
    def layout(self) -> HeadsLayout:
        return super().layout._replace(output_gate="sigmoid", gate_rank=self.value_width)

    def core(self, members: int, d_model: int, gate: DecayGate | None, layer: LayerContext) -> Core:
        return KdaCore(members, d_model, self, layer)

    def gate_products(self, d_model: int) -> int:
        return d_model * self.groups + self.value_width * (d_model + self.groups * self.key_width)


class ChannelDecay(Stacked):
    """Logarithms of decays for each key channel, bounded by -5 where `safe`: [M, ..., C] -> [M, ..., G, K]."""

    log_rate: Tensor
    step_bias: Tensor

    def __init__(self, members: int, d_model: int, rank: int, shape: tuple[int, int], safe: bool) -> None:
        super().__init__(members)
        self.safe, self.shape = safe, shape
        self.project = LowRankLinear(members, d_model, rank, shape[0] * shape[1], gain=TORCH_GAIN)
        rates = constant(0.0) if safe else mapped(stratified(1.0, 16.0), torch.log)
        self.declare("log_rate", (shape[0], 1), rates, decay=False)
        self.declare("step_bias", shape, step_bias(), decay=False)

    def forward(self, x: Tensor) -> Tensor:
        rate = self.log_rate.exp()
        if not self.safe:
            z = widen(self.project(x)).unflatten(-1, self.shape)
            z = z + spread(self.step_bias, z)
            return -spread(rate, z) * functional.softplus(z)
        # the rate is a factor of the weights, which are smaller than the activations
        weight: Tensor = self.project.up.weight
        low: Tensor = self.project.down(x)
        scaled = (weight.unflatten(-1, self.shape) * rate[:, None]).flatten(-2).to(weight.dtype)
        bias = (rate * self.step_bias).flatten(1)
        decays: Tensor = adapted_decays(low, scaled, bias, "sigmoid", LEAST_LOG_DECAY).unflatten(-1, self.shape)
        return decays


class KdaCore(DeltaCore):
    """The delta rule with a decay for each key channel."""

    def __init__(self, members: int, d_model: int, config: Kda, layer: LayerContext) -> None:
        bound = LEAST_LOG_DECAY if config.safe_gate else None
        super().__init__(config.sizes, DeltaOptions(least_log_decay=bound), layer)
        self.rate = WritingRate(members, d_model, config.groups, config.negative_eigenvalues)
        shape = (config.groups, config.key_width)
        self.decay = ChannelDecay(members, d_model, config.value_width, shape, config.safe_gate)

    def inputs(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> DeltaInputs:
        return DeltaInputs(q, k, v, beta=self.rate(x), log_decay=self.decay(x))
