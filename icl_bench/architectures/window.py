"""Sliding-window attention: softmax over the last w keys, the current one included.

    A_ij = exp(G_i - G_j) exp(q_i·k_j / sqrt(K)) for i - w < j <= i,   y_i = sum_j A_ij v_j / sum_j A_ij

State: G (K + V) min(w, T) numbers, and G min(w, T) more where there is a gate. Work a token: 2 H (K + V) w. Through n
layers a token reaches n (w - 1) positions back. Source: Beltagy et al. (arXiv 2004.05150); the published recall code
(zoology) sees w + 1 keys, this sees w.
"""

from pydantic import Field

from icl_bench.architectures.base import ARCHITECTURES
from icl_bench.architectures.softmax import CacheHeads


@ARCHITECTURES.register("window")
class Window(CacheHeads):
    """Sliding-window attention: softmax over the last w keys, the current one included."""

    shown = ("w",)

    w: int = Field(default=16, ge=1)
    """Keys seen, the current one included."""

    @property
    def reach(self) -> int:
        return self.w
