"""Scores by load and by group of scored positions: accuracies beside their floors, and errors of vectors."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from icl_bench.reports.analysis import Section
from icl_bench.reports.blocks import Name, Table
from icl_bench.reports.canvas import FLOOR_LINE, SeriesStyle, draw_locked, name_ticks, readable
from icl_bench.reports.context import StudyContext
from icl_bench.reports.entry import ZERO_ERROR, Entry, cell_of, field_median, known_median
from icl_bench.reports.panels import draw_panels
from icl_bench.reports.parts.base import Part, SectionFigure, measured_seeds_remark
from icl_bench.reports.parts.reach import ceilings, reach_remark
from icl_bench.reports.parts.state import drawn_by_state
from icl_bench.reports.ranking import judge_cell
from icl_bench.reports.statistics import median
from icl_bench.reports.text import enumerate_words, format_share
from icl_bench.runs.outline import MeasuredRun, Seeds, seeds_of
from icl_bench.runs.record import SOLVED

LOG_FROM = 4
"""Ratio of the largest to the smallest load from which the axis of loads is logarithmic."""
ERROR_NOTE = (
    "Mean squared error, median over seeds, divided by the error of answering 0, so that answering 0 has error 1 on "
    "average; a diverged run counts as 1. The oracle's error is due to what the context does not determine. Accuracy, "
    "which ranks architectures, is computed as the task defines it."
)


DIVERGENCE_NOTE = (
    "Divergence: the Kullback-Leibler divergence of the model's distribution of the next token from the exact one, in "
    "nats; possible mass: the share of its probability on tokens that can come. Medians of the means over scored "
    "positions, over the seeds that did not diverge."
)


def divergence_table(section: Section) -> Table:
    """Make a table of divergence and possible mass in each cell; without rows where no distribution is known."""
    measures = (("divergence", "divergence"), ("possible mass", "possible_mass"))
    known = any(run.result.divergence is not None for entry in section.entries for run in entry.scored)
    rows = [
        (Name(entry.label), words, *(format_share(known_median_in(entry, cell.label, name)) for cell in section.cells))
        for entry in section.entries
        for words, name in measures
    ]
    header = ("architecture", "measure", *(Name(cell.label) for cell in section.cells))
    return Table(header, tuple(rows) if known else (), 2)


def known_median_in(entry: Entry, label: str, field: str) -> float | None:
    """Return the median of a field of the score in a cell, over the seeds that have it."""
    return known_median(getattr(cell_of(run, label), field, None) for run in entry.scored)


def error_table(section: Section) -> Table:
    """Make a table of the median error in each cell, with the oracle's; without rows for tokens."""
    labels = [Name(cell.label) for cell in section.cells] if section.has_errors else []
    rows: list[tuple[str, Sequence[float | None]]] = [
        *((one.label, [field_median(one, label, "error", ZERO_ERROR) for label in labels]) for one in section.entries),
        ("answering 0", [ZERO_ERROR for _ in labels]),
        ("oracle", [oracle_error(section, label) for label in labels]),
    ]
    written = tuple((Name(name), *map(format_share, errors)) for name, errors in rows)
    return Table(("architecture", *labels), written if labels else ())


def oracle_error(section: Section, label: str) -> float:
    """Return the oracle's error in a cell, median over runs."""
    examples = section.cell_examples[label].elements()
    return median([one.oracle_error for one in examples if one.oracle_error is not None])


def cell_table(section: Section) -> Table:
    """Make a table of the median accuracy in each cell, with the floor, its solver, and whether the cell ranks."""
    cells = section.cells
    floors = [section.floors[cell.label] for cell in cells]
    rows = [
        *((Name(one.label), *(format_share(one.median_in(cell.label)) for cell in cells)) for one in section.entries),
        (Name("floor"), *(format_share(floor.accuracy) for floor in floors)),
        *(
            (Name(name), *(format_share(found.get(cell.label)) for cell in cells))
            for name, found in section.references.items()
        ),
        (Name("oracle"), *(format_share(1.0) for _ in cells)),
        ("best trivial solver", *(Name(floor.solver) for floor in floors)),
        ("ranking", *(judge_cell(section, section.entries, cell) for cell in cells)),
    ]
    return Table(("architecture", *(Name(cell.label) for cell in cells)), tuple(rows) if cells else ())


def ranking_note(section: Section) -> str:
    """Explain the rows of solvers that keep the whole context, and which cells are left out of a ranking."""
    names = [*section.references]
    solvers = f"Without training, but with the whole context kept: {enumerate_words(names)}. " if names else ""
    return (
        f"{solvers}A cell does not rank architectures if the median of every architecture is at least {SOLVED} "
        "(saturated), or if no median is above the floor by more than the sampling error of an accuracy there (at the "
        f"floor): over {section.examples:,} examples, each a cluster of scored positions, by the deviation of the "
        "floor between data seeds where there are three or more."
    )


class LoadAxis(NamedTuple):
    """The positions of cells on the horizontal axis."""

    places: Mapping[str, float]
    ticks: tuple[str, ...]
    logarithmic: bool
    label: str


def load_axis(section: Section) -> LoadAxis:
    """Place cells by load where their loads differ, else side by side."""
    cells = section.cells
    values = [cell.load for cell in cells]
    if len(set(values)) < len(values):
        places = {cell.label: float(i) for i, cell in enumerate(cells)}
        return LoadAxis(places, tuple(cell.label for cell in cells), False, "cell")
    logarithmic = min(values) > 0 and max(values) >= LOG_FROM * min(values)
    ticks = tuple(str(value) for value in values)
    return LoadAxis({cell.label: float(cell.load) for cell in cells}, ticks, logarithmic, section.load_name)


def accuracy_by_load(section: Section, context: StudyContext) -> Figure | None:
    """Draw test accuracy in each cell; return None without cells, or where another figure shows the only cell."""
    if not section.cells or (len(section.cells) == 1 and drawn_by_state(section)):
        return None
    axis = load_axis(section)

    def draw_floors(axes: Axes) -> None:
        floors = [section.floors[label].accuracy for label in axis.places]
        if len(floors) == 1:
            axes.axhline(floors[0], **FLOOR_LINE)
        else:
            axes.plot(list(axis.places.values()), floors, **FLOOR_LINE)

    limits = list(ceilings(section))

    def draw(axes: Axes, entry: Entry, style: SeriesStyle, offset: float) -> None:  # shifted, to hide no other entry
        found = {label: values for label in axis.places if (values := entry.in_cell(label))}
        places = [shifted(axis, label, 0.006 * offset) for label in found]
        draw_medians(axes, places, list(found.values()), section.locked_seeds(entry), style)
        for limit in (one for one in limits if one.entry is entry):
            axes.plot([axis.places[label] for label in limit.by_cell], [*limit.by_cell.values()], **limit.line(style))

    return draw_panels(section, "test accuracy", draw, lambda axes: place_loads(axes, axis), draw_floors)


def draw_medians(
    axes: Axes,
    places: Sequence[float],
    columns: Sequence[Mapping[Seeds, float]],
    locked: Sequence[Seeds],
    style: SeriesStyle,
) -> None:
    """Draw a line through the median at each place, and a dot for each seed: open if it is not locked in."""
    axes.plot(places, [median(list(one.values())) for one in columns], color=style.colour, linestyle=style.dash)
    draw_locked(axes, places, columns, locked, style)


def shifted(axis: LoadAxis, label: str, fraction: float) -> float:
    """Return the place of a cell, shifted by a fraction of the axis."""
    place, lowest, highest = axis.places[label], min(axis.places.values()), max(axis.places.values())
    return place * (highest / lowest) ** fraction if axis.logarithmic else place + fraction * max(1.0, highest - lowest)


def place_loads(axes: Axes, axis: LoadAxis) -> None:
    """Set the horizontal axis of cells."""
    if axis.logarithmic:
        axes.set_xscale("log", base=2)
    name_ticks(axes, list(axis.places.values()), axis.ticks)
    if not axis.logarithmic and len(axis.places) == 1:
        place = next(iter(axis.places.values()))
        axes.set_xlim(place - 1, place + 1)
    if axis.label == "cell" and len(axis.places) > 4:
        axes.tick_params(axis="x", labelrotation=30)
    axes.set_xlabel(readable(axis.label), parse_math=False)


def group_table(section: Section) -> Table:
    """Make a table of the median accuracy in each group, over all cells; without rows where there is one group."""
    names = section.groups
    rows = [
        (Name(entry.label), *(format_share(known_median(group_accuracies(entry, name))) for name in names))
        for entry in section.entries
    ]
    for solver in ("floor", *section.references):
        shares = [known_median(solver_accuracies(section, name, solver)) for name in names]
        rows += [(Name(solver), *map(format_share, shares))] if any(share is not None for share in shares) else []
    return Table(("architecture", *(Name(name) for name in names)), tuple(rows) if len(names) > 1 else ())


def group_accuracies(entry: Entry, group: str) -> list[float]:
    """Return the accuracy of each seed in a group; 0 for a diverged run."""
    return list(accuracies_in_group(entry, group).values())


def accuracies_in_group(entry: Entry, group: str) -> dict[Seeds, float]:
    """Return the accuracy in a group by seed; 0 for a diverged run."""
    found = {seeds_of(run): group_accuracy(run, group) for run in entry.scored}
    return {seeds: accuracy for seeds, accuracy in found.items() if accuracy is not None}


def group_accuracy(run: MeasuredRun, group: str) -> float | None:
    """Return the accuracy of a run in a group, over all its cells."""
    if run.result.status == "diverged":
        return 0.0
    scores = [cell.groups[group] for cell in run.result.cells if group in cell.groups]
    total = sum(score.count for score in scores)
    return sum(score.accuracy * score.count for score in scores) / total if total else None


def solver_accuracies(section: Section, group: str, solver: str) -> list[float]:
    """Return the accuracy of the floor or of a named solver in a group, over all cells of each run that has it."""
    found = []
    for run in (run for entry in section.entries for run in entry.scored):
        scores = [cell.groups[group] for cell in run.result.cells if group in cell.groups]
        known = [(one.floor if solver == "floor" else one.references.get(solver), one.count) for one in scores]
        pairs = [(accuracy, count) for accuracy, count in known if accuracy is not None]
        if pairs:
            found.append(sum(accuracy * count for accuracy, count in pairs) / sum(count for _, count in pairs))
    return found


def accuracy_by_group(section: Section, context: StudyContext) -> Figure | None:
    """Draw test accuracy in each group, over all cells; return None where there is one group."""
    groups = section.groups
    if len(groups) < 2:
        return None

    def draw(axes: Axes, entry: Entry, style: SeriesStyle, offset: float) -> None:
        columns = {i + 0.05 * offset: accuracies_in_group(entry, name) for i, name in enumerate(groups)}
        found = {place: values for place, values in columns.items() if values}
        draw_medians(axes, list(found), list(found.values()), section.locked_seeds(entry), style)

    def scale(axes: Axes) -> None:
        name_ticks(axes, range(len(groups)), groups)
        axes.tick_params(axis="x", labelrotation=30 if len(groups) > 4 else 0)

    return draw_panels(section, "test accuracy", draw, scale)


DIVERGENCE_PART = Part("Divergence from the exact distribution", divergence_table, note=DIVERGENCE_NOTE)
ERROR_PART = Part("Error by load", error_table, note=ERROR_NOTE)
LOAD_PART = Part(
    "Accuracy by load",
    cell_table,
    SectionFigure(
        "accuracy-by-load",
        "Accuracy by load: a dot for each seed, a line through the medians, the floor dotted.",
        accuracy_by_load,
        lambda section: measured_seeds_remark(section) + reach_remark(section),
    ),
    ranking_note,
)
GROUP_PART = Part(
    "Accuracy by group of scored positions",
    group_table,
    SectionFigure(
        "accuracy-by-group",
        "Accuracy by group of scored positions, over all loads: a dot for each seed, a line through the medians.",
        accuracy_by_group,
        measured_seeds_remark,
    ),
)
