"""Figures of a section: each seed a dot, the median a line, the floor dotted. Loads matplotlib."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from icl_bench.reports.analysis import Entry, Section, seeds_of
from icl_bench.reports.canvas import (
    Look,
    add_legend,
    draw_floor,
    draw_seeds,
    floor_handle,
    handle,
    look,
    name_ticks,
    new_figure,
    set_title,
    settings,
    share_axis,
    short,
    size_axis,
    svg,
)
from icl_bench.reports.naming import natural_key
from icl_bench.reports.statistics import median

MOST_ENTRIES = 7
"""Entries that one panel can show; more are spread over a panel a family."""
COLUMNS = 3
LOG_FROM = 4
"""Ratio of largest to smallest load from which the axis of loads is logarithmic."""


class Panel(NamedTuple):
    """Entries drawn on the same axes, with their looks."""

    title: str
    entries: tuple[Entry, ...]
    looks: tuple[Look, ...]
    names: tuple[str, ...]


class Axis(NamedTuple):
    """Where cells stand on the horizontal axis."""

    places: Mapping[str, float]
    ticks: tuple[str, ...]
    logarithmic: bool
    label: str


def panels_of(section: Section) -> list[Panel]:
    """One panel, or one for each family where there are too many entries for one."""
    entries = section.entries
    if len(entries) <= MOST_ENTRIES:
        looks = tuple(look(i) for i in range(len(entries)))
        return [Panel("", entries, looks, tuple(entry.label for entry in entries))]
    return [family_panel(section, family, i) for i, family in enumerate(section.families)]


def family_panel(section: Section, family: str, index: int) -> Panel:
    """The entries of a family, by state, the smallest the lightest."""
    members = sorted((entry for entry in section.entries if entry.family == family), key=by_state)
    steps = max(1, len(members) - 1)
    looks = tuple(look(index, 1 - i / steps) for i in range(len(members)))
    states = [entry.state_elements for entry in members]
    same = len(set(states)) < len(states)
    names = [
        entry.label if same else f"{short(state or 0)} elements" for entry, state in zip(members, states, strict=True)
    ]
    return Panel(family, tuple(members), looks, tuple(names))


def by_state(entry: Entry) -> tuple[int, object]:
    """Sorting key: state, then label."""
    return entry.state_elements or 0, natural_key(entry.label)


def grid(panels: Sequence[Panel]) -> tuple[Figure, list[Axes]]:
    """Axes for the panels; unused ones are blank."""
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = new_figure(360 if rows == 1 else 270 * rows, rows, columns)
    for blank in axes[len(panels) :]:
        blank.set_visible(False)
    return figure, axes[: len(panels)]


def label_panels(figure: Figure, axes: Sequence[Axes], panels: Sequence[Panel], floor: bool) -> None:
    """A legend beside a lone panel; titles and small legends inside several."""
    extra, names = ([floor_handle()], ["floor"]) if floor else ([], [])
    if len(panels) == 1:
        add_legend(figure, [*map(handle, panels[0].looks), *extra], [*panels[0].names, *names])
        return
    for one, panel in zip(axes, panels, strict=True):
        set_title(one, panel.title)
        small = one.legend(
            list(map(handle, panel.looks)), [str(i) for i in range(len(panel.names))], loc="best", fontsize=8
        )
        for text, name in zip(small.get_texts(), panel.names, strict=True):
            text.set_parse_math(False)
            text.set_text(name[:30])


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
        draw_floor(one, list(axis.places.values()), [section.floor(label)[0] for label in axis.places])
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


def share_axes(axes: Sequence[Axes], panels: int, label: str) -> None:
    """Vertical axes from 0 to 1, labelled at the left of each row."""
    columns = min(COLUMNS, panels)
    for i, one in enumerate(axes):
        share_axis(one, label if i % columns == 0 else "")


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
    axes.axhline(section.mean_floor or 0.0, color="#57606a", linestyle=":", linewidth=1.4)
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


FIGURES = (
    ("accuracy-by-load", "Accuracy by load: each seed a dot, medians joined, the floor dotted.", accuracy_by_load),
    ("recall-by-state", "Recall against state: each seed a dot, medians of a family joined.", recall_by_state),
    ("learning-curves", "Validation accuracy over training at the chosen rate, a line a seed.", learning_curves),
)
"""Name, caption and function of each figure of a section."""


def draw_all(section: Section) -> Iterator[tuple[str, str, bytes]]:
    """Name, caption and SVG of each figure that has something to show."""
    for name, caption, make in FIGURES:
        with settings():
            figure = make(section)
            if figure is not None:
                yield name, caption, svg(figure)
