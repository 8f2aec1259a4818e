"""Seeds that solved a cell, and when: the measure of tasks that a model learns all at once, at a step of chance."""

from collections.abc import Iterator

from icl_bench.reports.analysis import Section
from icl_bench.reports.blocks import Folded, Name, Table
from icl_bench.reports.entry import Entry, cell_of, known_median
from icl_bench.reports.parts.base import Part
from icl_bench.reports.statistics import wilson
from icl_bench.reports.text import NONE, format_integer, format_interval
from icl_bench.runs.record import SOLVED

NOTE = (
    f"A seed solves a cell with a test accuracy of at least {SOLVED}. In "
    "brackets: Wilson's interval at 95 %. Solved at: the first validated step with such an accuracy over all cells, "
    "median over the seeds that reached it. The table is shown where seeds of an architecture differ: a mean over "
    "those that solved a cell and those that did not describes neither."
)


def jumps(entry: Entry, label: str) -> bool:
    """Return whether some seeds of an entry solved a cell and others did not."""
    return len({accuracy >= SOLVED for accuracy in entry.in_cell(label).values()}) == 2


def solved_table(section: Section) -> Table:
    """Make a table of solved seeds by cell; without rows where no architecture has both kinds of seeds."""
    if not any(jumps(entry, cell.label) for entry in section.entries for cell in section.cells):
        return Table(("architecture",), ())
    labels = [cell.label for cell in section.cells]
    rows = []
    for entry in section.entries:
        steps = known_median([run.result.solved_at for run in entry.scored])
        solved_at = NONE if steps is None else format_integer(round(steps))
        counts = (share([accuracy >= SOLVED for accuracy in entry.in_cell(label).values()]) for label in labels)
        rows.append((Name(entry.label), *counts, solved_at))
    return Table(("architecture", *map(Name, labels), "solved at"), tuple(rows))


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


PART = Part("Solved seeds", solved_table, note=NOTE, details=solved_details)
