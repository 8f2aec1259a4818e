"""Losses of language models: by position in a row, the in-context curve, and against the work of training.

Groups of positions are octaves. The best-context loss is the least mean loss of an octave, so that a model that sees
more tokens is not praised for having more late positions (Buckman et al., arXiv 2507.04239).
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from icl_bench.reports import canvas
from icl_bench.reports.analysis import CellInfo, Section
from icl_bench.reports.blocks import Name, Table, table_of
from icl_bench.reports.canvas import SeriesStyle
from icl_bench.reports.context import PublishedLoss, StudyContext
from icl_bench.reports.entry import Entry, cell_of, known_median
from icl_bench.reports.labels import End, label_ends
from icl_bench.reports.panels import draw_panels, end_of
from icl_bench.reports.parts.base import Part, SectionFigure
from icl_bench.reports.parts.ladder import without_budget
from icl_bench.reports.parts.learning import BACKWARD
from icl_bench.reports.ranking import budget_of
from icl_bench.reports.statistics import median
from icl_bench.reports.text import NONE, format_share
from icl_bench.runs.outline import MeasuredRun, Seeds, seeds_of
from icl_bench.runs.record import CellScore, TokenWork

WORK_HEIGHT = 360
"""Pixels of the figure of losses against work."""
OCTAVE = re.compile(r"position (\d+)(?:-(\d+))?")
"""Name of a group of positions."""
NEAR, FAR = "prefix swap", "second half"
"""Controls that score the second half of a row after the first half of another row, and of its own."""
POSITION_NOTE = (
    "Losses in bits for a token (for bytes, bits per byte), on held-out documents, medians over seeds. Best context: "
    "the octave of positions with the least mean loss. Last octave: positions from half the length on. Far context: "
    "bits saved in the second half of a row by its own first half, in place of that of another row. The last rows are "
    "the best trivial solvers."
)
WORK_NOTE = (
    "Forward operations of the whole model for a token of a training row, averaged over the row: on weights (head "
    "included, embedding not), and on the state in the form of its size and in the quadratic form, which compares each "
    "token with all before. Executed: matrix products of a token in both passes as the kernels of the run compute "
    "them, with what they compute twice. Training: three times the weights and the cheaper form of the state, for all "
    "tokens. Tokens/s: of the whole fleet, which may have shared its device with other work. Bits: at the trained "
    "length, medians over seeds. Points inside one run are not drawn, as its learning rate has not fallen there."
)


class PublishedPlace(NamedTuple):
    """A published loss, the entry of its architecture, and the operations that its training takes."""

    point: PublishedLoss
    entry: Entry
    work: float


class Octave(NamedTuple):
    """The mean loss of a run, or the median over runs, in an octave of positions."""

    first: int
    last: int
    bits: float


def octaves(run: MeasuredRun, label: str) -> list[Octave]:
    """Return the losses of a run in a cell by position; empty where they were not kept."""
    cell = cell_of(run, label)
    found = []
    for name, score in (cell.groups if cell else {}).items():
        place = OCTAVE.fullmatch(name)
        if place and score.loss is not None:
            found.append(Octave(int(place[1]), int(place[2] or place[1]), score.loss / math.log(2)))
    return sorted(found)


def median_octaves(entry: Entry, label: str) -> list[Octave]:
    """Return the median over seeds in each octave of positions."""
    by_place: dict[tuple[int, int], list[float]] = {}
    for run in entry.scored:
        for one in octaves(run, label):
            by_place.setdefault(one[:2], []).append(one.bits)
    return [Octave(*place, known_median(bits) or 0.0) for place, bits in sorted(by_place.items())]


def vocabulary_bits(section: Section) -> float:
    """Return the bits of a token when all are equally likely, by which shares of bits saved are counted."""
    return math.log2(section.settings[0].spec["task"]["params"]["vocab"])


def keeps_losses(section: Section) -> list[Entry]:
    """Return the entries whose losses are known by position."""
    labels = [cell.label for cell in section.cells]
    return [one for one in section.entries if any(octaves(run, label) for run in one.scored for label in labels)]


def position_table(section: Section) -> Table:
    """Make a row for each entry and length, and one for the floor of each length."""
    rows = [position_row(entry, cell) for entry in keeps_losses(section) for cell in section.cells]
    if rows:
        most = vocabulary_bits(section)
        floors = [(cell, section.floors[cell.label]) for cell in section.cells]
        blank = dict.fromkeys(("best context", "at positions", "last octave", "far context"), NONE)
        rows += [
            {
                "architecture": Name(floor.solver),
                "length": f"{cell.length:,}",
                "mean": bits(most - most * floor.accuracy),
            }
            | blank
            for cell, floor in floors
        ]
    return table_of(rows)


def position_row(entry: Entry, cell: CellInfo) -> dict[str, str]:
    """Make the row of an entry at a length."""
    scores = [one for run in entry.scored if (one := cell_of(run, cell.label))]
    curve = median_octaves(entry, cell.label)
    best = min(curve, key=lambda one: one.bits, default=None)
    gains = [far_context(run, cell.label) for run in entry.scored]
    return {
        "architecture": Name(entry.label),
        "length": f"{cell.length:,}",
        "mean": bits(known_median(one.loss / math.log(2) for one in scores)),
        "best context": bits(best.bits if best else None),
        "at positions": f"{best.first:,}-{best.last:,}" if best else NONE,
        "last octave": bits(curve[-1].bits if curve else None),
        "far context": bits(known_median(gains)),
    }


def far_context(run: MeasuredRun, label: str) -> float | None:
    """Return the bits that the first half of a row saves in its second half; None where the controls are lacking."""
    cell = cell_of(run, label)
    if cell is None or not {NEAR, FAR} <= cell.controls.keys():
        return None
    most = math.log2(run.spec["task"]["params"]["vocab"])
    return most * (cell.controls[FAR] - cell.controls[NEAR])


def bits(value: float | None) -> str:
    """Format a loss in bits."""
    return format_share(value)


def loss_by_position(section: Section, context: StudyContext) -> Figure | None:
    """Draw the loss by position at the longest length; return None where it was not kept."""
    if not keeps_losses(section):
        return None
    longest = max(section.cells, key=lambda cell: cell.length)

    def draw(axes: Axes, entry: Entry, style: SeriesStyle, offset: float) -> None:
        curve = median_octaves(entry, longest.label)
        middles = [math.sqrt(one.first * min(one.last, longest.length)) for one in curve]
        axes.plot(middles, [one.bits for one in curve], color=style.colour, linestyle=style.dash, marker=style.marker)

    def scale(axes: Axes) -> None:
        free_axis(axes)
        axes.set_xscale("log", base=2)
        axes.set_xlabel("position in the row")
        for length in {found.length for entry in section.entries if (found := work_of(entry))}:
            axes.axvline(length, color="0.7", linewidth=0.8)

    return draw_panels(section, "bits per token", draw, scale)


def free_axis(axes: Axes) -> None:
    """Let the vertical axis follow what is drawn."""
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.autoscale(axis="y")


def work_of(entry: Entry) -> TokenWork | None:
    """Return the work of a training token, of a run that measures where there is one; None where it was not kept."""
    run = entry.scored[0] if entry.scored else entry.example
    return run.result.work.training


def training_work(entry: Entry) -> float | None:
    """Return the operations of a whole training, with the cheaper form of the state; None where they are unknown."""
    work, train = work_of(entry), entry.example.spec["train"]
    return None if work is None else work_on(work, work.length * train["batch"] * train["steps"])


def work_on(work: TokenWork, tokens: float) -> float | None:
    """Return the operations of training on so many tokens, with the cheaper form of the state."""
    known = [form for form in (work.recurrent, work.quadratic) if form is not None]
    return float(BACKWARD * (work.weights + min(known)) * tokens) if known else None


def trained_cells(entry: Entry) -> Mapping[Seeds, CellScore]:
    """Return the score of each run at the longest trained length, by its seeds."""
    work = work_of(entry)
    return {
        seeds_of(run): one for run in entry.scored for one in run.result.cells if work and one.length == work.length
    }


def trained_bits(entry: Entry) -> list[float]:
    """Return the loss of each run at the longest trained length, in bits."""
    return [cell.loss / math.log(2) for cell in trained_cells(entry).values()]


def trained_median(entry: Entry) -> float | None:
    """Return the median of `trained_bits`; None where there are none."""
    return known_median(trained_bits(entry))


def published_places(section: Section, published: Sequence[PublishedLoss]) -> list[PublishedPlace]:
    """Return the published losses of the section's setting, each with the entry of its architecture.

    A setting is that of a loss where the vocabulary and the trained length of rows are.
    """
    places = []
    for point in published:
        for entry in section.entries:
            work, task = work_of(entry), entry.example.spec["task"]
            same = work is not None and (work.length, task["params"].get("vocab")) == (point.length, point.vocabulary)
            total = work_on(work, point.tokens) if work and same else None
            if total is not None and entry.example.result.arch == point.arch:
                places.append(PublishedPlace(point, entry, total))
                break
    return places


def work_table(section: Section) -> Table:
    """Make a row for each entry whose work is known."""
    return table_of([work_row(entry, work) for entry in keeps_losses(section) if (work := work_of(entry))])


def work_row(entry: Entry, work: TokenWork) -> dict[str, str]:
    """Make the row of an entry."""
    seconds = known_median(run.result.seconds for run in entry.scored)
    pace = known_median(run.result.examples_per_second for run in entry.scored)
    return {
        "architecture": Name(entry.label),
        "weights": operations(work.weights),
        "state, as sized": operations(work.recurrent),
        "state, quadratic": operations(work.quadratic),
        "executed": operations(work.executed),
        "training": operations(training_work(entry)),
        "seconds": NONE if seconds is None else f"{seconds:,.0f}",
        "tokens/s": NONE if pace is None else f"{pace * work.length:,.0f}",
        "bits": bits(trained_median(entry)),
    }


def operations(value: float | None) -> str:
    """Format a number of operations with two digits."""
    return NONE if value is None else f"{value:.2g}".replace("e+", "e")


def loss_by_work(section: Section, context: StudyContext) -> Figure | None:
    """Draw the loss of each run at the trained length against the work of its training; None where it is unknown.

    A line joins the medians of an architecture at several budgets; hollow diamonds are losses that others published.
    """
    curves: dict[str, list[Entry]] = {}
    for entry in sorted(section.entries, key=budget_of):
        if training_work(entry) and trained_bits(entry):
            curves.setdefault(without_budget(entry), []).append(entry)
    if not curves:
        return None
    figure, (axes,) = canvas.new_figure(WORK_HEIGHT)
    ends = [draw_work(axes, name, rungs, canvas.series_style(i)) for i, (name, rungs) in enumerate(curves.items())]
    for place in published_places(section, context.published_losses):
        spot = place.work, place.point.loss / math.log(2)
        axes.add_line(canvas.hollow(*spot, "D", 8, canvas.PUBLISHED_STYLE))
        axes.annotate(place.point.label, spot, (-8, -3), textcoords="offset points", ha="right", fontsize=8)
        axes.update_datalim([spot])
    free_axis(axes)
    axes.set_ylabel("bits per token")
    canvas.spread_logarithmically(axes)
    axes.set_xlabel("operations of training")
    if not label_ends(axes, ends, WORK_HEIGHT):
        canvas.add_legend(axes, canvas.legend_handles(canvas.series_style(i) for i in range(len(curves))), [*curves])
    return figure


def draw_work(axes: Axes, name: str, rungs: Sequence[Entry], style: SeriesStyle) -> End:
    """Draw an architecture at rising budgets: a dot for each seed, medians joined; return the end of the line."""
    losses = [trained_bits(entry) for entry in rungs]
    places = [training_work(entry) or 0.0 for entry in rungs]
    (line,) = axes.plot(places, [median(own) for own in losses], color=style.colour, linestyle=style.dash)
    canvas.draw_seeds(axes, places, losses, style)
    return end_of(line, name, style.colour)


POSITION_PART = Part(
    "Loss by position",
    position_table,
    SectionFigure(
        "loss-by-position",
        "Loss by position in held-out rows of the longest length, in octaves: medians over seeds. A thin line marks "
        "the trained length.",
        loss_by_position,
    ),
    POSITION_NOTE,
)
WORK_PART = Part(
    "Loss against work",
    work_table,
    SectionFigure(
        "loss-by-work",
        "Loss at the trained length against the operations of training: a dot for each seed, medians of an "
        "architecture at several budgets joined. Hollow diamonds are published losses of the same setting.",
        loss_by_work,
    ),
    WORK_NOTE,
)
