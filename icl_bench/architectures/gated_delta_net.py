"""The gated delta rule: a recurrence that decays, then corrects what its key reads.

    S_t = a_t S_(t-1) + b_t k_t (v_t - a_t S_(t-1)^T k_t)^T,   b_t = sigmoid(x_t W_b), or twice that
    log a_t = -exp(A) softplus(x_t W_a + c), one for each value head
    y_t = rms_norm(S_t^T q_t / sqrt(K)) * silu(x_t W_g)

q, k and v have a convolution and a SiLU; q and k have length 1. State: K V sums a value head, and the tail of the
convolution. Work a token: 6 K V a value head. Source: Yang et al. (arXiv 2412.06464); exp(A) starts in (1, 16), not in
(0, 16), where a draw near 0 never forgets.
"""

import torch
from torch import Tensor

from icl_bench.architectures.base import ARCHITECTURES, LayerContext, Mixer
from icl_bench.architectures.decays import DecayGate, StepDecay
from icl_bench.architectures.deltas import DeltaCore, DeltaHeads, WritingRate
from icl_bench.architectures.frame import Core, HeadsLayout
from icl_bench.architectures.joined import JoinedMixer
from icl_bench.kernels.backends import takes_triton
from icl_bench.kernels.delta.records import DeltaInputs, DeltaOptions
from icl_bench.kernels.fleet.delta_gates import delta_gates
from icl_bench.kernels.fleet.projection import project


@ARCHITECTURES.register("gated-delta-net")
class GatedDeltaNet(DeltaHeads):
    """Gated delta rule: a decay for each head and token, and writes that replace what their key held."""

    output_gate: bool = True
    """Multiply the output by silu(x W_g)."""

    def default_widths(self, d_model: int) -> tuple[int, int]:
        return d_model // self.heads, 2 * d_model // self.heads

    @property
    def layout(self) -> HeadsLayout:
        return super().layout._replace(output_gate="silu" if self.output_gate else "none")

    def core(self, members: int, d_model: int, gate: DecayGate | None, layer: LayerContext) -> Core:
        return GatedDeltaCore(members, d_model, self, layer)

    def build(self, members: int, d_model: int, layer: LayerContext) -> Mixer:
        full = self.resolved(d_model)
        return JoinedMixer(members, d_model, full.layout, full.core(members, d_model, None, layer), None, layer)

    def gate_products(self, d_model: int) -> int:
        return 2 * d_model * self.groups


class GatedDeltaCore(DeltaCore):
    """The delta rule with a decay for each head."""

    def __init__(
        self,
        members: int,
        d_model: int,
        config: DeltaHeads,
        layer: LayerContext,
        options: DeltaOptions | None = None,
    ) -> None:
        super().__init__(config.sizes, options or DeltaOptions(), layer)
        self.rate = WritingRate(members, d_model, config.groups, config.negative_eigenvalues)
        self.decay = StepDecay(members, d_model, config.groups)

    def inputs(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> DeltaInputs:
        rates, decays = self.writing_gates(x)
        return DeltaInputs(q, k, v, beta=rates, log_decay=decays)

    def writing_gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return rates of writing and log decays, [M, B, T, G]: in Triton from one projection by both weights."""
        if not takes_triton("auto", x):
            return self.rate(x), self.decay(x)
        steps = self.decay.steps
        weight = torch.cat([self.rate.weight, steps.project.weight], dim=-1)
        raw = project(x.flatten(1, -2), weight).view(*x.shape[:-1], -1)
        return delta_gates(raw, steps.step_bias, self.decay.log_rate, doubled=self.rate.doubled)
