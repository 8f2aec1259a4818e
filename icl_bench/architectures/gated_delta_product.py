"""Gated DeltaProduct: several writes of the delta rule at each token.

    S <- a_t S,   then for j = 1..n:  S <- S + b_tj k_tj (v_tj - S^T k_tj)^T,   b_tj = 2 sigmoid(x_t W_bj)
    log a_t = -exp(A) softplus(x_t W_a + c), one for each value head; a_t = 1 without `gate`
    y_t = rms_norm(S_t^T q_t / sqrt(K)) * silu(x_t W_g)

The transition of a token is a product of n reflections, so that n = 2 can rotate and n = 3 or 4 can permute more. q, k
and v have a convolution and a SiLU; q and k have length 1. State: K V sums a value head, and the tail of the
convolution on q and on the n keys and values. Work a token: (4 n + 2) K V a value head. Source: Siems et al. (arXiv
2502.10297).
"""

from pydantic import Field
from torch import Tensor

from icl_bench.architectures.base import ARCHITECTURES, LayerContext
from icl_bench.architectures.decays import DecayGate, StepDecay
from icl_bench.architectures.deltas import DeltaCore, DeltaHeads, WritingRate
from icl_bench.architectures.frame import Core, HeadsLayout
from icl_bench.kernels.delta.records import DeltaInputs, DeltaOptions


@ARCHITECTURES.register("gated-delta-product")
class GatedDeltaProduct(DeltaHeads):
    """Gated DeltaProduct: n writes of the delta rule to a token, for tracking of states."""

    shown = ("n",)

    n: int = Field(default=2, ge=1)
    """Writes to a token."""
    negative_eigenvalues: bool = True
    """Double the writing rate, so that a write can turn the sign of what its key held (arXiv 2411.12537)."""
    gate: bool = True
    """Let the state decay by a learned gate for each value head and token."""

    def default_widths(self, d_model: int) -> tuple[int, int]:
        return d_model // self.heads, 2 * d_model // self.heads

    @property
    def layout(self) -> HeadsLayout:
        return super().layout._replace(output_gate="silu", writes=self.n)

    def core(self, members: int, d_model: int, gate: DecayGate | None, layer: LayerContext) -> Core:
        return ProductCore(members, d_model, self, layer)

    def gate_products(self, d_model: int) -> int:
        return (self.n + self.gate) * d_model * self.groups

    @property
    def write_flops(self) -> float:
        return (4.0 * self.n + 2.0) * self.groups * self.key_width * self.value_width


class ProductCore(DeltaCore):
    """The delta rule with n keys and values to a query."""

    def __init__(self, members: int, d_model: int, config: GatedDeltaProduct, layer: LayerContext) -> None:
        super().__init__(config.sizes, DeltaOptions(), layer)
        self.writes = config.n
        self.rate = WritingRate(members, d_model, config.n * config.groups, config.negative_eigenvalues)
        self.decay = StepDecay(members, d_model, config.groups) if config.gate else None

    def inputs(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> DeltaInputs:
        log_decay = None if self.decay is None else self.decay(x)
        return DeltaInputs(q, self.in_turn(k), self.in_turn(v), beta=self.in_turn(self.rate(x)), log_decay=log_decay)

    def in_turn(self, x: Tensor) -> Tensor:
        """Put the writes of a token one after the other: [M, B, T, n heads, ...] -> [M, B, n T, heads, ...]."""
        turns: Tensor = x.unflatten(3, (self.writes, -1))
        return turns.flatten(2, 3)
