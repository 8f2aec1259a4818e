"""The minimal LSTM (minLSTM): forget and input gates that do not read the state, and together make 1.

    c_t = f_t / (f_t + i_t) * c_(t-1) + i_t / (f_t + i_t) * g(x_t W_h),   out = c W_o
    f_t = sigmoid(x_t W_f),   i_t = sigmoid(x_t W_i);   g(u) = u + 1/2 for u >= 0, else sigmoid(u)

State: one number for each of the E C channels, E C = `d_inner`. Work a token: 4 E C. Source: Feng et al. (arXiv
2410.01201), in the form whose gates are normalised.
"""

from torch import Tensor

from icl_bench.architectures.base import ARCHITECTURES, Flops, LayerContext, Mixer
from icl_bench.architectures.frame import fold
from icl_bench.architectures.layers import StackedLinear, widen
from icl_bench.architectures.min_gru import MinGru, MinGruMixer, positive_part


@ARCHITECTURES.register("min-lstm")
class MinLstm(MinGru):
    """Minimal LSTM: a vector of state, each channel with a forget gate and an input gate."""

    def build(self, members: int, d_model: int, layer: LayerContext) -> Mixer:
        return MinLstmMixer(members, d_model, self.channels(d_model), layer)

    def flops(self, d_model: int, length: int) -> Flops:
        inner = self.channels(d_model)
        return Flops(8.0 * d_model * inner, 4.0 * inner)


class MinLstmMixer(MinGruMixer):
    """The linear scan of normalised gates; `gate` forgets, `entry` admits."""

    def __init__(self, members: int, d_model: int, inner: int, layer: LayerContext) -> None:
        super().__init__(members, d_model, inner, layer)
        self.entry = StackedLinear(members, d_model, inner)

    def operands(self, x: Tensor) -> tuple[Tensor, Tensor]:
        keep, admit = widen(self.gate(x)).sigmoid(), widen(self.entry(x)).sigmoid()
        total = keep + admit
        return fold(keep / total), fold(admit / total * positive_part(widen(self.candidate(x))))
