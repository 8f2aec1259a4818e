"""What a report is set in, where it is on a study: its question, what was expected, and what others published."""

from collections.abc import Sequence
from typing import NamedTuple

from icl_bench.reports.analysis import Entry, Section
from icl_bench.reports.tables import Name, Table
from icl_bench.reports.text import NONE, bracketed, share, size

MET = 0.04
"""Difference in accuracy up to which a published point counts as met."""


class Published(NamedTuple):
    """A result that others published."""

    label: str
    """What was measured."""
    bytes: int
    """State as they count it."""
    accuracy: float
    """Mean over the evaluated cells."""
    source: str
    """Where it stands."""
    arch: str | None = None
    """The architecture here that stands for it, as records name it."""


class Frame(NamedTuple):
    """What a study says of itself; empty for a report on a store."""

    name: str | None = None
    """The study."""
    question: str | None = None
    """What it asks."""
    hypotheses: tuple[str, ...] = ()
    """What was expected, written down before it ran."""
    conclusions: tuple[str, ...] = ()
    """What its author concluded when it first ran."""
    left_out: tuple[str, ...] = ()
    """Architectures that could not be matched, and the nearest that they come."""
    published: tuple[Published, ...] = ()
    """Results to hold the measured ones against."""
    interrupted: int = 0
    """Runs of the store that were cut, and have no result."""


NO_FRAME = Frame()


def published_table(sections: Sequence[Section], published: Sequence[Published]) -> Table:
    """Each published result beside what stands for it here."""
    header = (
        "published",
        "state",
        "accuracy",
        "source",
        "here",
        "state",
        "accuracy",
        "95 % interval",
        "difference",
        "",
    )
    return Table(header, tuple(published_row(point, standing_for(point, sections)) for point in published))


def standing_for(point: Published, sections: Sequence[Section]) -> Entry | None:
    """The entry that stands for a published result."""
    entries = (entry for section in sections for entry in section.entries)
    return next((entry for entry in entries if entry.example.result.arch == point.arch), None)


def published_row(point: Published, entry: Entry | None) -> tuple[str, ...]:
    """The row of a published result."""
    told = (Name(point.label), size(point.bytes), share(point.accuracy), Name(point.source))
    if entry is None or entry.accuracy is None:
        return (*told, NONE, NONE, NONE, NONE, NONE, "not measured")
    state = entry.example.result.state
    gap = entry.accuracy - point.accuracy
    return (
        *told,
        Name(entry.label),
        size(state.bytes if state else None),
        share(entry.accuracy),
        bracketed(entry.interval) or NONE,
        f"{gap:+.3f}",
        "met" if abs(gap) <= MET else "not met",
    )
