"""LSTM: a vector of state whose gates read the output of the token before, so that tokens go one after the other.

    c_t = sigmoid(f_t) * c_(t-1) + sigmoid(i_t) * tanh(z_t),   y_t = sigmoid(o_t) * tanh(c_t),   out = y W_o
    i_t, f_t, z_t, o_t = x_t W + y_(t-1) R + b

The bias of f starts at 1, all others at 0. State: c and y, 2 E C numbers, E C = `d_inner`. Work a token: 8 (E C)^2 for
R. Source: Greff et al. (arXiv 1503.04069), without peepholes. A reference for tasks that a parallel recurrence cannot
do; it trains token by token.
"""

from typing import ClassVar

import torch
from torch import Tensor

from icl_bench.architectures.base import ARCHITECTURES, FirstLayer, Flops, LayerContext, Mixer, StateSize
from icl_bench.architectures.decays import TORCH_GAIN
from icl_bench.architectures.initialisation import fixed
from icl_bench.architectures.layers import StackedLinear
from icl_bench.architectures.min_gru import MinGru
from icl_bench.kernels.fleet.recurrent_cells import LstmCell, initial_lstm, next_cell, recurrent_cells


@ARCHITECTURES.register("lstm")
class Lstm(MinGru):
    """LSTM: a vector of state whose gates read the output before; a reference for the tracking of states."""

    family: ClassVar[str] = "token by token"
    operator: ClassVar[str] = "own"

    def build(self, members: int, d_model: int, layer: LayerContext) -> Mixer:
        return LstmMixer(members, d_model, self.channels(d_model), layer)

    def state_size(self, d_model: int, length: int) -> StateSize:
        return StateSize(sums=2 * self.channels(d_model))

    def flops(self, d_model: int, length: int) -> Flops:
        inner = self.channels(d_model)
        return Flops(10.0 * d_model * inner, 8.0 * inner * inner)


class LstmMixer(Mixer):
    """The LSTM."""

    def __init__(self, members: int, d_model: int, inner: int, layer: LayerContext) -> None:
        super().__init__()
        bias = torch.cat([torch.full((inner,), 1.0 if gate == "f" else 0.0) for gate in "ifzo"])
        self.project = StackedLinear(members, d_model, 4 * inner, TORCH_GAIN, fixed(bias), decay=False)
        self.recur = StackedLinear(members, inner, 4 * inner, TORCH_GAIN)
        self.output = StackedLinear(members, inner, d_model, layer.output_gain)

    def forward(self, x: Tensor, first: FirstLayer | None = None) -> Tensor:
        return self.output(recurrent_cells(self.project(x), self.recur.weight[:, None], "lstm"))

    def initial_state(self, batch: int) -> LstmCell:
        weight = self.recur.weight
        return initial_lstm(weight[:, None], batch, weight.dtype)

    def step(
        self, x: Tensor, state: LstmCell, position: int, first: FirstLayer | None = None
    ) -> tuple[Tensor, LstmCell]:
        state = next_cell(self.project(x), self.recur.weight[:, None], state)
        return self.output(state.y.to(x.dtype)), state
