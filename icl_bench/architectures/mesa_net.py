"""MesaNet: queries are multiplied by the inverse of the keys' own sum, so that each read is a regression on the past.

    A_t = g_t A_(t-1) + b_t k_t k_t^T,   S_t = g_t S_(t-1) + b_t k_t v_t^T
    y_t = S_t^T u_t,   (A_t + D(l)) u_t = q_t,   out = rms_norm(y) W_o, the norm over each head
    g_t = sigmoid(x_t W_g + c),   b_t = sigmoid(x_t W_b + d),   l = softplus(p) + 1/4, one for each key channel
    q, k = silu(conv(x W)),   |q_t| = |k_t| = 1;   v = x W_v

u is found by 30 steps of conjugate gradients, each of them one product with A_t for all tokens; a token whose residual
is at the precision of its numbers takes no further step. Gradients are those of the exact solution: one more solve. l
starts at 1, and c at 6, a horizon of 400 tokens, where the published layer starts at 0 and forgets half at each token.
State: K (K + V) sums a head, and the tail of the convolution. Work a token: (62 K + 4 V) K a head. Source: von Oswald
et al. (arXiv 2506.05233).
"""

from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional

from icl_bench.architectures.base import ARCHITECTURES, Flops, LayerContext, StateSize
from icl_bench.architectures.decays import DecayGate
from icl_bench.architectures.frame import Core, HeadsLayout
from icl_bench.architectures.heads import RecurrentHeads
from icl_bench.architectures.initialisation import constant, inverse_softplus, mapped
from icl_bench.architectures.layers import Coefficients, StackedLinear, widen
from icl_bench.kernels.backends import FleetImpl
from icl_bench.kernels.fleet.records import SOLVER_STEPS
from icl_bench.kernels.fleet.solved_reads import solve, solved_reads

LEAST_RIDGE = 0.25
"""Lower bound of l, which keeps the solver fast."""


@ARCHITECTURES.register("mesa-net")
class MesaNet(RecurrentHeads):
    """MesaNet: linear attention whose reads solve a least-squares problem over all that was written."""

    family = "decay of heads"
    operator = "own"

    @property
    def layout(self) -> HeadsLayout:
        return super().layout._replace(silu=True, mixes_values=False, key_norm="l2", output_norm="head")

    def core(self, members: int, d_model: int, gate: DecayGate | None, layer: LayerContext) -> Core:
        return MesaCore(members, d_model, self, layer)

    def core_size(self, length: int) -> StateSize:
        return StateSize(sums=self.heads * self.key_width * (self.key_width + self.value_width))

    def core_flops(self, d_model: int, length: int) -> Flops:
        products = 2 * (SOLVER_STEPS + 1) * self.key_width + 4 * self.value_width
        return Flops(4.0 * d_model * self.heads, float(self.heads * self.key_width * products))


class MesaState(NamedTuple):
    """State of a `MesaCore`."""

    keys: Tensor
    """Sum of products of keys, A, [M, B, H, K, K]."""
    values: Tensor
    """Values by key, S, [M, B, H, K, V]."""


class MesaCore(Core):
    """Linear attention with solved queries."""

    def __init__(self, members: int, d_model: int, config: MesaNet, layer: LayerContext) -> None:
        super().__init__()
        self.config, self.impl = config, cast(FleetImpl, layer.impl)
        self.forget = DecayGate(members, d_model, config.heads, decay=False)
        self.write = StackedLinear(members, d_model, config.heads, bias=constant(0.0), decay=False)
        start = mapped(constant(1 - LEAST_RIDGE), inverse_softplus)
        self.raw_ridge = Coefficients(members, (config.heads, config.key_width), start)

    def ridge(self) -> Tensor:
        """Return l, [M, H, K]."""
        return functional.softplus(widen(self.raw_ridge.weight)) + LEAST_RIDGE

    def forward(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        log_g, rate = self.forget(x), widen(self.write(x)).sigmoid()
        with torch.autocast(x.device.type, enabled=False):  # the solver stalls in bfloat16
            return solved_reads(q, k, v, log_g, rate, self.ridge(), impl=self.impl)

    def initial_state(self, batch: int, like: Tensor) -> MesaState:
        shape, width = (like.shape[0], batch, self.config.heads, self.config.key_width), self.config.value_width
        zeros = widen(like.new_zeros(*shape, shape[-1] + width))
        return MesaState(zeros[..., : shape[-1]], zeros[..., shape[-1] :])

    def step(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, state: MesaState) -> tuple[Tensor, MesaState]:
        rate, gate = widen(self.write(x)).sigmoid()[..., None], self.forget(x).exp()[..., None, None]
        wide, keys, ridge = widen(q), widen(k), self.ridge()[:, None]
        written = (rate * keys)[..., None]
        state = MesaState(
            gate * state.keys + written * keys[..., None, :], gate * state.values + written * widen(v)[..., None, :]
        )
        u = solve(lambda p: (state.keys * p[..., None, :]).sum(-1) + ridge * p, wide)
        return (state.values * u[..., None]).sum(-2).to(v.dtype), state
