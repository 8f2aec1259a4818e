"""Options of the fleet operators around a multi-head core, which all forms of an operator read."""

from typing import Literal, NamedTuple

GateActivation = Literal["none", "silu", "sigmoid"]
"""Activation of a gate; `none` multiplies by the gate itself."""
DecayForm = Literal["sigmoid", "log-sigmoid", "exp"]
"""Activation that makes the logarithm of a decay; `exp` is exp(min(x, 0)), at most 1."""
ColumnForm = Literal["none", "sigmoid", "tanh"]
"""Activation of columns."""
CellForm = Literal["lstm", "s-lstm"]
"""Recurrent cells."""
BEFORE_ANY = -1e30
"""Maximum of an sLSTM before the first token, whose own i it then takes, so that its weights sum to at least 1."""
MINIBATCH = 16
"""Tokens between two steps of inner gradient descent."""
WIDEST_INNER, MOST_INNER_LAYERS = 128, 2
"""Widest keys and most layers that the kernels of inner gradient descent take."""
SOLVER_STEPS = 30
"""Most steps of conjugate gradients for solved queries."""
LEAST_LENGTH = 1e-12
"""Least length by which a key that erases is divided."""
UNIT_EPS = 1e-6
"""Added to the squared length by which `unit_norm` divides."""
TILE_WORDS = 16
"""Tokens of the vocabulary to a tile of the gradient of an embedding: the fewest that a matrix product takes."""
MOST_CHOSEN = 64
"""Largest number of chosen queries of a sequence, whose scores a program holds at once."""
WIDEST_HEAD = 128
"""Widest keys and values beside chosen queries and chosen blocks."""


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


class ScoreRule(NamedTuple):
    """Weights of values by scores."""

    scale: float
    p: int | None = None
    """Power of the scores; None for softmax."""
    window: int | None = None
    """Number of keys that a query sees, itself included; None for all."""
    normalized: bool = True
    """Divide by the sum of weights, as softmax always does."""
    eps: float = 0.0
    """Added to that sum of powers."""
    series: bool = False
    """Sum the powers 0 to p = 2 as in the Taylor series of the exponential, 1 + s + s^2 / 2."""


class SeenKeys(NamedTuple):
    """Keys that queries at consecutive positions see by their places alone."""

    first: int = 0
    """Position of the first query."""
    span: int = 1
    """Tokens of a key, all of which have ended by the position of a query that sees it."""


class BlockChoice(NamedTuple):
    """The choice of blocks of tokens by queries at consecutive positions."""

    first: int
    """Position of the first query."""
    block: int
    """Tokens of a block."""
    selected: int
    """Blocks that a query selects, those included that it always reads."""
