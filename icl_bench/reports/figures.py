"""Figures of a section: each seed a dot, the median a line, the floor dotted. Loads matplotlib."""

from collections.abc import Container, Iterator, Mapping, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from icl_bench.reports.analysis import Entry, Section, seeds_of
from icl_bench.reports.canvas import (
    GREY,
    Look,
    add_legend,
    draw_floor,
    draw_seeds,
    floor_handle,
    handle,
    load_scale,
    look,
    name_ticks,
    new_figure,
    rate_scale,
    settings,
    share_axis,
    size_axis,
    svg,
)
from icl_bench.reports.capacities import Recall, recalls
from icl_bench.reports.panels import by_state, grid, label_panels, panels_of, share_axes
from icl_bench.reports.statistics import median

LOG_FROM = 4
"""Ratio of largest to smallest load from which the axis of loads is logarithmic."""
ARROWS = {"above": "^", "below": "v"}


class Axis(NamedTuple):
    """Where cells stand on the horizontal axis."""

    places: Mapping[str, float]
    ticks: tuple[str, ...]
    logarithmic: bool
    label: str


def load_axis(section: Section) -> Axis:
    """Cells by load where loads tell them apart, else side by side."""
    cells = section.cells
    values = [cell.load for cell in cells]
    if len(set(values)) < len(values):
        return Axis(
            {cell.label: float(i) for i, cell in enumerate(cells)}, tuple(c.label for c in cells), False, "cell"
        )
    logarithmic = min(values) > 0 and max(values) >= LOG_FROM * min(values)
    ticks = tuple(str(value) for value in values)
    return Axis({cell.label: float(cell.load) for cell in cells}, ticks, logarithmic, section.load_name)


def accuracy_by_load(section: Section) -> Figure | None:
    """Test accuracy in each cell; none where no run has a score."""
    if not section.cells:
        return None
    axis, panels = load_axis(section), panels_of(section)
    figure, axes = grid(panels)
    for one, panel in zip(axes, panels, strict=True):
        draw_floor(one, list(axis.places.values()), [section.floors[label].accuracy for label in axis.places])
        middle = (len(panel.entries) - 1) / 2
        for i, (entry, style) in enumerate(zip(panel.entries, panel.looks, strict=True)):
            draw_by_load(one, entry, style, axis, i - middle)
        place_loads(one, axis)
    share_axes(axes, len(panels), "test accuracy")
    label_panels(figure, axes, panels, floor=True)
    return figure


def draw_by_load(axes: Axes, entry: Entry, style: Look, axis: Axis, offset: float) -> None:
    """Dots and median of an entry; entries stand a little aside, so that they do not hide each other."""
    found = {label: list(values.values()) for label in axis.places if (values := entry.in_cell(label))}
    places = [aside(axis, label, 0.006 * offset) for label in found]
    axes.plot(places, [median(row) for row in found.values()], color=style.colour, linestyle=style.dash)
    for place, row in zip(places, found.values(), strict=True):
        draw_seeds(axes, place, row, style)


def aside(axis: Axis, label: str, part: float) -> float:
    """The place of a cell, moved by a part of the axis."""
    place, lowest, highest = axis.places[label], min(axis.places.values()), max(axis.places.values())
    return place * (highest / lowest) ** part if axis.logarithmic else place + part * max(1.0, highest - lowest)


def place_loads(axes: Axes, axis: Axis) -> None:
    """The horizontal axis of cells."""
    if axis.logarithmic:
        axes.set_xscale("log", base=2)
    name_ticks(axes, list(axis.places.values()), axis.ticks)
    if not axis.logarithmic and len(axis.places) == 1:
        place = next(iter(axis.places.values()))
        axes.set_xlim(place - 1, place + 1)
    if axis.label == "cell" and len(axis.places) > 4:
        axes.tick_params(axis="x", labelrotation=30)
    axes.set_xlabel(axis.label, parse_math=False)


def learning_curves(section: Section) -> Figure | None:
    """Validation accuracy over training at the chosen rate, a line a seed; none where nothing was validated."""
    panels = panels_of(section)
    if not any(run.metrics for entry in section.entries for run in entry.measured):
        return None
    figure, axes = grid(panels)
    for one, panel in zip(axes, panels, strict=True):
        for entry, style in zip(panel.entries, panel.looks, strict=True):
            for run in sorted(entry.measured, key=seeds_of):
                points = [(point.step, point.accuracy) for point in run.metrics]
                x, y = [step for step, _ in points], [accuracy for _, accuracy in points]
                one.plot(x, y, color=style.colour, linestyle=style.dash, linewidth=1.1)
        one.set_xlabel("updates")
    share_axes(axes, len(panels), "validation accuracy")
    label_panels(figure, axes, panels, floor=False)
    return figure


class Spot(NamedTuple):
    """An entry that carries state and has a score."""

    entry: Entry
    state: float
    accuracy: float


def spots_of(entries: Sequence[Entry]) -> list[Spot]:
    """The entries with state and a score, by state."""
    known = ((entry, entry.state_elements, entry.accuracy) for entry in sorted(entries, key=by_state))
    return [Spot(entry, float(state), accuracy) for entry, state, accuracy in known if state and accuracy is not None]


def recall_by_state(section: Section) -> Figure | None:
    """Accuracy against state elements; none unless entries differ in state."""
    spots = spots_of(section.entries)
    if len({spot.state for spot in spots}) < 2:
        return None
    figure, (axes,) = new_figure(360)
    for i, family in enumerate(section.families):
        draw_family(axes, [spot for spot in spots if spot.entry.family == family], look(i))
    axes.axhline(section.mean_floor or 0.0, color=GREY, linestyle=":", linewidth=1.4)
    size_axis(axes, "state elements after the longest sequence")
    share_axis(axes, "test accuracy, mean over cells")
    handles = [handle(look(i)) for i in range(len(section.families))]
    add_legend(figure, [*handles, floor_handle()], [*section.families, "floor"])
    return figure


def draw_family(axes: Axes, spots: Sequence[Spot], style: Look) -> None:
    """Dots, a short bar at each median, and a line through the medians."""
    axes.plot(
        [spot.state for spot in spots],
        [spot.accuracy for spot in spots],
        color=style.colour,
        linestyle=style.dash,
        marker="_",
        markersize=16,
        markeredgewidth=1.8,
    )
    for spot in spots:
        draw_seeds(axes, spot.state, list(spot.entry.accuracies.values()), style)


def learning_rates(section: Section) -> Figure | None:
    """Validation accuracy against learning rate, the chosen rate ringed; none where no rates were swept."""
    if all(len(entry.rates) < 2 for entry in section.entries):
        return None
    panels = panels_of(section)
    figure, axes = grid(panels)
    for one, panel in zip(axes, panels, strict=True):
        for entry, style in zip(panel.entries, panel.looks, strict=True):
            draw_sweep(one, entry, style)
        rate_scale(one)
    share_axes(axes, len(panels), "validation accuracy")
    label_panels(figure, axes, panels, floor=False)
    return figure


def draw_sweep(axes: Axes, entry: Entry, style: Look) -> None:
    """Dots of the seeds at each rate, the line of medians, and a ring around the choice."""
    scores = [max(0.0, rate.score) for rate in entry.rates]
    axes.plot([rate.rate for rate in entry.rates], scores, color=style.colour, linestyle=style.dash)
    for rate in entry.rates:
        draw_seeds(axes, rate.rate, list(rate.by_seed.values()), style)
    best = scores[[rate.rate for rate in entry.rates].index(entry.rate)]
    axes.add_line(hollow(entry.rate, best, "o", 11, style))


def capacity_by_state(section: Section) -> Figure | None:
    """K50 against state elements, beside the law; none unless states differ and a K50 lies within the loads."""
    found = [row for row in recalls(section) if row.capacity and row.entry.state_elements]
    if len({row.entry.state_elements for row in found}) < 2 or not any(is_within(row) for row in found):
        return None
    figure, (axes,) = new_figure(380)
    for i, family in enumerate(section.families):
        members = sorted((row for row in found if row.entry.family == family), key=lambda row: by_state(row.entry))
        draw_capacities(axes, members, look(i))
    size_axis(axes, "state elements after the longest sequence")
    load_scale(axes, f"K50, {section.load_name}")
    handles = [handle(look(i)) for i in range(len(section.families))]
    names = list(section.families)
    if any(row.predicted for row in found):
        handles.append(Line2D([], [], color=GREY, linestyle=":", marker="*", markersize=8))
        names.append("predicted, random keys")
    add_legend(figure, handles, names)
    return figure


def is_within(row: Recall) -> bool:
    """Whether K50 lies within the loads measured."""
    return row.capacity is not None and row.capacity.k50.side == "within"


def draw_capacities(axes: Axes, rows: Sequence[Recall], style: Look) -> None:
    """K50 with intervals; an arrow where it lies beyond the loads measured; the law in stars."""
    points = [(float(row.entry.state_elements or 0), row.capacity.k50) for row in rows if row.capacity]
    within = [(state, k50) for state, k50 in points if k50.side == "within"]
    axes.plot([x for x, _ in within], [k50.value for _, k50 in within], color=style.colour, linestyle=style.dash)
    for state, k50 in points:
        if k50.side != "within":
            axes.add_line(hollow(state, k50.value, ARROWS[k50.side], 8, style))
            continue
        if k50.interval:
            axes.plot([state, state], list(k50.interval), color=style.colour, linewidth=1.2)
        axes.plot([state], [k50.value], color=style.colour, marker=style.marker, markersize=6)
    law = [(float(row.entry.state_elements or 0), row.predicted) for row in rows if row.predicted]
    axes.plot([x for x, _ in law], [y for _, y in law], color=style.colour, linestyle=":", marker="*", markersize=8)


def hollow(x: float, y: float, marker: str, size: float, style: Look) -> Line2D:
    """A hollow mark."""
    mark = Line2D([x], [y], color=style.colour, marker=marker, markersize=size, clip_on=False)
    mark.set_markerfacecolor("none")
    return mark


FIGURES = (
    ("accuracy-by-load", "Accuracy by load: each seed a dot, medians joined, the floor dotted.", accuracy_by_load),
    ("recall-by-state", "Recall against state: each seed a dot, medians of a family joined.", recall_by_state),
    (
        "capacity",
        "K50 against state, with 95 % intervals; open arrows: beyond the loads measured; stars: the predicted law.",
        capacity_by_state,
    ),
    (
        "learning-rates",
        "Validation accuracy by learning rate: each seed a dot, medians joined, the choice ringed.",
        learning_rates,
    ),
    ("learning-curves", "Validation accuracy over training at the chosen rate, a line a seed.", learning_curves),
)
"""Name, caption and function of each figure of a section."""


def draw_all(section: Section, names: Container[str] | None = None) -> Iterator[tuple[str, str, bytes]]:
    """Name, caption and SVG of each figure that has something to show; `names` limits which."""
    for name, caption, make in FIGURES:
        with settings():
            figure = make(section) if names is None or name in names else None
            if figure is not None:
                yield name, caption, svg(figure)
