"""The recurrent state of power attention."""

from typing import NamedTuple

from torch import Tensor


class PowerState(NamedTuple):
    """What power attention carries from token to token, in the symmetric basis of `expansion`."""

    s: Tensor
    """[N, G, D, V], D = C(K + p - 1, p): sum of expanded keys times values; float32 (float64 for float64 inputs)."""
    z: Tensor | None
    """[N, G, D]: sum of expanded keys, the normaliser; None when normalize is "none"."""
