"""Whether a model that solves a task recalls: its accuracy on examples changed for the purpose.

Rebound: values are handed on to the next key; the answer must follow. Refilled: other fillers; nothing may change. No
keys: the keys of the context are blanked; what is right then was never recalled.
"""

from collections.abc import Sequence

from icl_bench.reports.analysis import SOLVED, Entry, Section, cell_of
from icl_bench.reports.statistics import median
from icl_bench.reports.tables import Name, Table
from icl_bench.reports.text import NONE, share
from icl_bench.runs.record import RunRecord


def controls_table(section: Section) -> Table:
    """Median over the runs that solve the task, by control and cell; empty where none does or nothing was changed."""
    names = section.controls
    header = ("architecture", "runs", "examples", *(Name(cell.label) for cell in section.cells))
    solving = [(entry, solved_runs(entry)) for entry in section.entries]
    rows = [
        (Name(entry.label), str(len(runs)), name, *(control_median(runs, cell.label, name) for cell in section.cells))
        for entry, runs in solving
        if runs
        for name in ("unchanged", *names)
    ]
    floors = (share(section.floors[cell.label].accuracy) for cell in section.cells)
    return Table(header, (*rows, (Name("floor"), NONE, "unchanged", *floors)) if names and rows else (), 3)


def solved_runs(entry: Entry) -> list[RunRecord]:
    """The measuring runs that solve the task."""
    return [run for run in entry.scored if run.result.accuracy >= SOLVED]


def control_median(runs: Sequence[RunRecord], label: str, name: str) -> str:
    """Median over runs of the accuracy in a cell under a control, or unchanged."""
    cells = [cell for run in runs if (cell := cell_of(run, label))]
    found = [cell.accuracy if name == "unchanged" else cell.controls.get(name) for cell in cells]
    known = [value for value in found if value is not None]
    return share(median(known)) if known else NONE
