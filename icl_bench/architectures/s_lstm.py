"""sLSTM: an LSTM with exponential input gates, a normaliser, and recurrent weights within each head.

    c_t = F_t c_(t-1) + I_t tanh(z_t),   n_t = F_t n_(t-1) + I_t,   y_t = sigmoid(o_t) * c_t / n_t
    m_t = max(log sigmoid(f_t) + m_(t-1), i_t),   I_t = exp(i_t - m_t),   F_t = exp(log sigmoid(f_t) + m_(t-1) - m_t)
    z_t, o_t = x_t W + y_(t-1) R + b,   i_t, f_t = silu(conv(x_t)) W' + y_(t-1) R' + b'
    out = layer_norm(y_t) W_o, the norm over each head

R and R' are matrices of each head and start at 0; the bias of f starts at 5 - 12 (j / (J - 1))^(0.3 + 1.3 r) for
channel j of the J of a head, r from 0 in the first to 1 in the last layer. State: c, n, m and y, 4 E C numbers, E C =
`d_inner`, and the tail of the convolution. Work a token: 8 (E C)^2 / heads for R. Source: Beck et al. (arXiv
2405.04517), whose block has no W_o. It trains token by token.
"""

from typing import ClassVar, NamedTuple, Self

import torch
from pydantic import Field
from torch import Tensor

from icl_bench.architectures.base import ARCHITECTURES, FirstLayer, Flops, LayerContext, Mixer, StateSize
from icl_bench.architectures.initialisation import constant, fixed
from icl_bench.architectures.layers import LayerNorm, PublishedInit, ShortConv, Stacked, StackedLinear
from icl_bench.architectures.lstm import Lstm
from icl_bench.architectures.token_shift import depth
from icl_bench.errors import SpecError
from icl_bench.kernels.fleet.recurrent_cells import ScalarLstmCell, initial_scalar_lstm, next_cell, recurrent_cells


@ARCHITECTURES.register("s-lstm")
class ScalarLstm(Lstm):
    """sLSTM: exponential gates around a vector of state, and recurrent weights within each head."""

    published_init: ClassVar[PublishedInit] = "small"
    size_parameters: ClassVar[tuple[str, ...]] = ("d_inner", "heads")

    heads: int = Field(default=4, ge=1)
    """Heads; `d_inner` is a multiple of it."""
    conv: int = Field(default=4, ge=1)
    """Width of the convolution on the inputs of the input and the forget gates."""

    def resolved(self, d_model: int) -> Self:
        full = super().resolved(d_model)
        if full.channels(d_model) % full.heads:
            raise SpecError(f"d_inner must be a multiple of heads = {full.heads}; got {full.d_inner}; change either")
        return full

    def build(self, members: int, d_model: int, layer: LayerContext) -> Mixer:
        return ScalarLstmMixer(members, d_model, self.resolved(d_model), layer)

    def state_size(self, d_model: int, length: int) -> StateSize:
        return StateSize(sums=4 * self.resolved(d_model).channels(d_model), cache=(self.conv - 1) * d_model)

    def flops(self, d_model: int, length: int) -> Flops:
        inner = self.resolved(d_model).channels(d_model)
        return Flops(2.0 * d_model * (5 * inner + self.conv), 8.0 * inner * inner / self.heads)


class ScalarLstmState(NamedTuple):
    """State of a `ScalarLstmMixer`."""

    cell: ScalarLstmCell
    tail: Tensor
    """Last inputs of the convolution, [M, B, conv - 1, C]."""


class HeadMatrices(Stacked):
    """The matrices R of all heads, which start at 0."""

    weight: Tensor

    def __init__(self, members: int, heads: int, width: int) -> None:
        super().__init__(members)
        self.declare("weight", (heads, width, 4 * width), constant(0.0))


class ScalarLstmMixer(Mixer):
    """The sLSTM."""

    def __init__(self, members: int, d_model: int, config: ScalarLstm, layer: LayerContext) -> None:
        super().__init__()
        inner, width = config.channels(d_model), config.channels(d_model) // config.heads
        ramp = torch.arange(width, dtype=torch.float64) / max(1, width - 1)
        forget = (5 - 12 * ramp ** (0.3 + 1.3 * depth(layer))).repeat(config.heads)
        self.conv = ShortConv(members, d_model, config.conv, silu=True)
        self.gate = StackedLinear(
            members, d_model, 2 * inner, bias=fixed(torch.cat([torch.zeros(inner), forget])), decay=False
        )
        self.project = StackedLinear(members, d_model, 2 * inner, bias=constant(0.0), decay=False)
        self.recur = HeadMatrices(members, config.heads, width)
        self.norm = LayerNorm(members, (config.heads, width))
        self.output = StackedLinear(members, inner, d_model, layer.output_gain)

    def forward(self, x: Tensor, first: FirstLayer | None = None) -> Tensor:
        gates = self.gates(self.conv(x), x)
        return self.project_out(recurrent_cells(gates, self.recur.weight, "s-lstm"))

    def gates(self, mixed: Tensor, x: Tensor) -> Tensor:
        """Return what the gates take from inputs and their convolution: [M, B, (T,) C] -> [M, B, (T,) 4 E C]."""
        return torch.cat([self.gate(mixed), self.project(x)], dim=-1)

    def project_out(self, y: Tensor) -> Tensor:
        """Turn outputs of the cell [M, B, (T,) E C] into those of the layer."""
        heads = self.norm.weight.shape[1:]
        return self.output(self.norm(y.unflatten(-1, heads)).flatten(-2))

    def initial_state(self, batch: int) -> ScalarLstmState:
        weight = self.recur.weight
        return ScalarLstmState(initial_scalar_lstm(weight, batch, weight.dtype), self.conv.initial_tail(batch))

    def step(
        self, x: Tensor, state: ScalarLstmState, position: int, first: FirstLayer | None = None
    ) -> tuple[Tensor, ScalarLstmState]:
        mixed, tail = self.conv.step(x, state.tail)
        cell = next_cell(self.gates(mixed, x), self.recur.weight, state.cell)
        return self.project_out(cell.y.to(x.dtype)), ScalarLstmState(cell, tail)
