"""What a worker says to its supervisor, and what it is given to do."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from icl_bench.runs.events import Progress
from icl_bench.runs.record import RunResult
from icl_bench.runs.spec import RunSpec


class Order(NamedTuple):
    """A fleet to carry out, and the store that it belongs in."""

    specs: Sequence[RunSpec]
    root: Path


class Ready(NamedTuple):
    """The worker has started and waits for work."""


class Beat(NamedTuple):
    """The worker is there."""


class Told(NamedTuple):
    """The fleet in hand has come so far."""

    progress: Progress


class Finished(NamedTuple):
    """The fleet is committed."""

    results: list[RunResult]
    seconds: float
    """Time from the order to the commit, as the worker saw it."""
    spoiled: bool
    """Whether the worker cannot be used again: after a fault on a GPU its context is broken."""


class Raised(NamedTuple):
    """The fleet met an error that is no result of its runs: the user must change something, or the store is full."""

    error: Exception


class Gone(NamedTuple):
    """The worker ended without being asked to; said by whoever watches it."""

    reason: str


Message = Ready | Beat | Told | Finished | Raised | Gone
