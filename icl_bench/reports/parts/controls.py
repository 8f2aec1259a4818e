"""Further tests of trained models: on their own answers in place of the right ones, and on changed examples."""

from collections.abc import Sequence

from icl_bench.reports.analysis import Section
from icl_bench.reports.blocks import Name, Table
from icl_bench.reports.entry import cell_of, field_median, known_median
from icl_bench.reports.parts.base import Part
from icl_bench.reports.text import NONE, format_share
from icl_bench.runs.outline import MeasuredRun, seeds_of

OWN_ANSWERS_NOTE = (
    "Shown: after each question the model reads the right answer. Its own: it reads its own answer in that place, "
    "token by token in the recurrent form, on at most 128 examples of a cell. Where a task judges whole answers, the "
    "model reads its own in both rows, in the parallel form and in the recurrent one."
)
SCORES = (
    ("shown", "tokens", "accuracy"),
    ("shown", "examples", "exact_match"),
    ("its own", "tokens", "free_running"),
    ("its own", "examples", "free_running_exact"),
)
"""Answers that are read, unit that is scored, and field of a cell's score."""
CONTROLS_NOTE = (
    "Runs that are locked in, whether they solve the task or recall a part of it. Rebound: the value of each key is "
    "given to the next key, and the answer must change with it, so that accuracy stays. Refilled: other fillers, which "
    "must change nothing. No keys: the keys of the context are blanked, so that accuracy must fall to the floor. "
    "Second half and prefix swap: positions in the second half of a row of text, after its own first half and after "
    "that of another row. At most 256 examples of a cell."
)


def own_answers_table(section: Section) -> Table:
    """Make a table of accuracy in each cell with shown and with own answers; without rows where none are shown."""
    header = ("architecture", "answers read", "scored", *(Name(cell.label) for cell in section.cells))
    rows = [
        (Name(entry.label), read, unit, *(format_share(field_median(entry, c.label, field)) for c in section.cells))
        for entry in section.entries
        if entry.reads_own_answers
        for read, unit, field in SCORES
    ]
    oracle = (Name("oracle"), "either", "either", *(format_share(1.0) for _ in section.cells))
    return Table(header, (*rows, oracle) if rows else (), 3)


def controls_table(section: Section) -> Table:
    """Make a table of the median accuracy under each control; without rows where no run is locked in."""
    header = ("architecture", "runs", "examples", *(Name(cell.label) for cell in section.cells))
    rows = [
        (Name(entry.label), str(len(runs)), name, *(control_median(runs, c.label, name) for c in section.cells))
        for entry in section.entries
        for locked in [section.locked_seeds(entry)]
        if (runs := [run for run in entry.scored if seeds_of(run) in locked])
        for name in ("unchanged", *section.controls)
    ]
    floors = (format_share(section.floors[cell.label].accuracy) for cell in section.cells)
    floor = (Name("floor"), NONE, "unchanged", *floors)
    return Table(header, (*rows, floor) if section.controls and rows else (), 3)


def control_median(runs: Sequence[MeasuredRun], label: str, name: str) -> str:
    """Format the median over runs of the accuracy in a cell under a control, or on unchanged examples."""
    cells = [cell for run in runs if (cell := cell_of(run, label))]
    return format_share(known_median({"unchanged": cell.accuracy, **cell.controls}.get(name) for cell in cells))


OWN_ANSWERS_PART = Part("Reading its own answers", own_answers_table, note=OWN_ANSWERS_NOTE)
CONTROLS_PART = Part("Controls", controls_table, note=CONTROLS_NOTE)
