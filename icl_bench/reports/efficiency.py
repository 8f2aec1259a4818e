"""How soon an entry learns: updates and examples until validation accuracy first reaches a level.

Times are those of validations, so that one says "by then". A run that does not get there in its budget is censored
there; one that diverged never would, and is censored at the end of its budget like the others.
"""

from collections.abc import Sequence
from typing import NamedTuple

from icl_bench.reports.analysis import Entry, Section, curve_of
from icl_bench.reports.statistics import Waits, survival
from icl_bench.reports.tables import Name, Table
from icl_bench.reports.text import NONE, quantity
from icl_bench.runs.record import RunRecord

LEVELS = (0.5, 0.9)
"""Validation accuracies, mean over cells, to be reached."""
BACKWARD = 3
"""Work of a training step relative to its forward pass."""
HEADER = (
    "architecture",
    "updates to .5",
    "updates to .9",
    "restricted mean",
    "examples to .9",
    "FLOPs to .9",
    "reached .9",
)


class Reached(NamedTuple):
    """When a run reached a level."""

    updates: int
    """Updates at the validation that found it there, or all of its budget."""
    there: bool
    """Whether it got there."""


def reached(run: RunRecord, level: float) -> Reached:
    """When a run first reached a level."""
    first = next((step for step, accuracy in curve_of(run) if accuracy >= level), None)
    if first is None or run.result.status != "ok":
        return Reached(int(run.spec["train"]["steps"]), False)
    return Reached(first, True)


def waits(found: Sequence[Reached]) -> Waits:
    """Waits until runs reached a level."""
    return survival([one.updates for one in found], [one.there for one in found])


def efficiency_table(section: Section) -> Table:
    """How soon each entry learns; empty where none was validated on the way to a level."""
    entries = [entry for entry in section.entries if entry.scored and any(run.metrics for run in entry.scored)]
    some = any(reached(run, LEVELS[0]).there for entry in entries for run in entry.scored)
    return Table(HEADER, tuple(efficiency_row(entry, section) for entry in entries) if some else ())


def efficiency_row(entry: Entry, section: Section) -> tuple[str, ...]:
    """The row of an entry."""
    found = [[reached(run, level) for run in entry.scored] for level in LEVELS]
    half, most = map(waits, found)
    spec, there = entry.example.spec, sum(one.there for one in found[1])
    examples = None if most.median is None else most.median * int(spec["train"]["batch"])
    work = None if examples is None else work_of_example(entry, section)
    return (
        Name(entry.label),
        quantity(half.median),
        quantity(most.median),
        quantity(most.restricted_mean),
        quantity(examples),
        NONE if work is None or examples is None else f"{examples * work:.2g}".replace("e+", "e"),
        f"{there}/{len(entry.scored)}",
    )


def work_of_example(entry: Entry, section: Section) -> float | None:
    """Operations of the mixers on a training example; none where cells differ in length."""
    lengths = {cell.length for cell in section.cells}
    work = entry.example.result.work
    return BACKWARD * (work.weights + work.state) * lengths.pop() if len(lengths) == 1 else None
