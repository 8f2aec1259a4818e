"""Power attention: scores (q·k)^p, a linear recurrence over the symmetric p-th power of the keys.

    A_ij = exp(G_i - G_j) (q_i·k_j / sqrt(K))^p for j <= i,   G = running sum of log g
    y_i  = sum_j A_ij v_j / sum_j A_ij                        normalizer = sum, even p
    y_i  = rms_norm(sum_j A_ij v_j)                           normalizer = rms, per head

    S_t = g_t S_(t-1) + phi(k_t) v_t^T,   z_t = g_t z_(t-1) + phi(k_t),   phi(q)·phi(k) = (q·k)^p

State: D V sums a head, D = C(K + p - 1, p), and D more for z where the normalizer is the sum of scores. Odd p cannot
be normalised by the sum, which can vanish or change sign; it takes a per-head RMS norm of the output unless told
otherwise. The sum of scores is raised by 1e-6, so that it is never 0: at the start, scores are about .18^p, and a
first token is shrunk by 0.1 % at p = 4, but by 3 % at p = 6, and by a quarter where its score is the median one.
Work a token: 4 D V a head. Source: "Scaling Context Requires Rethinking Attention" (arXiv 2507.04239),
equation 7 and section 4; it normalises by the sum and supports even p alone.
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor

from icl_bench.architectures.base import ARCHITECTURES, Flops, Knob, LayerContext, StateSize
from icl_bench.architectures.decays import DecayGate
from icl_bench.architectures.frame import Core, HeadsLayout
from icl_bench.architectures.heads import HeadsArchitecture
from icl_bench.architectures.sums import Operands, Sums, SumsCore
from icl_bench.kernels.power.records import Normalize
from icl_bench.runs.declarations import CapacityLaw
from icl_bench.schema import later

Normalizer = Literal["sum", "rms", "raw"]
"""Divisor of the output: the `sum` of scores, the `rms` of the output per head, or none (`raw`)."""
HIGHEST_POWER = 6


class PowerCore(SumsCore):
    """Power attention on the features of queries and keys, with the shared gate."""

    def __init__(self, config: "PowerHeads", gate: DecayGate | None, layer: LayerContext) -> None:
        normalize: Normalize = "sum" if config.chosen_normalizer == "sum" else "none"
        options = Sums(*config.sizes, config.degree, config.score_scale, normalize, config.score_eps)
        super().__init__(options, layer, gate)
        self.features = config.features

    def operands(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Operands:
        return Operands(self.features(q), self.features(k), v, self.log_gate(x))


class PowerHeads(HeadsArchitecture):
    """Base of the architectures that keep power sums: the size of their state, their work and their law."""

    family = "power sums"
    operator = "power"

    @property
    @abstractmethod
    def degree(self) -> int:
        """Power of the scores, p."""

    @property
    @abstractmethod
    def chosen_normalizer(self) -> Normalizer:
        """Normaliser, of a resolved architecture."""

    @property
    def layout(self) -> HeadsLayout:
        parts = super().layout
        return parts._replace(output_norm="head") if self.chosen_normalizer == "rms" else parts

    @property
    def score_scale(self) -> float | None:
        """Factor on q·k; None for 1 / sqrt(K)."""
        return None

    @property
    def score_eps(self) -> float:
        """Number added to the sum of scores."""
        return 1e-6

    @property
    def feature_function(self) -> Callable[[Tensor], Tensor] | None:
        """Function of queries and keys [..., K] whose power is taken; None for the identity."""
        return None

    def resolved(self, d_model: int) -> Self:
        return super().resolved(d_model).model_copy(update={"normalizer": self.chosen_normalizer})

    def key_rank(self, d_model: int) -> tuple[int, int] | None:
        return super().key_rank(d_model) if self.feature_function is None else None

    def features(self, x: Tensor) -> Tensor:
        """Apply the feature function to queries or keys [..., K]."""
        return x if self.feature_function is None else self.feature_function(x)

    @property
    def expanded_width(self) -> int:
        """Width of a key after expansion, D = C(K + p - 1, p)."""
        return math.comb(self.key_width + self.degree - 1, self.degree)

    @property
    def law(self) -> CapacityLaw | None:
        if self.feature_function is not None or self.silu:
            return None
        groups, key, value = self.sizes
        return CapacityLaw(degree=self.degree, key_width=key, key_heads=groups, value_width=value)

    def core(self, members: int, d_model: int, gate: DecayGate | None, layer: LayerContext) -> Core:
        return PowerCore(self, gate, layer)

    def core_size(self, length: int) -> StateSize:
        columns = self.value_width + (self.chosen_normalizer == "sum")
        return StateSize(sums=self.key_value_heads * self.expanded_width * columns)

    def core_flops(self, d_model: int, length: int) -> Flops:
        columns = self.value_width + (self.chosen_normalizer == "sum")
        return Flops(0.0, 2.0 * (self.key_value_heads + self.heads) * self.expanded_width * columns)


@ARCHITECTURES.register("power")
class Power(PowerHeads):
    """Power attention, scores (q·k)^p: the state grows with p, the parameters do not."""

    shown = ("p",)
    knobs: ClassVar = {
        **HeadsArchitecture.knobs,
        "degree": (Knob("p", lambda config, d_model, length: range(1, HIGHEST_POWER + 1)),),
    }

    p: int = Field(default=2, ge=1, le=HIGHEST_POWER)
    """Power of the scores."""
    normalizer: Normalizer | None = None
    """`sum` of scores (even p), per-head `rms` norm of the output, or `raw`; by default sum, for odd p rms."""
    eps: float = later(1e-6, gt=0)
    """Number added to the sum of scores."""
    scale: float | None = later(None, gt=0)
    """Factor on q·k; 1 / sqrt(d_key) by default."""

    @model_validator(mode="after")
    def _check_normalizer(self) -> Self:
        if self.p % 2 and self.normalizer == "sum":
            raise ValueError(
                f"normalizer=sum needs an even p, since a sum of odd powers can vanish; got p={self.p}; "
                "use normalizer=rms or an even p"
            )
        return self

    @property
    def degree(self) -> int:
        return self.p

    @property
    def score_scale(self) -> float | None:
        return self.scale

    @property
    def score_eps(self) -> float:
        return self.eps

    @property
    def chosen_normalizer(self) -> Normalizer:
        return self.normalizer or ("rms" if self.p % 2 else "sum")
