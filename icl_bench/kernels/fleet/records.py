"""Options of the fleet operators around a multi-head core, which all forms of an operator read."""

from typing import Literal, NamedTuple

GateActivation = Literal["none", "silu", "sigmoid"]
"""Activation of a gate; `none` multiplies by the gate itself."""
DecayForm = Literal["sigmoid", "log-sigmoid"]
"""Activation that makes the logarithm of a decay."""
ColumnForm = Literal["none", "sigmoid", "tanh"]
"""Activation of columns."""
LEAST_LENGTH = 1e-12
"""Least length by which a key that erases is divided."""
UNIT_EPS = 1e-6
"""Added to the squared length by which `unit_norm` divides."""


class HeadColumns(NamedTuple):
    """Consecutive columns that form heads."""

    heads: int
    width: int
    unit: bool = False
    """Divide each head by its length."""


class NormOptions(NamedTuple):
    """Options of a norm with a gate."""

    eps: float = 1e-6
    centred: bool = False
    """Subtract the mean first: a layer norm in place of an RMS norm."""
    activation: GateActivation = "none"
    gate_first: bool = False
    """Multiply by the gate before the norm."""


class Groups(NamedTuple):
    """Equal groups of numbers that lie side by side."""

    groups: int
    size: int
    """Numbers of a group."""
    new_size: int
    """Numbers of a group afterwards."""

    @property
    def inverse(self) -> "Groups":
        """The groups with both sizes exchanged."""
        return Groups(self.groups, self.new_size, self.size)
