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
from icl_bench.kernels.fleet.norm import unit_norm

FeatureMap = Literal["identity", "elu", "relu", "softplus", "exp", "silu-l2"]

FEATURE_MAPS: Mapping[FeatureMap, Callable[[Tensor], Tensor]] = {
    "elu": lambda x: functional.elu(x) + 1,
    "relu": functional.relu,
    "softplus": functional.softplus,
    # a maximum over the sequence would leak later tokens, so it is that of the token: part of the function of a key
    "exp": lambda x: (x - x.amax(dim=-1, keepdim=True)).exp(),
    "silu-l2": lambda x: unit_norm(functional.silu(x)),
}
"""Functions of queries and keys by name; `identity` has none."""
SIGNED: tuple[FeatureMap, ...] = ("identity", "silu-l2")
"""Feature maps whose scores can be negative."""


@ARCHITECTURES.register("linear")
class Linear(PowerHeads):
    """Linear attention: one sum of keys times values a head, K x V numbers whatever the length."""

    feature_map: FeatureMap = "identity"
    """Function of queries and keys: `identity`, `elu` (plus 1), `relu`, `softplus`, `exp` (of x less its maximum), or
    `silu-l2`, SiLU and then length 1 (Yang et al., arXiv 2406.06484)."""
    normalizer: Normalizer | None = None
    """`sum` of scores, per-head `rms` norm of the output, or `raw`; by default rms for identity and silu-l2, whose
    scores can be negative, and sum for the others."""

    @model_validator(mode="after")
    def _check_normalizer(self) -> Self:
        if self.feature_map in SIGNED and self.normalizer == "sum":
            raise ValueError(
                "normalizer=sum needs a non-negative feature map, since a sum of signed scores can vanish; "
                f"got feature_map={self.feature_map}; use feature_map=elu or normalizer=rms"
            )
        return self

    @property
    def version(self) -> int:
        # until version 2 the maximum of `exp` had no gradient, although it is no factor that cancels
        return 2 if self.feature_map == "exp" else 1

    @property
    def degree(self) -> int:
        return 1

    @property
    def chosen_normalizer(self) -> Normalizer:
        return self.normalizer or ("rms" if self.feature_map in SIGNED else "sum")

    @property
    def feature_function(self) -> Callable[[Tensor], Tensor] | None:
        return FEATURE_MAPS.get(self.feature_map)
