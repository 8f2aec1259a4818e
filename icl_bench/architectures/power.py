"""Power attention: scores (q·k)^p, a linear recurrence over the symmetric p-th power of the keys.

    A_ij = exp(G_i - G_j) (q_i·k_j / sqrt(K))^p for j <= i,   G = running sum of log g
    y_i  = sum_j A_ij v_j / sum_j A_ij                        normalizer = sum, even p
    y_i  = rms_norm(sum_j A_ij v_j)                           normalizer = rms, per head

    S_t = g_t S_(t-1) + phi(k_t) v_t^T,   z_t = g_t z_(t-1) + phi(k_t),   phi(q)·phi(k) = (q·k)^p

State: D V sums a head, D = C(K + p - 1, p), and D more for z where the normalizer is the sum of scores. Odd p cannot
be normalised by the sum, which can vanish or change sign; it takes a per-head RMS norm of the output unless told
otherwise. Work a token: 4 D V a head. Source: "Scaling Context Requires Rethinking Attention" (arXiv 2507.04239),
equation 7 and section 4; it normalises by the sum and supports even p alone.
"""

import math
from abc import abstractmethod
from typing import Literal, Self, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor

from icl_bench.architectures.base import ARCHITECTURES, StateSize
from icl_bench.architectures.heads import HeadsArchitecture, Memory
from icl_bench.kernels.power.api import Impl, initial_power_state, power_attention, power_step
from icl_bench.kernels.power.state import PowerState

Normalizer = Literal["sum", "rms", "raw"]
"""What the output is divided by: the `sum` of scores, its own `rms` per head, or nothing (`raw`)."""
HIGHEST_POWER = 6


class PowerMemory(Memory):
    """Sums of expanded keys times values, and of expanded keys alone where scores are normalised by their sum."""

    def __init__(self, config: HeadsArchitecture, p: int, normalizer: Normalizer, impl: Impl) -> None:
        self.config = config
        self.p = p
        self.normalise_output = normalizer == "rms"
        self.normalize: Literal["sum", "none"] = "sum" if normalizer == "sum" else "none"
        self.impl: Impl = impl

    def attend(self, q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None) -> Tensor:
        return power_attention(q, k, v, log_g, p=self.p, normalize=self.normalize, impl=self.impl)

    def initial_state(self, n: int, like: Tensor) -> PowerState:
        full = self.config
        return initial_power_state(
            n,
            full.key_value_heads,
            full.key_width,
            full.value_width,
            p=self.p,
            normalize=self.normalize,
            device=like.device,
            dtype=torch.float64 if like.dtype == torch.float64 else torch.float32,
        )

    def step(
        self, q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, state: PowerState
    ) -> tuple[Tensor, PowerState]:
        return power_step(q, k, v, log_g, state, p=self.p, normalize=self.normalize)


class PowerHeads(HeadsArchitecture):
    """Base of the architectures that keep power sums: what their state and their work come to."""

    @property
    @abstractmethod
    def degree(self) -> int:
        """The power p."""

    @property
    @abstractmethod
    def chosen_normalizer(self) -> Normalizer:
        """The normalizer, of a resolved architecture."""

    @property
    def expanded_width(self) -> int:
        """D = C(K + p - 1, p)."""
        return math.comb(self.key_width + self.degree - 1, self.degree)

    def memory_size(self, length: int) -> StateSize:
        columns = self.value_width + (self.chosen_normalizer == "sum")
        return StateSize(sums=self.key_value_heads * self.expanded_width * columns)

    def memory_flops(self, length: int) -> float:
        columns = self.value_width + (self.chosen_normalizer == "sum")
        return 2.0 * (self.key_value_heads + self.heads) * self.expanded_width * columns


@ARCHITECTURES.register("power")
class Power(PowerHeads):
    """Power attention, scores (q·k)^p: the state grows with p, the parameters do not."""

    shown = ("p",)

    p: int = Field(default=2, ge=1, le=HIGHEST_POWER)
    """Power of the scores."""
    normalizer: Normalizer | None = None
    """`sum` of scores (even p), per-head `rms` norm of the output, or `raw`; by default sum, for odd p rms."""

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
    def chosen_normalizer(self) -> Normalizer:
        return self.normalizer or ("rms" if self.p % 2 else "sum")

    def resolved(self, d_model: int) -> Self:
        return super().resolved(d_model).model_copy(update={"normalizer": self.chosen_normalizer})

    def memory(self, impl: str) -> Memory:
        return PowerMemory(self, self.p, self.chosen_normalizer, cast(Impl, impl))
