"""Declarations of architectures, kept in the result of a run so that reports know no architecture by name.

Results written before this was kept have no declarations; `declaration_by_name` gives theirs, from the names that the
architectures of that time and their parameters have. It is also the declaration of a user's own module.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from icl_bench.schema import Count, Frozen

LARGEST_WIDTH = 2**20
"""Largest number of heads or channels of a law of capacity in a record."""
CONVENTIONAL_SIZES = ("w", "heads", "kv_heads", "d_key", "d_value")
"""Names of parameters that set a size, for components that carry no declaration."""
CONVENTIONAL_SHOWN = ("p", "w")
"""Names of parameters that a label always names, for components that carry no declaration."""


class CapacityLaw(Frozen):
    """The dimensions of a sum of p-th powers of keys times values, from which the pairs it recalls are predicted."""

    degree: int = Field(ge=1, le=64)
    """Power of the scores, p."""
    key_width: int = Field(ge=1, le=LARGEST_WIDTH)
    """Key width of a head before the power, K."""
    key_heads: int = Field(ge=1, le=LARGEST_WIDTH)
    """Key-value heads, G."""
    value_width: int = Field(ge=1, le=LARGEST_WIDTH)
    """Value width of a head, V."""


class ArchitectureDeclaration(Frozen):
    """The declaration of the architecture of one component of a pattern."""

    name: str
    """Registered name, or the import path of a user's own module."""
    size_parameters: tuple[str, ...] = ()
    """Parameters that set how large the layer is; components that differ in these alone are of one family."""
    shown: tuple[str, ...] = ()
    """Parameters that a label names even at their defaults."""
    law: CapacityLaw | None = None
    """Dimensions of the law of capacity; none where the layer keeps no power sums of unmapped keys."""
    reach: Count | None = None
    """Number of the latest tokens that the layer sees, the current one included; none for all."""
    short_range: bool = False
    """Reach a fixed few tokens back only: a layer in front of the mixer under study."""


def declaration_by_name(component: Mapping[str, Any]) -> ArchitectureDeclaration:
    """Return the declaration of a component, stored as `name` and `params`, of an old result or a user's own module."""
    name, params = component["name"], component["params"]
    unmapped = params.get("feature_map", "identity") == "identity"
    degree = params.get("p") if name == "power" else 1 if name == "linear" and unmapped else None
    law = None
    if degree is not None and {"d_key", "kv_heads", "d_value"} <= params.keys():
        heads, key_width, value_width = params["kv_heads"], params["d_key"], params["d_value"]
        law = CapacityLaw(degree=degree, key_width=key_width, key_heads=heads, value_width=value_width)
    sizes = tuple(one for one in CONVENTIONAL_SIZES if one in params)
    shown, short = tuple(one for one in CONVENTIONAL_SHOWN if one in params), name == "gated-conv"
    reach = params["w"] if name == "window" else None
    return ArchitectureDeclaration(
        name=name, size_parameters=sizes, shown=shown, law=law, reach=reach, short_range=short
    )
