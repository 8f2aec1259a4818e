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
from icl_bench.reports.statistics import median

PUBLISHED_STYLE = canvas.SeriesStyle((0.0, 0.0, 0.0), "o", "-")


def recall_by_state(section: Section, context: StudyContext) -> Figure | None:
    """Draw accuracy against state and against parameters; return None unless entries differ in state.

    State is in elements, or in bytes where published results, which count bytes, stand beside the measured ones.
    """
    if not section.differs_in_state:
        return None
    figure, (left, right) = canvas.new_figure(360, 1, 2)
    draw_sizes(left, section, lambda entry: entry.state_bytes if context.published else entry.state_elements)
    draw_sizes(right, section, lambda entry: entry.example.result.params)
    for point in context.published:
        left.add_line(canvas.hollow(float(point.bytes), point.accuracy, "o", 9, PUBLISHED_STYLE))
    canvas.size_axis(left, f"state {'bytes' if context.published else 'elements'} after the longest sequence")
    canvas.size_axis(right, "parameters")
    canvas.share_axis(left, "test accuracy, mean over cells")
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


PART = Part(
    "Recall against state",
    figure=SectionFigure(
        "recall-by-state",
        "Accuracy against state and against parameters: a dot for each seed, a line through the medians of a family.",
        recall_by_state,
        measured_seeds_remark,
        on_page=lambda context: bool(context.published),
    ),
)
