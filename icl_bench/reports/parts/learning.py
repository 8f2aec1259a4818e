"""Speed of learning: updates and examples until validation accuracy first reaches a level, and learning curves.

A level counts as reached at the validation that finds it there. A run that does not reach it within its budget is
censored at the end of the budget; so is a run that diverged, which would never reach it.
"""

import math
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from icl_bench.reports.analysis import Section
from icl_bench.reports.blocks import Name, Table, table_of
from icl_bench.reports.canvas import SeriesStyle
from icl_bench.reports.context import StudyContext
from icl_bench.reports.entry import Entry
from icl_bench.reports.panels import draw_panels
from icl_bench.reports.parts.base import Part, SectionFigure
from icl_bench.reports.statistics import survival
from icl_bench.reports.text import NONE, format_number
from icl_bench.runs.outline import MeasuredRun, seeds_of

LEVELS = (0.5, 0.9)
"""Levels of validation accuracy, mean over cells."""
BACKWARD = 3
"""Operations of a training step relative to those of its forward pass."""
MOST_CURVES = 20
"""Largest number of learning curves drawn for an entry."""
NOTE = (
    "Updates until validation accuracy, mean over cells, reaches .5 and .9. It is known at validations alone, so that "
    "a level may have been reached earlier. Medians over seeds are Kaplan-Meier estimates, in which a run that does "
    "not reach the level is censored at the end of its training. Restricted mean: of the updates to .9, where such a "
    "run counts with all its updates. FLOPs: of the mixers, an update as three forward passes."
)


class Reached(NamedTuple):
    """The time at which a run reached a level, or at which it was censored."""

    updates: int
    """Updates at the validation that found the level reached, or the whole budget."""
    there: bool
    """True if the run reached the level."""


def reached(run: MeasuredRun, level: float) -> Reached:
    """Find the first validation at which a run has reached a level."""
    first = next((step for step, accuracy in run.curve if accuracy >= level), None)
    if first is None or run.result.status != "ok":
        return Reached(int(run.spec["train"]["steps"]), False)
    return Reached(first, True)


def learning_table(section: Section) -> Table:
    """Make a row for each entry that was validated; no rows where no run reached the lower level."""
    entries = [entry for entry in section.entries if any(run.curve for run in entry.scored)]
    some = any(reached(run, LEVELS[0]).there for entry in entries for run in entry.scored)
    return table_of([learning_row(entry, section) for entry in entries] if some else [])


def learning_row(entry: Entry, section: Section) -> dict[str, str]:
    """Make the row of an entry."""
    found = [[reached(run, level) for run in entry.scored] for level in LEVELS]
    half, most = (survival(*zip(*times, strict=True)) for times in found)
    examples = None if most.median is None else most.median * int(entry.example.spec["train"]["batch"])
    work = None if examples is None else flops_of_example(entry, section)
    return {
        "architecture": Name(entry.label),
        "updates to .5": format_number(half.median),
        "updates to .9": format_number(most.median),
        "restricted mean": format_number(most.restricted_mean),
        "examples to .9": format_number(examples),
        "FLOPs to .9": NONE if work is None or examples is None else f"{examples * work:.2g}".replace("e+", "e"),
        "reached .9": f"{sum(one.there for one in found[1])}/{len(entry.scored)}",
    }


def flops_of_example(entry: Entry, section: Section) -> float | None:
    """Return the operations of the mixers on a training example; None where cells differ in length."""
    lengths = {cell.length for cell in section.cells}
    work = entry.example.result.work.total
    return BACKWARD * work * lengths.pop() if work is not None and len(lengths) == 1 else None


def learning_curves(section: Section, context: StudyContext) -> Figure | None:
    """Draw validation accuracy over training at the chosen rate; return None unless a run was validated twice."""
    if not any(len(run.curve) > 1 for entry in section.entries for run in entry.measured):
        return None

    def draw(axes: Axes, entry: Entry, style: SeriesStyle, offset: float) -> None:
        curves = [run.curve for run in sorted(entry.measured, key=seeds_of)[:MOST_CURVES]]
        points = [point for curve in curves for point in (*curve, (math.nan, math.nan))]  # gaps, in one artist
        axes.plot(*zip(*points, strict=True), color=style.colour, linestyle=style.dash, linewidth=1.1)

    def scale(axes: Axes) -> None:
        axes.set_xlabel("updates")

    return draw_panels(section, "validation accuracy", draw, scale, crowded=True)


def undrawn_curves_remark(section: Section) -> str:
    """Return the remark that not every curve is drawn, where an entry has too many."""
    remark = f" Of more than {MOST_CURVES} seeds, the first {MOST_CURVES} are drawn."
    return remark if any(len(entry.measured) > MOST_CURVES for entry in section.entries) else ""


PART = Part(
    "Learning curves",
    learning_table,
    SectionFigure(
        "learning-curves",
        "Validation accuracy over training at the chosen learning rate: a line for each seed.",
        learning_curves,
        undrawn_curves_remark,
    ),
    NOTE,
)
