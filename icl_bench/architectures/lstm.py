"""LSTM: a vector of state whose gates read the output of the token before, so that tokens go one after the other.

    c_t = sigmoid(f_t) * c_(t-1) + sigmoid(i_t) * tanh(z_t),   y_t = sigmoid(o_t) * tanh(c_t),   out = y W_o
    i_t, f_t, z_t, o_t = x_t W + y_(t-1) R + b

The bias of f starts at 1, all others at 0. State: c and y, 2 E C numbers, E C = `d_inner`. Work a token: 8 (E C)^2 for
R. Source: Greff et al. (arXiv 1503.04069), without peepholes. A reference for tasks that a parallel recurrence cannot
do; it trains token by token.
"""

from abc import abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from icl_bench.architectures.base import ARCHITECTURES, FirstLayer, Flops, LayerContext, Mixer, StateSize
from icl_bench.architectures.decays import TORCH_GAIN
from icl_bench.architectures.initialisation import fixed
from icl_bench.architectures.layers import StackedLinear, widen
from icl_bench.architectures.min_gru import MinGru


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


class LoopMixer(Mixer):
    """A cell that takes one token after the other, between a projection to its gates and one of its outputs."""

    @abstractmethod
    def gates(self, x: Tensor) -> Tensor:
        """Return what the gates take from the inputs of all tokens: [M, B, T, C] -> [M, B, T, 4 E C]."""

    @abstractmethod
    def initial_cell(self, batch: int) -> Any:
        """Return the state of the cell before the first token."""

    @abstractmethod
    def cell(self, gates: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Take one token: gates [M, B, 4 E C] -> output [M, B, E C] and the next state, float32."""

    @abstractmethod
    def project_out(self, y: Tensor) -> Tensor:
        """Turn outputs of the cell [M, B, (T,) E C] into those of the layer."""

    def forward(self, x: Tensor, first: FirstLayer | None = None) -> Tensor:
        state, rows = self.initial_cell(x.shape[1]), []
        for gates in self.gates(x).unbind(2):  # one gradient of all tokens; that of an index is as large for each
            y, state = self.cell(gates, state)
            rows.append(y)
        return self.project_out(torch.stack(rows, dim=2).to(x.dtype))


class LstmState(NamedTuple):
    """State of an `LstmMixer`, [M, B, E C] each."""

    c: Tensor
    y: Tensor


class LstmMixer(LoopMixer):
    """The LSTM."""

    def __init__(self, members: int, d_model: int, inner: int, layer: LayerContext) -> None:
        super().__init__()
        bias = torch.cat([torch.full((inner,), 1.0 if gate == "f" else 0.0) for gate in "ifzo"])
        self.project = StackedLinear(members, d_model, 4 * inner, TORCH_GAIN, fixed(bias), decay=False)
        self.recur = StackedLinear(members, inner, 4 * inner, TORCH_GAIN)
        self.output = StackedLinear(members, inner, d_model, layer.output_gain)

    def gates(self, x: Tensor) -> Tensor:
        return self.project(x)

    def cell(self, gates: Tensor, state: LstmState) -> tuple[Tensor, LstmState]:
        # Few launches: one token is little work.
        raw = widen(self.recur(state.y)) + gates
        shares, z, o = raw.split_with_sizes([2 * state.c.shape[-1], *[state.c.shape[-1]] * 2], dim=-1)
        i, f = shares.sigmoid().chunk(2, dim=-1)
        c = torch.addcmul(f * state.c, i, z.tanh())
        y = o.sigmoid() * c.tanh()
        return y, LstmState(c, y)

    def project_out(self, y: Tensor) -> Tensor:
        return self.output(y)

    def initial_cell(self, batch: int) -> LstmState:
        weight = self.output.weight
        zeros = widen(weight.new_zeros(weight.shape[0], batch, weight.shape[1]))
        return LstmState(zeros, zeros)

    def initial_state(self, batch: int) -> LstmState:
        return self.initial_cell(batch)

    def step(
        self, x: Tensor, state: LstmState, position: int, first: FirstLayer | None = None
    ) -> tuple[Tensor, LstmState]:
        y, state = self.cell(self.gates(x), state)
        return self.project_out(y.to(x.dtype)), state
