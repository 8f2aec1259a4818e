"""Figures of a section: each seed a dot, the median a line, the floor dotted. Loads matplotlib."""

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from icl_bench.reports.analysis import Entry, Section, curve_of
from icl_bench.reports.canvas import (
    GREY,
    MOST_DOTS,
    Look,
    add_legend,
    draw_curves,
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
from icl_bench.reports.framing import Published
from icl_bench.reports.panels import by_state, grid, label_panels, panels_of, share_axes
from icl_bench.reports.statistics import median
from icl_bench.reports.tables import group_values
from icl_bench.runs.outline import seeds_of

LOG_FROM = 4
"""Ratio of largest to smallest load from which the axis of loads is logarithmic."""
ARROWS = {"above": "^", "below": "v"}
MOST_CURVES = 20
"""Learning curves of an entry, at most."""
PUBLISHED = Look((0.0, 0.0, 0.0), "o", "-")


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
    """Test accuracy in each cell; none where no run has a score, or one cell is drawn by state already."""
    if not section.cells or (len(section.cells) == 1 and differs_in_state(section)):
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
    draw_seeds(axes, places, list(found.values()), style)


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
    """Validation accuracy over training at the chosen rate, a line a seed; none unless a run was validated twice."""
    panels = panels_of(section)
    if not any(len(curve_of(run)) > 1 for entry in section.entries for run in entry.measured):
        return None
    figure, axes = grid(panels)
    for one, panel in zip(axes, panels, strict=True):
        for entry, style in zip(panel.entries, panel.looks, strict=True):
            drawn = sorted(entry.measured, key=seeds_of)[:MOST_CURVES]
            draw_curves(one, [curve_of(run) for run in drawn], style)
        one.set_xlabel("updates")
    share_axes(axes, len(panels), "validation accuracy")
    label_panels(figure, axes, panels, floor=False)
    return figure


class Spot(NamedTuple):
    """An entry that has a score, where it stands by its size."""

    entry: Entry
    size: float
    accuracy: float


def spots_of(entries: Sequence[Entry], size: Callable[[Entry], int | None]) -> list[Spot]:
    """The entries with a score, by a size above 0."""
    known = ((entry, size(entry), entry.accuracy) for entry in entries)
    spots = [Spot(entry, float(found), accuracy) for entry, found, accuracy in known if found and accuracy is not None]
    return sorted(spots, key=lambda spot: (spot.size, by_state(spot.entry)))


def recall_by_state(section: Section, published: Sequence[Published] = ()) -> Figure | None:
    """Accuracy against state and against parameters; none unless entries differ in state.

    State is in elements, and in bytes where published results stand beside, which count bytes.
    """
    if not differs_in_state(section):
        return None
    figure, (left, right) = new_figure(360, 1, 2)
    draw_sizes(left, section, state_bytes if published else state_elements)
    draw_sizes(right, section, lambda entry: entry.example.result.params)
    for point in published:
        left.add_line(hollow(float(point.bytes), point.accuracy, "o", 9, PUBLISHED))
    size_axis(left, f"state {'bytes' if published else 'elements'} after the longest sequence")
    size_axis(right, "parameters")
    share_axis(left, "test accuracy, mean over cells")
    handles = [handle(look(i)) for i in range(len(section.families))]
    extra = [hollow(0, 0, "o", 9, PUBLISHED)] if published else []
    add_legend(figure, [*handles, *extra, floor_handle()], [*section.families, *["published"] * len(extra), "floor"])
    return figure


def differs_in_state(section: Section) -> bool:
    """Whether entries with a score carry states of different sizes."""
    return len({entry.state_elements for entry in section.entries if entry.accuracies} - {None}) > 1


def state_elements(entry: Entry) -> int | None:
    """Numbers carried after the longest cell."""
    return entry.state_elements


def state_bytes(entry: Entry) -> int | None:
    """Their size."""
    state = entry.example.result.state
    return state.bytes if state else None


def draw_sizes(axes: Axes, section: Section, size: Callable[[Entry], int | None]) -> None:
    """The families of a section by size, over the floor."""
    spots = spots_of(section.entries, size)
    for i, family in enumerate(section.families):
        draw_family(axes, [spot for spot in spots if spot.entry.family == family], look(i))
    axes.axhline(section.mean_floor or 0.0, color=GREY, linestyle=":", linewidth=1.4)


def draw_family(axes: Axes, spots: Sequence[Spot], style: Look) -> None:
    """Dots, a short bar at each median, and a line through the medians."""
    axes.plot(
        [spot.size for spot in spots],
        [spot.accuracy for spot in spots],
        color=style.colour,
        linestyle=style.dash,
        marker="_",
        markersize=16,
        markeredgewidth=1.8,
    )
    draw_seeds(axes, [spot.size for spot in spots], [list(spot.entry.accuracies.values()) for spot in spots], style)


def accuracy_by_group(section: Section) -> Figure | None:
    """Test accuracy on each group of scored positions, all cells together; none where there is one group."""
    if len(section.groups) < 2:
        return None
    panels = panels_of(section)
    figure, axes = grid(panels)
    for one, panel in zip(axes, panels, strict=True):
        middle = (len(panel.entries) - 1) / 2
        for i, (entry, style) in enumerate(zip(panel.entries, panel.looks, strict=True)):
            draw_by_group(one, entry, style, section.groups, 0.05 * (i - middle))
        name_ticks(one, range(len(section.groups)), section.groups)
        one.tick_params(axis="x", labelrotation=30 if len(section.groups) > 4 else 0)
    share_axes(axes, len(panels), "test accuracy")
    label_panels(figure, axes, panels, floor=False)
    return figure


def draw_by_group(axes: Axes, entry: Entry, style: Look, groups: Sequence[str], offset: float) -> None:
    """Dots and median of an entry, a little aside."""
    found = [(place + offset, group_values(entry, name)) for place, name in enumerate(groups)]
    kept = [(place, row) for place, row in found if row]
    medians = [median(row) for _, row in kept]
    axes.plot([place for place, _ in kept], medians, color=style.colour, linestyle=style.dash)
    draw_seeds(axes, [place for place, _ in kept], [row for _, row in kept], style)


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
    rates = [rate.rate for rate in entry.rates]
    axes.plot(rates, scores, color=style.colour, linestyle=style.dash)
    draw_seeds(axes, rates, [list(rate.by_seed.values()) for rate in entry.rates], style)
    best = scores[rates.index(entry.rate)]
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
    mark = Line2D([x], [y], color=style.colour, linestyle="none", marker=marker, markersize=size, clip_on=False)
    mark.set_markerfacecolor("none")
    return mark


FIGURES: tuple[tuple[str, str, Callable[[Section], Figure | None]], ...] = (
    ("accuracy-by-load", "Accuracy by load: each seed a dot, medians joined, the floor dotted.", accuracy_by_load),
    ("accuracy-by-group", "Accuracy by group of scored positions, all loads: each seed a dot.", accuracy_by_group),
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
"""Name, caption and function of each figure that shows a section alone."""
BY_STATE = (
    "recall-by-state",
    "Recall against state and against parameters: each seed a dot, medians of a family joined.",
)


def draw_all(
    section: Section, published: Sequence[Published] = (), names: Container[str] | None = None
) -> Iterator[tuple[str, str, bytes]]:
    """Name, caption and SVG of each figure that has something to show; `names` limits which."""
    by_state: Callable[[Section], Figure | None] = partial(recall_by_state, published=published)
    for name, caption, make in (*FIGURES, (*BY_STATE, by_state)):
        with settings():
            figure = make(section) if names is None or name in names else None
            if figure is not None:
                yield name, caption + thinning(name, caption, section), svg(figure)


def thinning(name: str, caption: str, section: Section) -> str:
    """What a caption says where not all seeds are drawn."""
    if name == "learning-curves" and any(len(entry.measured) > MOST_CURVES for entry in section.entries):
        return f" Of an entry with more than {MOST_CURVES} seeds, the first {MOST_CURVES} are drawn."
    if "each seed a dot" not in caption:
        return ""
    swept = (len(rate.by_seed) for entry in section.entries for rate in entry.rates)
    most = max(swept if name == "learning-rates" else (len(entry.accuracies) for entry in section.entries), default=0)
    return f" Of more than {MOST_DOTS} seeds in one place, {MOST_DOTS} quantiles." if most > MOST_DOTS else ""
