"""Gated delta rule: a recurrence that corrects what its key reads, with learned decays and rates of writing.

    u_t = v_t - (a_t S_(t-1))^T k_t,   S_t = a_t S_(t-1) + b_t k_t u_t^T,   y_t = rms_norm(S_t^T q_t) silu(x_t W_g)
    log a_t = -exp(A) softplus(x_t W_a + c),   b_t = sigmoid(x_t W_b),   |q_t| = |k_t| = 1

State: K V sums a key-value head. Source: Yang et al. (arXiv 2412.06464).
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from icl_bench.architectures.base import ARCHITECTURES, Flops, LayerContext, StateSize
from icl_bench.architectures.heads import Core, DecayGate, HeadsArchitecture
from icl_bench.architectures.initialisation import inverse_softplus, log_uniform, mapped, uniform_between
from icl_bench.architectures.layers import RMSNorm, Stacked, StackedLinear


@ARCHITECTURES.register("gated-delta")
class GatedDelta(HeadsArchitecture):
    """Gated delta rule: each write replaces the value that its key held."""

    residual: bool = False
    """Average the values of later layers with those of the first layer."""

    def core(self, members: int, d_model: int, gate: DecayGate | None, layer: LayerContext) -> Core:
        return DeltaCore(members, d_model, self)

    def core_size(self, length: int) -> StateSize:
        return StateSize(sums=self.key_value_heads * self.key_width * self.value_width)

    def core_flops(self, d_model: int, length: int) -> Flops:
        own = self.key_value_heads * (2 + self.heads * self.value_width // self.key_value_heads)
        read_and_write = 2 * self.key_value_heads + self.heads
        return Flops(2.0 * d_model * own, 2.0 * read_and_write * self.key_width * self.value_width)


class DeltaState(NamedTuple):
    """State of a `DeltaCore`."""

    sums: Tensor
    """Values by key, [M, B, G, K, V]."""


class Decay(Stacked):
    """-exp(A) softplus(x W + c): the logarithm of a decay for each head, [M, ..., C] -> [M, ..., G]."""

    weight: Tensor
    rate: Tensor
    bias: Tensor

    def __init__(self, members: int, d_model: int, heads: int) -> None:
        super().__init__(members)
        self.declare("weight", (d_model, heads), uniform_between(-(d_model**-0.5), d_model**-0.5))
        self.declare("rate", (heads,), mapped(uniform_between(1, 16), torch.log), decay=False)
        self.declare("bias", (heads,), mapped(log_uniform(1e-3, 1e-1), inverse_softplus), decay=False)

    def forward(self, x: Tensor) -> Tensor:
        shape = (-1, *(1,) * (x.dim() - 2), self.bias.shape[-1])
        step = functional.softplus(torch.einsum("m...c,mcg->m...g", x, self.weight) + self.bias.view(shape))
        return -self.rate.exp().view(shape) * step


class DeltaCore(Core):
    """The delta rule, one token after the other."""

    def __init__(self, members: int, d_model: int, config: GatedDelta) -> None:
        super().__init__()
        self.config, self.asks_first_layer = config, config.residual
        self.decay = Decay(members, d_model, config.key_value_heads)
        self.rate = StackedLinear(members, d_model, config.key_value_heads)
        self.norm = RMSNorm(members, config.value_width)
        self.output_gate = StackedLinear(members, d_model, config.heads * config.value_width)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        state, rows = self.initial_state(q.shape[1], v), []
        for t in range(q.shape[2]):
            y, state = self.step(q[:, :, t], k[:, :, t], v[:, :, t], x[:, :, t], state)
            rows.append(y)
        return torch.stack(rows, dim=2)

    def initial_state(self, batch: int, like: Tensor) -> DeltaState:
        full = self.config
        return DeltaState(like.new_zeros(like.shape[0], batch, full.key_value_heads, full.key_width, full.value_width))

    def step(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, state: DeltaState) -> tuple[Tensor, DeltaState]:
        q, k = (functional.normalize(functional.silu(one), dim=-1) for one in (q, k))
        decayed = self.decay(x).exp()[..., None, None] * state.sums
        error = v - torch.einsum("mbgkv,mbgk->mbgv", decayed, k)
        written = torch.einsum("mbg,mbgk,mbgv->mbgkv", self.rate(x[:, :, None])[:, :, 0].sigmoid(), k, error)
        sums = decayed + written
        read = sums.repeat_interleave(self.config.heads // self.config.key_value_heads, dim=2)
        y = self.norm(torch.einsum("mbhkv,mbhk->mbhv", read, q))
        gate = self.output_gate(x[:, :, None])[:, :, 0]
        return y * functional.silu(gate).view(y.shape), DeltaState(sums)

    def blend(self, v: Tensor, first: Tensor, x: Tensor) -> Tensor:
        return (v + first) / 2
