"""Linear attention: power attention at p = 1, with a choice of feature map and normaliser.

    S_t = g_t S_(t-1) + f(k_t) v_t^T,   z_t = g_t z_(t-1) + f(k_t)
    y_t = f(q_t)^T S_t / f(q_t)·z_t     normalizer = sum, which needs a non-negative f
    y_t = rms_norm(f(q_t)^T S_t)        normalizer = rms, per head

State: K V sums a head, and K more for z. Work a token: 4 K V a head. Sources: Katharopoulos et al. (arXiv 2006.16236)
for elu + 1 and the sum; Qin et al. (arXiv 2210.10340) for the norm of the output in its place.
"""

from collections.abc import Callable
from typing import Literal, Self, cast

from pydantic import model_validator
from torch import Tensor
from torch.nn import functional

from icl_bench.architectures.base import ARCHITECTURES
from icl_bench.architectures.heads import Memory
from icl_bench.architectures.power import Normalizer, PowerHeads, PowerMemory
from icl_bench.kernels.power.api import Impl
from icl_bench.kernels.power.state import PowerState

FeatureMap = Literal["identity", "elu", "relu", "softplus", "exp"]

FEATURE_MAPS: dict[FeatureMap, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "elu": lambda x: functional.elu(x) + 1,
    "relu": functional.relu,
    "softplus": functional.softplus,
    "exp": lambda x: (x - x.amax(dim=-1, keepdim=True).detach()).exp(),
}


class LinearMemory(Memory):
    """A power memory at p = 1 behind a feature map."""

    def __init__(self, feature_map: FeatureMap, sums: PowerMemory) -> None:
        self.map = FEATURE_MAPS[feature_map]
        self.sums = sums
        self.normalise_output = sums.normalise_output

    def attend(self, q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None) -> Tensor:
        return self.sums.attend(self.map(q), self.map(k), v, log_g)

    def initial_state(self, n: int, like: Tensor) -> PowerState:
        return self.sums.initial_state(n, like)

    def step(
        self, q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, state: PowerState
    ) -> tuple[Tensor, PowerState]:
        return self.sums.step(self.map(q), self.map(k), v, log_g, state)


@ARCHITECTURES.register("linear")
class Linear(PowerHeads):
    """Linear attention: one sum of keys times values a head, K x V numbers whatever the length."""

    feature_map: FeatureMap = "identity"
    """What queries and keys go through: `identity`, `elu` (plus 1), `relu`, `softplus`, `exp` (less its maximum)."""
    normalizer: Normalizer | None = None
    """`sum` of scores (not with identity), per-head `rms` norm of the output, or `raw`; rms for identity, else sum."""

    @model_validator(mode="after")
    def _check_normalizer(self) -> Self:
        if self.feature_map == "identity" and self.normalizer == "sum":
            raise ValueError(
                "normalizer=sum needs a non-negative feature map, since a sum of signed scores can vanish; "
                "got feature_map=identity; use feature_map=elu or normalizer=rms"
            )
        return self

    @property
    def degree(self) -> int:
        return 1

    @property
    def chosen_normalizer(self) -> Normalizer:
        return self.normalizer or ("rms" if self.feature_map == "identity" else "sum")

    def resolved(self, d_model: int) -> Self:
        return super().resolved(d_model).model_copy(update={"normalizer": self.chosen_normalizer})

    def memory(self, impl: str) -> Memory:
        return LinearMemory(self.feature_map, PowerMemory(self, 1, self.chosen_normalizer, cast(Impl, impl)))
