"""The matrix LSTM (mLSTM): exponential input gates and a forget gate around sums that their keys normalise.

    C_t = f_t C_(t-1) + i_t k_t v_t^T,   n_t = f_t n_(t-1) + i_t k_t
    y_t = C_t^T q_t / max(|n_t·q_t|, 1),   q_t scaled by 1 / sqrt(K)
    i_t = exp(cap(x_t W_i + b_i)),   log f_t = log sigmoid(cap(x_t W_f + b_f)),   cap(u) = 15 tanh(u / 15)
    out = (layer_norm(y) * sigmoid(x W_g)) W_o, the norm over each head

The cap keeps i_t below 3.3e6, so that no running maximum is needed. State: K V sums a head and K for n. Work a token:
4 K (V + 1) a head. Source: Beck et al. (arXiv 2405.04517) in the form of xLSTM-7B (arXiv 2503.13427): no convolution,
keys half as wide as values, gates from x. Their start is that of the first paper: W_i = W_f = 0, b_i normal of
standard deviation 0.1, b_f from 3 to 6 over the heads.
"""

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from icl_bench.architectures.base import ARCHITECTURES, Flops, LayerContext, StateSize
from icl_bench.architectures.decays import DecayGate
from icl_bench.architectures.frame import Core, HeadsLayout
from icl_bench.architectures.heads import RecurrentHeads
from icl_bench.architectures.initialisation import fixed, normal
from icl_bench.architectures.layers import StackedLinear, widen
from icl_bench.architectures.sums import Operands, Sums, SumsCore

GATE_CAP = 15.0
"""Largest logarithm of a gate, and of its inverse."""


@ARCHITECTURES.register("m-lstm")
class MatrixLstm(RecurrentHeads):
    """Matrix LSTM: linear attention with an exponential input gate, a forget gate and a normaliser."""

    family = "decay of heads"
    published_init = "small"
    operator = "power"

    conv: int = Field(default=0, ge=0)
    """Width of the short convolution on queries, keys and values; 0 for none."""

    def default_widths(self, d_model: int) -> tuple[int, int]:
        return max(1, d_model // (2 * self.heads)), d_model // self.heads

    @property
    def layout(self) -> HeadsLayout:
        return super().layout._replace(output_norm="layer", norm_eps=1e-6, output_gate="sigmoid")

    def core(self, members: int, d_model: int, gate: DecayGate | None, layer: LayerContext) -> Core:
        return MatrixLstmCore(members, d_model, self, layer)

    def core_size(self, length: int) -> StateSize:
        return StateSize(sums=self.heads * self.key_width * (self.value_width + 1))

    def core_flops(self, d_model: int, length: int) -> Flops:
        return Flops(4.0 * d_model * self.heads, 4.0 * self.heads * self.key_width * (self.value_width + 1))


class MatrixLstmCore(SumsCore):
    """Sums of keys times values with a column of ones, which makes the normaliser."""

    aligned = True

    def __init__(self, members: int, d_model: int, config: MatrixLstm, layer: LayerContext) -> None:
        super().__init__(Sums(config.heads, config.key_width, config.value_width + 1), layer)
        ramp = torch.linspace(3, 6, config.heads, dtype=torch.float64)
        self.input_gate = StackedLinear(members, d_model, config.heads, gain=0.0, bias=normal(0.1), decay=False)
        self.forget_gate = StackedLinear(members, d_model, config.heads, gain=0.0, bias=fixed(ramp), decay=False)

    def operands(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Operands:
        weights = cap(self.input_gate(x)).exp().to(v.dtype)[..., None]  # one rounding, for values and their sum
        values = torch.cat([weights * v, weights], dim=-1)
        return Operands(q, k, values, functional.logsigmoid(cap(self.forget_gate(x))))

    def finish(self, y: Tensor, operands: Operands, v: Tensor) -> Tensor:
        return y[..., :-1] / y[..., -1:].abs().clamp(min=1)


def cap(x: Tensor) -> Tensor:
    """Return 15 tanh(x / 15), in float32."""
    return GATE_CAP * (widen(x) / GATE_CAP).tanh()
