"""Mamba-2: a state-space model in which decay, input and output depend on the token.

    x, B, C = silu(conv(x W_in) + b),   d = softplus(x W_d + c)
    S_t = exp(-d_t exp(A)) S_(t-1) + B_t (d_t x_t)^T,   y_t = S_t^T C_t + D x_t
    out = rms_norm(y * silu(x W_z)) W_out, the norm over all heads together

The keys B and the queries C, of width K, are shared by all heads; x are the values. State: K V sums a head, and the
tail of the convolution. Work a token: 4 K V a head. Source: Dao and Gu (arXiv 2405.21060); there K is called d_state,
V headdim, and H V is twice the model width.
"""

from torch import Tensor

from icl_bench.architectures.base import ARCHITECTURES, Flops, LayerContext
from icl_bench.architectures.decays import DecayGate, StepDecay
from icl_bench.architectures.frame import Core, HeadsLayout
from icl_bench.architectures.heads import RecurrentHeads
from icl_bench.architectures.initialisation import constant, uniform_between
from icl_bench.architectures.layers import Coefficients
from icl_bench.architectures.sums import Operands, Sums, SumsCore
from icl_bench.kernels.fleet.products import scale_heads
from icl_bench.kernels.fleet.state_space import state_space, takes_state_space

STATE_WIDTH = 16


@ARCHITECTURES.register("mamba-2")
class Mamba2(RecurrentHeads):
    """Mamba-2: a scalar decay for each head and token, and keys that all heads share."""

    family = "decay of heads"
    published_init = "torch"
    operator = "power"

    shown = ("d_key",)

    def default_widths(self, d_model: int) -> tuple[int, int]:
        return STATE_WIDTH, 2 * d_model // self.heads

    @property
    def layout(self) -> HeadsLayout:
        bound = max(1, self.conv) ** -0.5
        return super().layout._replace(
            query_heads=1,
            key_heads=1,
            conv_bias=uniform_between(-bound, bound),
            silu=True,
            output_norm="all",
            output_gate="silu",
            gate_first=True,
        )

    def core(self, members: int, d_model: int, gate: DecayGate | None, layer: LayerContext) -> Core:
        return StateSpaceCore(members, d_model, self, layer)

    def core_flops(self, d_model: int, length: int) -> Flops:
        return Flops(2.0 * d_model * self.heads, 4.0 * self.heads * self.key_width * self.value_width)


class StateSpaceCore(SumsCore):
    """Sums of shared keys times values scaled by the step, with decays by the step, and a skip."""

    def __init__(self, members: int, d_model: int, config: Mamba2, layer: LayerContext) -> None:
        super().__init__(Sums(config.heads, config.key_width, config.value_width, scale=1.0), layer)
        self.decay = StepDecay(members, d_model, config.heads)
        self.skip = Coefficients(members, (config.heads, 1), constant(1.0))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        if self.impl != "auto" or not takes_state_space(q, v):
            return super().forward(q, k, v, x)
        sizes, log_rate = self.decay.steps, self.decay.log_rate
        raw, skip = sizes.project(x), self.skip.weight.squeeze(-1)
        return state_space(q.squeeze(-2), k.squeeze(-2), v, raw, sizes.step_bias, log_rate, skip)

    def operands(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Operands:
        steps = self.decay.steps(x)
        return Operands(q, k, scale_heads(v, steps), self.decay.log_decays(steps))

    def finish(self, y: Tensor, operands: Operands, v: Tensor) -> Tensor:
        return scale_heads(v, self.skip(v)[..., 0].expand(v.shape[:-1]), y)
