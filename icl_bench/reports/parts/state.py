"""Recall against the size of the state and against the number of parameters."""

from collections.abc import Callable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from icl_bench.reports import canvas
from icl_bench.reports.analysis import Section
from icl_bench.reports.context import StudyContext
from icl_bench.reports.entry import Entry
from icl_bench.reports.panels import by_state
from icl_bench.reports.parts.base import Part, SectionFigure, measured_seeds_remark
from icl_bench.reports.parts.reach import ceilings, reach_remark
from icl_bench.reports.ranking import MATCHED
from icl_bench.reports.statistics import median

PUBLISHED_STYLE = canvas.SeriesStyle((0.0, 0.0, 0.0), "o", "-")


def recall_by_state(section: Section, context: StudyContext) -> Figure | None:
    """Draw accuracy against state and against parameters; return None unless entries differ in state.

    State is in elements; in bytes too where elements have different sizes, and in bytes alone where published results,
    which count bytes, stand beside the measured ones.
    """
    if not section.differs_in_state:
        return None
    ratios = {one.state_bytes / one.state_elements for one in section.entries if one.state_elements and one.state_bytes}
    sizes: list[tuple[str, Callable[[Entry], int | None]]] = []
    if not context.published:
        sizes.append(("state elements after the longest sequence", lambda entry: entry.state_elements))
    if context.published or max(ratios) > MATCHED * min(ratios):
        sizes.append(("state bytes after the longest sequence", lambda entry: entry.state_bytes))
    figure, panels = canvas.new_figure(360, 1, len(sizes) + 1)
    for axes, (label, size) in zip(panels, sizes, strict=False):
        draw_sizes(axes, section, size)
        draw_ceilings(axes, section, size)
        canvas.size_axis(axes, label)
    draw_sizes(panels[-1], section, lambda entry: entry.example.result.params)
    canvas.size_axis(panels[-1], "parameters")
    for point in context.published:
        panels[0].add_line(canvas.hollow(float(point.bytes), point.accuracy, "o", 9, PUBLISHED_STYLE))
    canvas.share_axis(panels[0], "test accuracy, mean over cells")
    handles, names = canvas.legend_handles(map(canvas.series_style, range(len(section.families)))), [*section.families]
    if context.published:
        handles.append(canvas.hollow(0, 0, "o", 9, PUBLISHED_STYLE))
        names.append("published")
    canvas.add_legend(figure, [*handles, Line2D([], [], **canvas.FLOOR_LINE)], [*names, "floor"])
    return figure


def draw_sizes(axes: Axes, section: Section, size: Callable[[Entry], int | None]) -> None:
    """Draw a dot for each seed, a short bar at each median, a line through the medians of a family, and the floor."""
    for i, family in enumerate(section.families):
        style = canvas.series_style(i)
        members = [one for one in section.entries if one.family == family and one.accuracies]
        places = [(found, one) for one in members if (found := size(one))]
        places.sort(key=lambda place: (place[0], by_state(place[1])))
        sizes, columns = [found for found, _ in places], [list(one.accuracies.values()) for _, one in places]
        bars: Any = {"linestyle": style.dash, "marker": "_", "markersize": 16, "markeredgewidth": 1.8}
        axes.plot(sizes, list(map(median, columns)), color=style.colour, **bars)
        canvas.draw_seeds(axes, sizes, columns, style)
    axes.axhline(section.mean_floor or 0.0, **canvas.FLOOR_LINE)


def draw_ceilings(axes: Axes, section: Section, size: Callable[[Entry], int | None]) -> None:
    """Draw a thin line through the ceilings of a family of windows, for one layer and for all."""
    limits = list(ceilings(section))
    for i, family in enumerate(section.families):
        for several in (False, True):
            found = [one for one in limits if one.entry.family == family and (one.layers > 1) == several]
            points = sorted((place, one.mean) for one in found if (place := size(one.entry)) is not None)
            if points:
                axes.plot(*zip(*points, strict=True), **found[0].line(canvas.series_style(i)))


PART = Part(
    "Recall against state",
    figure=SectionFigure(
        "recall-by-state",
        "Accuracy against the size of the state and against parameters: a dot for each seed, a line through the "
        "medians of a family.",
        recall_by_state,
        lambda section: measured_seeds_remark(section) + reach_remark(section),
    ),
)
