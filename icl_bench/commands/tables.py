"""The main numbers on the terminal: a table with a row an architecture and a column a load, and a chart of bars."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from icl_bench.reports.analysis import Entry, Section, analyse
from icl_bench.reports.squared_error import error_of
from icl_bench.reports.statistics import median
from icl_bench.reports.tables import cell_median
from icl_bench.reports.text import NONE, plain, share, size
from icl_bench.runs.record import RunRecord

FIRST = ("lr", "state", "params", "accuracy")
BAR_LENGTH = 40
LAST = ("exact", "solved")


def results_table(records: Sequence[RunRecord]) -> RenderableType:
    """A table for each task; plain columns of text, whatever the names hold."""
    return Group(*(section_table(section) for section in analyse(records)))


def accuracy_bars(records: Sequence[RunRecord]) -> RenderableType:
    """Median accuracy of each architecture as a bar, for each task; nothing for tasks with one architecture."""
    return Group(*(section_bars(section) for section in analyse(records) if len(section.entries) > 1))


def section_bars(section: Section) -> Table:
    """The bars of a task, best first, and the floor."""
    rows = [(entry.accuracy or 0.0, plain(entry.label)) for entry in section.entries]
    rows = [*sorted(rows, key=lambda row: -row[0]), (section.mean_floor or 0.0, "floor")]
    table = Table(
        box=None, title=Text(f"{plain(section.task)}: test accuracy"), title_justify="left", show_header=False
    )
    for accuracy, label in rows:
        table.add_row(Text(label), Text(bar(accuracy)), Text(share(accuracy)))
    return table


def bar(part: float) -> str:
    """A bar of at most 40 characters, to an eighth of a character.

    >>> bar(0.0625)
    '██▌'
    """
    eighths = round(part * 8 * BAR_LENGTH)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def section_table(section: Section) -> Table:
    """The table of a task."""
    title = f"{plain(section.task)}: test accuracy" + (f", then by {section.load_name}" if section.cells else "")
    table = Table(
        box=None, title=Text(title), title_justify="left", header_style="bold", pad_edge=False, padding=(0, 2, 0, 0)
    )
    table.add_column("architecture", overflow="fold")
    for heading in (*FIRST, *cell_headings(section), *LAST, *further_headings(section)):
        table.add_column(Text(heading), justify="right", overflow="fold")
    for entry in section.entries:
        table.add_row(*(Text(cell) for cell in entry_cells(entry, section)))
    floors = [share(section.floors[cell.label].accuracy) for cell in section.cells]
    row = [
        "floor",
        NONE,
        NONE,
        NONE,
        share(section.mean_floor),
        *floors,
        *[NONE] * (2 + len(further_headings(section))),
    ]
    table.add_row(*(Text(cell) for cell in row), style="dim")
    return table


def cell_headings(section: Section) -> list[str]:
    """Loads where they tell cells apart, else the names of the cells."""
    loads = [cell.load for cell in section.cells]
    return [str(load) for load in loads] if len(set(loads)) == len(loads) else [plain(c.label) for c in section.cells]


def further_headings(section: Section) -> list[str]:
    """Columns for the error, where answers are vectors, and for what is right where models read their own answers."""
    return (["error"] if section.has_errors else []) + (["own answers", "exact"] if reads_own(section) else [])


def reads_own(section: Section) -> bool:
    """Whether models read their own answers."""
    return any(run.record.result.free_running is not None for run in section.runs)


def own_cells(entry: Entry) -> list[str]:
    """Medians over seeds of the share right, of positions and of examples, where the model reads its own answers."""
    found = [(run.result.free_running, run.result.free_running_exact) for run in entry.scored]
    return [
        share(median(known)) if (known := [v for v in column if v is not None]) else NONE
        for column in zip(*found, strict=True)
    ]


def entry_cells(entry: Entry, section: Section) -> list[str]:
    """The row of an entry."""
    result, seeds = entry.example.result, len(entry.accuracies)
    failed = f" ({len(entry.failed)} failed)" if entry.failed else ""
    return [
        plain(entry.label) + failed,
        f"{entry.rate:.3g}",
        size(result.state.bytes if result.state else None),
        f"{result.params:,}" if result.params else NONE,
        share(entry.accuracy),
        *(cell_median(entry, cell.label) for cell in section.cells),
        share(entry.exact_match),
        f"{entry.solved}/{seeds}" if seeds else NONE,
        *([error_of(entry)] if section.has_errors else []),
        *(own_cells(entry) if reads_own(section) else []),
    ]
