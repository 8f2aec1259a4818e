"""Test-time training with an inner network of two layers (TTT-MLP).

    W_t = W_s - n_t sum_(s < j <= t) e_j dl_j/dW for both layers, their biases alike
    l_j = |LN(f_s(k_j)) - (v_j - k_j)|^2 / 2,   f(x) = gelu(x W_1 + b_1) W_2 + b_2,   y_t = q_t + LN(f_t(q_t))

All else is that of `ttt-linear`; the hidden layer has 4 K columns, and r = 0.1. State: both layers and the sums of
their gradients, 2 (8 K^2 + 5 K) numbers a head. Work a token: 80 K^2 a head. Source: Sun et al. (arXiv 2407.04620).
"""

from pydantic import Field

from icl_bench.architectures.base import ARCHITECTURES
from icl_bench.architectures.ttt_linear import TttLinear

INNER_EXPANSION = 4


@ARCHITECTURES.register("ttt-mlp")
class TttMlp(TttLinear):
    """Test-time training of a network of two layers: a step of gradient descent for each token."""

    rate: float = Field(default=0.1, gt=0)
    """Largest inner learning rate, r, before its division by K."""

    @property
    def inner_widths(self) -> list[int]:
        return [self.key_width, INNER_EXPANSION * self.key_width, self.key_width]
