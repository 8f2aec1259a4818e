"""Seeds that solved a cell, and when: the measure of tasks that a model learns all at once, at a step of chance."""

from collections.abc import Iterator

from icl_bench.reports.analysis import Section
from icl_bench.reports.blocks import Folded, Name, Table
from icl_bench.reports.entry import Entry, cell_of
from icl_bench.reports.parts.base import Part
from icl_bench.reports.statistics import wilson
from icl_bench.reports.text import (
    MOST_NAMED,
    NONE,
    enumerate_words,
    format_integer,
    format_interval,
    format_share,
    format_span,
)
from icl_bench.runs.rates import GAP
from icl_bench.runs.record import SOLVED

NOTE = (
    f"A seed solves a cell with a test accuracy of at least {SOLVED}. In brackets: Wilson's interval at 95 %. Solved "
    "at: for each seed that reached it, the first validated step with such an accuracy over all cells. Others: the "
    "accuracy of the seeds that did not solve all cells, lowest to highest. This table opens a section where some "
    f"seeds of an architecture solved a cell and others stayed more than {GAP} below: a mean, or a median, over both "
    "describes neither."
)


def jumps(entry: Entry, label: str) -> bool:
    """Return whether some seeds of an entry solved a cell, and others stayed far below."""
    found = entry.in_cell(label).values()
    return max(found, default=0.0) >= SOLVED > min(found, default=1.0) + GAP


def section_jumps(section: Section) -> bool:
    """Return whether any architecture solved any cell with some seeds, and stayed far below with others."""
    return any(jumps(entry, cell.label) for entry in section.entries for cell in section.cells)


def solved_table(section: Section) -> Table:
    """Make a table of solved seeds, over all cells and by cell; without rows where no architecture jumps."""
    if not section_jumps(section):
        return Table(("architecture",), ())
    labels = [cell.label for cell in section.cells]
    rows = []
    for entry in section.entries:
        found = [[*entry.accuracies.values()], *([*entry.in_cell(label).values()] for label in labels)]
        counts = (share([accuracy >= SOLVED for accuracy in accuracies]) for accuracies in found)
        rows.append((Name(entry.label), *counts, solving_steps(entry), accuracy_of_others(entry)))
    rows.append(("floor", *[NONE] * (len(labels) + 2), format_share(section.mean_floor)))
    return Table(("architecture", "all cells", *map(Name, labels), "solved at", "others"), tuple(rows))


def solving_steps(entry: Entry) -> str:
    """Write the step at which each seed solved the task, in order."""
    return "; ".join(map(format_integer, known_steps(entry))) or NONE


def known_steps(entry: Entry) -> list[int]:
    """Return the steps at which seeds solved the task, in order, of those that did."""
    return sorted(run.result.solved_at for run in entry.scored if run.result.solved_at is not None)


def accuracy_of_others(entry: Entry) -> str:
    """Write the span of accuracies of the seeds that did not solve all cells."""
    others = [accuracy for accuracy in entry.accuracies.values() if accuracy < SOLVED]
    ends = dict.fromkeys(map(format_share, (min(others), max(others)))) if others else {NONE: None}
    return " to ".join(ends)


def solved_sentence(section: Section) -> str:
    """Write how many seeds of each architecture solved all cells, and when; empty where no architecture jumps."""
    if not section_jumps(section):
        return ""
    solving = sorted((entry for entry in section.entries if entry.solved_seeds), key=lambda one: -one.solved_seeds)
    parts = []
    for entry in solving[:MOST_NAMED]:
        steps = known_steps(entry)
        when = f" (after {format_span(steps)} updates)" if steps else ""
        parts.append(f"{entry.solved_seeds} of {len(entry.accuracies)} of {entry.label}{when}")
    parts += [f"some of {len(solving) - MOST_NAMED} others"] if len(solving) > MOST_NAMED else []
    rest = len(section.entries) - len(solving)
    parts += [f"none of {'the others' if solving else 'any architecture'}"] if rest else []
    return f"Seeds that solved all cells: {enumerate_words(parts)}."


def solved_details(section: Section) -> Folded:
    """Make a folded table of solved seeds by group of scored positions, of groups in which seeds differ."""
    labels = [cell.label for cell in section.cells]
    rows = [
        (Name(entry.label), Name(group), *(share(solved_groups(entry, label, group)) for label in labels))
        for entry in section.entries
        for group in group_names(section)
    ]
    table = Table(("architecture", "positions", *map(Name, labels)), tuple(rows), 2)
    return Folded("Solved seeds by group of scored positions", table)


def group_names(section: Section) -> list[str]:
    """Return the groups of scored positions that some seeds of an architecture solved and others did not."""
    runs = [run for entry in section.entries for run in entry.scored]
    groups = dict.fromkeys(group for run in runs for cell in run.result.cells for group in cell.groups)
    return [group for group in groups if len(groups) > 1 and any(divided(section, group))]


def divided(section: Section, group: str) -> Iterator[bool]:
    """Yield for each architecture and cell whether some seeds solved a group there and others did not."""
    for entry in section.entries:
        for cell in section.cells:
            yield len(set(solved_groups(entry, cell.label, group))) == 2


def solved_groups(entry: Entry, label: str, group: str) -> list[bool]:
    """Return for each seed that has this group in a cell whether it solved it."""
    found = [cell.groups.get(group) for run in entry.scored if (cell := cell_of(run, label))]
    return [score.accuracy >= SOLVED for score in found if score is not None]


def share(solved: list[bool]) -> str:
    """Write a number of solved seeds and the interval of its proportion."""
    if not solved:
        return NONE
    return f"{sum(solved)}/{len(solved)} {format_interval(wilson(sum(solved), len(solved)), 2)}"


PART = Part("", solved_table, note=NOTE, details=solved_details)
