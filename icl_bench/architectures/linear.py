"""Linear attention: power attention at p = 1, with a choice of feature map and normaliser.

    S_t = g_t S_(t-1) + f(k_t) v_t^T,   z_t = g_t z_(t-1) + f(k_t)
    y_t = f(q_t)^T S_t / f(q_t)·z_t     normalizer = sum, which needs a non-negative f
    y_t = rms_norm(f(q_t)^T S_t)        normalizer = rms, per head

State: K V sums a head, and K more for z. Work a token: 4 K V a head. Sources: Katharopoulos et al. (arXiv 2006.16236)
for elu + 1 and the sum; Qin et al. (arXiv 2210.10340) for the norm of the output in its place.
"""

from collections.abc import Callable, Mapping
from typing import Literal, Self

from pydantic import model_validator
from torch import Tensor
from torch.nn import functional

from icl_bench.architectures.base import ARCHITECTURES
from icl_bench.architectures.power import Normalizer, PowerHeads

FeatureMap = Literal["identity", "elu", "relu", "softplus", "exp"]

FEATURE_MAPS: Mapping[FeatureMap, Callable[[Tensor], Tensor]] = {
    "elu": lambda x: functional.elu(x) + 1,
    "relu": functional.relu,
    "softplus": functional.softplus,
    "exp": lambda x: (x - x.amax(dim=-1, keepdim=True).detach()).exp(),
}
"""Functions of queries and keys by name; `identity` has none."""


@ARCHITECTURES.register("linear")
class Linear(PowerHeads):
    """Linear attention: one sum of keys times values a head, K x V numbers whatever the length."""

    feature_map: FeatureMap = "identity"
    """Function of queries and keys: `identity`, `elu` (plus 1), `relu`, `softplus`, `exp` (of x less its maximum)."""
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

    @property
    def feature_function(self) -> Callable[[Tensor], Tensor] | None:
        return FEATURE_MAPS.get(self.feature_map)
