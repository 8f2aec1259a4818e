"""Sliding-window attention: softmax over the last w keys, the current one included.

    A_ij = exp(G_i - G_j) exp(q_i·k_j / sqrt(K)) for i - w < j <= i,   y_i = sum_j A_ij v_j / sum_j A_ij

State: G (K + V) min(w, T) numbers, and G min(w, T) more where there is a gate. Work a token: 2 H (K + V) w. Through n
layers a token reaches n (w - 1) positions back. Source: Beltagy et al. (arXiv 2004.05150); the published recall code
(zoology) sees w + 1 keys, this sees w.
"""

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from icl_bench.architectures.base import ARCHITECTURES, Knob
from icl_bench.architectures.heads import KEY_WIDTH, VALUE_WIDTH
from icl_bench.architectures.softmax import CacheHeads

WINDOW = Knob("w", lambda config, d_model, length: range(1, length + 1))


def key_widths(config: "Window", d_model: int, length: int) -> Sequence[int]:
    """Return the key widths that matching tries: none unless the window itself is given."""
    return KEY_WIDTH.values(config, d_model, length) if "w" in config.model_fields_set else ()


@ARCHITECTURES.register("window")
class Window(CacheHeads):
    """Sliding-window attention: softmax over the last w keys, the current one included."""

    shown = ("w",)
    size_parameters = ("w", *CacheHeads.size_parameters)
    knobs: ClassVar = {"width": (WINDOW, Knob("d_key", key_widths), VALUE_WIDTH)}

    w: int = Field(default=16, ge=1)
    """Number of keys seen, the current one included."""

    @property
    def reach(self) -> int:
        return self.w
