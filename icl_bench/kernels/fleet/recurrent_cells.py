"""Cells of an LSTM and an sLSTM over all tokens: their gates read the output of the token before.

    raw_t = gates_t + y_(t-1) R, for i, f, z, o                                       (R within each head)
    lstm:    c_t = sigmoid(f) c_(t-1) + sigmoid(i) tanh(z),   y_t = sigmoid(o) tanh(c_t)
    s-lstm:  c_t = F c_(t-1) + I tanh(z),   n_t = F n_(t-1) + I,   y_t = sigmoid(o) c_t / n_t
             m_t = max(log sigmoid(f) + m_(t-1), i),   I = exp(i - m_t),   F = exp(log sigmoid(f) + m_(t-1) - m_t)

y does not depend on m, which only keeps c and n within the range of numbers.
"""

from typing import NamedTuple, TypeVar, get_args

import torch
from torch import Tensor
from torch.nn import functional

from icl_bench.kernels.arguments import accumulation_dtype, check_choice, check_shape
from icl_bench.kernels.backends import FleetImpl, takes_triton
from icl_bench.kernels.fleet.records import BEFORE_ANY, CellForm


class LstmCell(NamedTuple):
    """State of an LSTM cell, [M, B, E] each."""

    c: Tensor
    y: Tensor


class ScalarLstmCell(NamedTuple):
    """State of an sLSTM cell, [M, B, E] each."""

    c: Tensor
    n: Tensor
    m: Tensor
    y: Tensor


Cell = TypeVar("Cell", LstmCell, ScalarLstmCell)


def recurrent_cells(gates: Tensor, recur: Tensor, form: CellForm, *, impl: FleetImpl = "auto") -> Tensor:
    """Return the outputs y [M, B, T, E], in the type of the gates, from zeros before the first token.

    `gates` [M, B, T, 4 E] is what i, f, z and o take from the inputs, `recur` [M, H, E / H, 4 E / H] are the matrices R
    of H heads. States are float32, or float64 for gates in float64. "triton" is one product and one launch a token.
    """
    check_choice("form", form, get_args(CellForm))
    heads, width = recur.shape[1:3]
    check_shape("gates", gates, (recur.shape[0], *gates.shape[1:3], 4 * heads * width), "[M, B, T, 4 E]")
    check_shape("recur", recur, (recur.shape[0], heads, width, 4 * width), "[M, H, E / H, 4 E / H]")
    if takes_triton(impl, gates):
        from icl_bench.kernels.fleet.triton.recurrent_cells import FusedRecurrentCells

        fused: Tensor = FusedRecurrentCells.apply(gates, recur.to(gates.dtype), form)
        return fused
    given = gates.double() if impl == "reference" else gates
    if form == "lstm":
        y = walk(given, recur, initial_lstm(recur, gates.shape[1], given.dtype))
    else:
        y = walk(given, recur, initial_scalar_lstm(recur, gates.shape[1], given.dtype))
    return y.to(gates.dtype)


def walk(gates: Tensor, recur: Tensor, cell: Cell) -> Tensor:
    """Take one token after the other from a state on; return the outputs of all."""
    rows = []
    for own in gates.unbind(2):  # one gradient of all tokens; that of an index is as large for each
        cell = next_cell(own, recur, cell)
        rows.append(cell.y)
    return torch.stack(rows, dim=2)


def initial_lstm(recur: Tensor, batch: int, dtype: torch.dtype) -> LstmCell:
    """Return the state of an LSTM before the first token, for gates of a type."""
    shape = recur.shape[0], batch, recur.shape[1] * recur.shape[2]
    zeros = recur.new_zeros(shape, dtype=accumulation_dtype(dtype))
    return LstmCell(zeros, zeros)


def initial_scalar_lstm(recur: Tensor, batch: int, dtype: torch.dtype) -> ScalarLstmCell:
    """Return the state of an sLSTM before the first token, for gates of a type."""
    zeros, _ = initial_lstm(recur, batch, dtype)
    return ScalarLstmCell(zeros, zeros, zeros + BEFORE_ANY, zeros)


def next_cell(gates: Tensor, recur: Tensor, cell: Cell) -> Cell:
    """Take one token: what its gates take from its input [M, B, 4 E], the matrices, the state -> the next state."""
    own = from_output(cell.y.to(gates.dtype), recur.to(gates.dtype))
    raw = gates.to(cell.y.dtype) + own.to(cell.y.dtype)
    return next_lstm(raw, cell) if isinstance(cell, LstmCell) else next_scalar_lstm(raw, cell)


def from_output(y: Tensor, recur: Tensor) -> Tensor:
    """Return y R for all gates, [M, B, 4 E] in four blocks."""
    if recur.shape[1] == 1:
        return torch.bmm(y, recur[:, 0])
    heads = torch.einsum("mbhj,mhjk->mbhk", y.unflatten(-1, recur.shape[1:3]), recur)
    gates: Tensor = heads.unflatten(-1, (4, -1)).transpose(2, 3).flatten(2)
    return gates


def next_lstm(raw: Tensor, cell: LstmCell) -> LstmCell:
    """Take one token of an LSTM, from i, f, z and o [M, B, 4 E]."""
    # Few launches: one token is little work.
    shares, z, o = raw.split_with_sizes([2 * cell.c.shape[-1], *[cell.c.shape[-1]] * 2], dim=-1)
    i, f = shares.sigmoid().chunk(2, dim=-1)
    c = torch.addcmul(f * cell.c, i, z.tanh())
    return LstmCell(c, o.sigmoid() * c.tanh())


def next_scalar_lstm(raw: Tensor, cell: ScalarLstmCell) -> ScalarLstmCell:
    """Take one token of an sLSTM, from i, f, z and o [M, B, 4 E]."""
    i, f, z, o = raw.chunk(4, dim=-1)
    kept = functional.logsigmoid(f) + cell.m
    m = torch.maximum(kept, i)
    write, keep = (i - m).exp(), (kept - m).exp()
    c, n = keep * cell.c + write * z.tanh(), keep * cell.n + write
    return ScalarLstmCell(c, n, m, o.sigmoid() * c / n)
