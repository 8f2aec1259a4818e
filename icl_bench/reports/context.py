"""The study that a report is part of: its question, the expectations, and results that others published."""

from typing import Literal, NamedTuple

PrimaryTest = Literal["rank", "lock-in"]
"""Test on which claims rest: of accuracies by ranks, or of numbers of locked-in seeds."""


class PublishedResult(NamedTuple):
    """A result that others published."""

    label: str
    """The model that was measured."""
    bytes: int
    """Size of its state, as its authors count it."""
    accuracy: float
    """Mean over the evaluated cells."""
    source: str
    """The publication and the place in it."""
    arch: str | None = None
    """The architecture that corresponds to it here, as records name it."""


class PublishedLoss(NamedTuple):
    """A loss of a language model that others published."""

    label: str
    """The model that was measured."""
    loss: float
    """Mean loss of a token, in nats."""
    vocabulary: int
    """Number of different tokens."""
    length: int
    """Tokens of a row."""
    tokens: float
    """Tokens that the model was trained on."""
    source: str
    """The publication and the place in it."""
    arch: str | None = None
    """The architecture that corresponds to it here, as records name it."""


class StudyContext(NamedTuple):
    """The texts of a study that its report quotes; empty for a report on a store."""

    name: str | None = None
    """Name of the study."""
    question: str | None = None
    """Question that the study asks."""
    hypotheses: tuple[str, ...] = ()
    """Expectations, written down before the study ran."""
    conclusions: tuple[str, ...] = ()
    """Conclusions that the author drew when the study first ran."""
    left_out: tuple[str, ...] = ()
    """Architectures that could not be matched in size, each with the nearest size that it reaches."""
    published: tuple[PublishedResult, ...] = ()
    """Published results, to compare the measured ones with."""
    published_losses: tuple[PublishedLoss, ...] = ()
    """Published losses of language models, likewise."""
    primary_test: PrimaryTest = "rank"
    """Test on which the claims of the report rest."""
    choice: str = "median"
    """Rule by which the study chooses learning rates."""
    ladder: tuple[int, ...] = ()
    """Factors by which the study multiplies its training steps."""
    corrections: tuple[str, ...] = ()
    """Dated statements of what an earlier report of the study said wrongly."""
    interrupted: int = 0
    """Number of runs in the store that were interrupted and have no result."""


NO_STUDY = StudyContext()
