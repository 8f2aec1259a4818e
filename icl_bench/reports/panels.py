"""Panels of a figure: one for few entries, one for each family where there are many. Loads matplotlib."""

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

from icl_bench.reports.analysis import Entry, Section
from icl_bench.reports.canvas import (
    Look,
    add_legend,
    floor_handle,
    handle,
    look,
    new_figure,
    readable,
    set_title,
    share_axis,
    short,
)
from icl_bench.reports.naming import natural_key

MOST_ENTRIES = 7
"""Entries that one panel can show; more are spread over a panel a family."""
COLUMNS = 2


class Panel(NamedTuple):
    """Entries drawn on the same axes, with their looks."""

    title: str
    entries: tuple[Entry, ...]
    looks: tuple[Look, ...]
    names: tuple[str, ...]


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
    last = len(members) - 1
    looks = tuple(look(index, 1 - i / last if last else 0.0) for i in range(len(members)))
    states = [entry.state_elements for entry in members]
    same = len(set(states)) < len(states)
    names = [entry.label if same else f"{short(state or 0)}" for entry, state in zip(members, states, strict=True)]
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
    """A legend beside a lone panel; titles and small legends beside several."""
    extra, names = ([floor_handle()], ["floor"]) if floor else ([], [])
    if len(panels) == 1:
        add_legend(figure, [*map(handle, panels[0].looks), *extra], [*panels[0].names, *names])
        return
    for one, panel in zip(axes, panels, strict=True):
        set_title(one, panel.title)
        numbers = [str(i) for i in range(len(panel.names))]
        small = one.legend(list(map(handle, panel.looks)), numbers, loc="upper left", bbox_to_anchor=(1, 1), fontsize=8)
        small.set_title("state", prop=FontProperties(size=8))
        for text, name in zip(small.get_texts(), panel.names, strict=True):
            text.set_parse_math(False)
            text.set_text(readable(name))


def share_axes(axes: Sequence[Axes], panels: int, label: str) -> None:
    """Vertical axes from 0 to 1, labelled at the left of each row."""
    columns = min(COLUMNS, panels)
    for i, one in enumerate(axes):
        share_axis(one, label if i % columns == 0 else "")
