"""Retention: linear attention with a fixed decay for each head.

    S_t = g_h S_(t-1) + k_t v_t^T,   g_h = 1 - 2^(-5-h), h = 0..H-1
    y_t = rms_norm(S_t^T q_t / sqrt(K)) * silu(x_t W_g)

Queries and keys are rotated by position. State: K V sums a head. Work a token: 4 K V a head. Source: Sun et al. (arXiv
2307.08621), without the scale of xPos. The horizons of four heads are 32 to 256 tokens, whatever is learned: with few
heads and long sequences this mixer forgets by design.
"""

import torch
from pydantic import Field
from torch import Tensor

from icl_bench.architectures.base import ARCHITECTURES, Flops, LayerContext
from icl_bench.architectures.decays import DecayGate
from icl_bench.architectures.frame import Core, HeadsLayout
from icl_bench.architectures.heads import RecurrentHeads
from icl_bench.architectures.sums import Operands, Sums, SumsCore

SHORTEST_HORIZON = 5
"""Exponent of the first head: its decay is 1 - 2^-5, a horizon of 32 tokens."""


@ARCHITECTURES.register("ret-net")
class RetNet(RecurrentHeads):
    """Retention: fixed decays, the ablation of every learned gate."""

    family = "decay of heads"
    operator = "power"

    conv: int = Field(default=0, ge=0)
    """Width of the short convolution on queries, keys and values; 0 for none."""

    def default_widths(self, d_model: int) -> tuple[int, int]:
        width = d_model // self.heads
        return width - width % 2, 2 * width

    @property
    def layout(self) -> HeadsLayout:
        return super().layout._replace(rope=True, output_norm="head", output_gate="silu")

    def core(self, members: int, d_model: int, gate: DecayGate | None, layer: LayerContext) -> Core:
        return RetentionCore(self, layer)

    def core_flops(self, d_model: int, length: int) -> Flops:
        return Flops(0.0, 4.0 * self.heads * self.key_width * self.value_width)


class RetentionCore(SumsCore):
    """Sums of keys times values with fixed decays."""

    def __init__(self, config: RetNet, layer: LayerContext) -> None:
        super().__init__(Sums(config.heads, config.key_width, config.value_width), layer)

    def operands(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Operands:
        exponents = torch.arange(self.sums.heads, device=x.device, dtype=torch.float64) + SHORTEST_HORIZON
        log_g = torch.log1p(-torch.exp2(-exponents)).to(torch.promote_types(x.dtype, torch.float32))
        return Operands(q, k, v, log_g.expand(v.shape[:-1]))
