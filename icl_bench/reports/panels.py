"""Panels of a figure: one panel for few entries, a panel for each family where there are many. Loads matplotlib."""

from collections.abc import Callable
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from icl_bench.reports import canvas
from icl_bench.reports.analysis import Section
from icl_bench.reports.entry import Entry
from icl_bench.reports.naming import natural_key

MOST_ENTRIES = 7
"""Largest number of entries in one panel; with more, each family has a panel."""
COLUMNS = 2


class Panel(NamedTuple):
    """Entries drawn on the same axes, with their styles and the names in their legend."""

    title: str
    entries: tuple[Entry, ...]
    styles: tuple[canvas.SeriesStyle, ...]
    names: tuple[str, ...]


def panels_of(section: Section) -> list[Panel]:
    """Return one panel, or a panel for each family where there are too many entries."""
    entries = section.entries
    if len(entries) <= MOST_ENTRIES:
        styles = tuple(canvas.series_style(i) for i in range(len(entries)))
        return [Panel("", entries, styles, tuple(entry.label for entry in entries))]
    return [family_panel(section, family, i) for i, family in enumerate(section.families)]


def family_panel(section: Section, family: str, index: int) -> Panel:
    """Return the panel of a family: entries by state, the smallest in the lightest colour."""
    members = sorted((entry for entry in section.entries if entry.family == family), key=by_state)
    last = len(members) - 1
    styles = tuple(canvas.series_style(index, 1 - i / last if last else 0.0) for i in range(len(members)))
    states = [entry.state_elements for entry in members]
    same = len(set(states)) < len(states)
    names = (one.label if same else canvas.short_count(state or 0) for one, state in zip(members, states, strict=True))
    return Panel(family, tuple(members), styles, tuple(names))


def by_state(entry: Entry) -> tuple[int, object]:
    """Return the sorting key of an entry: state, then label."""
    return entry.state_elements or 0, natural_key(entry.label)


def draw_panels(
    section: Section,
    label: str,
    draw: Callable[[Axes, Entry, canvas.SeriesStyle, float], None],
    draw_floor: Callable[[Axes], None] | None = None,
) -> tuple[Figure, list[Axes]]:
    """Draw the entries of a section over vertical axes from 0 to 1; return the figure and the axes of its panels.

    `draw` draws an entry on the axes of its panel; the number is its distance from the middle entry. `draw_floor` draws
    the floor on the axes of each panel. Each of several panels has a title and a small legend of its own.
    """
    panels = panels_of(section)
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = canvas.new_figure(360 if rows == 1 else 270 * rows, rows, columns)
    for unused in axes[len(panels) :]:
        unused.set_visible(False)
    axes = axes[: len(panels)]
    for i, (one, panel) in enumerate(zip(axes, panels, strict=True)):
        if draw_floor:
            draw_floor(one)
        for k, (entry, style) in enumerate(zip(panel.entries, panel.styles, strict=True)):
            draw(one, entry, style, k - (len(panel.entries) - 1) / 2)
        canvas.share_axis(one, label if i % columns == 0 else "")
        handles = canvas.legend_handles(panel.styles)
        if len(panels) > 1:
            one.set_title(canvas.readable(panel.title), loc="left", parse_math=False)
            canvas.add_legend(one, handles, panel.names, "state")
        elif draw_floor:
            canvas.add_legend(figure, [*handles, Line2D([], [], **canvas.FLOOR_LINE)], [*panel.names, "floor"])
        else:
            canvas.add_legend(figure, handles, panel.names)
    return figure, axes
