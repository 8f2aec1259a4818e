"""Panels of a figure: one panel for few entries, a panel for each family where there are many. Loads matplotlib."""

import re
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple, Self

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from icl_bench.reports import canvas
from icl_bench.reports.analysis import Section
from icl_bench.reports.entry import Entry
from icl_bench.reports.labels import End, draw_apart, label_ends
from icl_bench.reports.naming import natural_key, shared_settings, without_settings

MOST_ENTRIES = 7
"""Largest number of entries in one panel; with more, each family has a panel."""
MOST_OF_SETTING = 12
"""Largest number of entries in the panel of a setting."""
LONGEST_TITLES = 117
"""Largest number of characters in a line of the titles of the panels that stand side by side."""
TITLE_LINE = 14
"""Pixels of a further line of a panel's title."""
COLUMNS = 2
FEW = 4
"""Largest number of entries of panels that stand side by side."""


class Panel(NamedTuple):
    """Entries drawn on the same axes, with their styles and the names in their legend."""

    title: str
    entries: tuple[Entry, ...]
    styles: tuple[canvas.SeriesStyle, ...]
    names: tuple[str, ...]

    def only(self, drawn: Callable[[Entry], bool]) -> Self:
        """Return the panel without the entries that are not drawn."""
        kept = [i for i, entry in enumerate(self.entries) if drawn(entry)]
        entries, styles = tuple(self.entries[i] for i in kept), tuple(self.styles[i] for i in kept)
        return self._replace(entries=entries, styles=styles, names=tuple(self.names[i] for i in kept))

    def without(self, settings: Collection[str]) -> Self:
        """Return the panel with these settings in none of its names, its title included."""
        names = tuple(without_settings(name, settings) for name in self.names)
        return self._replace(title=without_settings(self.title, settings), names=names)


def panels_of(section: Section, crowded: bool = False) -> list[Panel]:
    """Return one panel of few entries; of more, a panel for each setting or, where sizes differ, for each family.

    A setting is what labels name behind the architecture, such as a number of layers. `crowded`: an entry has many
    lines, so that those of a setting would hide each other.
    """
    entries = section.entries
    if len(entries) <= MOST_ENTRIES:
        styles = tuple(canvas.series_style(i) for i in range(len(entries)))
        return [Panel("", entries, styles, tuple(entry.label for entry in entries))]
    by_setting: dict[str, list[Entry]] = {}
    for entry in entries:
        by_setting.setdefault(entry.family.partition(", ")[2], []).append(entry)
    if (
        not crowded
        and 2 * len(section.families) > len(entries)
        and max(map(len, by_setting.values())) <= MOST_OF_SETTING
    ):
        return [setting_panel(section, setting, members) for setting, members in by_setting.items()]
    return [family_panel(section, family, i) for i, family in enumerate(section.families)]


def setting_panel(section: Section, setting: str, members: Sequence[Entry]) -> Panel:
    """Return the panel of a setting; an architecture has one colour in all panels, and each of its sizes a dash.

    An architecture of one size is named without it.
    """
    kinds = list(dict.fromkeys(map(unset_family, section.entries)))
    own = [*map(unset_family, members)]
    styles = tuple(
        style._replace(dash=canvas.DASHES[(canvas.DASHES.index(style.dash) + own[:i].count(kind)) % len(canvas.DASHES)])
        for i, kind in enumerate(own)
        for style in [canvas.series_style(kinds.index(kind))]
    )
    labels = [entry.label.removesuffix(f", {setting}") for entry in members]
    names = tuple(kind if own.count(kind) == 1 else label for kind, label in zip(own, labels, strict=True))
    return Panel(setting, tuple(members), styles, names)


def unset_family(entry: Entry) -> str:
    """Return the family of an entry without its setting."""
    return entry.family.partition(", ")[0]


def family_panel(section: Section, family: str, index: int) -> Panel:
    """Return the panel of a family: entries by state, the smallest in the lightest colour."""
    members = sorted((entry for entry in section.entries if entry.family == family), key=by_state)
    last = len(members) - 1
    styles = tuple(canvas.series_style(index, 1 - i / last if last else 0.0) for i in range(len(members)))
    states = [entry.state_elements for entry in members]
    same = len(set(states)) < len(states)
    names = distinct_parts([one.label for one in members]) if same else [canvas.short_count(one or 0) for one in states]
    return Panel(family if same else f"{family}, by state elements", tuple(members), styles, tuple(names))


def distinct_parts(labels: Sequence[str]) -> list[str]:
    """Return what each label has that some other one lacks; the whole label where there is nothing.

    >>> distinct_parts(["linear, d_model=128, steps=500", "linear, d_model=256, steps=500"])
    ['d_model=128', 'd_model=256']
    """
    parts = [label.split(", ") for label in labels]
    shared = set(parts[0]).intersection(*parts)
    return [
        ", ".join(part for part in of if part not in shared) or label for label, of in zip(labels, parts, strict=True)
    ]


def by_state(entry: Entry) -> tuple[int, object]:
    """Return the sorting key of an entry: state, then label."""
    return entry.state_elements or 0, natural_key(entry.label)


def draw_panels(
    section: Section,
    label: str,
    draw: Callable[[Axes, Entry, canvas.SeriesStyle, float], None],
    scale: Callable[[Axes], None],
    draw_floor: Callable[[Axes], None] | None = None,
    crowded: bool = False,
    drawn: Callable[[Entry], bool] = lambda entry: True,
) -> Figure:
    """Draw the entries of a section over vertical axes from 0 to 1, with a label at the end of each line.

    `draw` draws an entry on the axes of its panel, its line first; the number is its distance from the middle entry.
    `draw_floor` draws the floor as a line on the axes of each panel. `scale` sets the axes of a panel. Lines that
    coincide are shifted by up to two pixels. Labels that do not fit are a legend. Panels of one entry have its name as
    title, and stand three in a row; panels of many entries stand below each other, because their labels take room.
    `crowded`: an entry has many lines. `drawn` says which entries are drawn; a panel without any is left out. No name
    says what all entries drawn share (`shared_remark`).
    """
    shared = shared_settings([entry.label for entry in section.entries if drawn(entry)])
    panels = [kept.without(shared) for panel in panels_of(section, crowded) if (kept := panel.only(drawn)).entries]
    most = max(len(panel.entries) for panel in panels)
    alone = most == 1 and len(panels) > 1
    columns = min(len(panels), 3 if alone else COLUMNS if most <= FEW else 1)
    rows = -(-len(panels) // columns)
    titles = []
    if len(panels) > 1:
        titles = [panel_title(panel, alone, LONGEST_TITLES // columns, shared) for panel in panels]
    height = 360 if len(panels) == 1 else 200 if alone else 290
    height += TITLE_LINE * max((title.count("\n") for title in titles), default=0)
    figure, axes = canvas.new_figure(height * rows, rows, columns)
    for unused in axes[len(panels) :]:
        unused.set_visible(False)
    for i, (one, panel) in enumerate(zip(axes, panels, strict=False)):
        if draw_floor:
            draw_floor(one)
        floor, lines = main_line(one, 0), draw_entries(one, panel, draw)
        canvas.share_axis(one, label if i % columns == 0 else "")
        scale(one)
        if titles:
            one.set_title(titles[i], loc="left", parse_math=False, fontsize=8.5)
        draw_apart(one, [line for line, _, _ in lines])
        ends = [end_of(line, name, style.colour) for line, name, style in lines]
        if floor is not None and len(panels) == 1:
            ends.append(end_of(floor, "floor", canvas.GREY))
        if not alone and not label_ends(one, ends, height):
            canvas.add_legend(one, canvas.legend_handles(panel.styles), panel.names)
    return figure


def draw_entries(
    axes: Axes, panel: Panel, draw: Callable[[Axes, Entry, canvas.SeriesStyle, float], None]
) -> list[tuple[Line2D, str, canvas.SeriesStyle]]:
    """Draw the entries of a panel by `draw`; return the line of each that has one, with its name and style."""
    lines = []
    for k, (entry, style) in enumerate(zip(panel.entries, panel.styles, strict=True)):
        before = len(axes.get_lines())
        draw(axes, entry, style, k - (len(panel.entries) - 1) / 2)
        if (line := main_line(axes, before)) is not None:
            lines.append((line, panel.names[k], style))
    return lines


def panel_title(panel: Panel, alone: bool, longest: int, shared: Collection[str]) -> str:
    """Return the title of a panel in lines of up to `longest` characters that end at commas.

    That of an entry `alone` names it, without what is `shared`.
    """
    label, family = (without_settings(name, shared) for name in (panel.entries[0].label, panel.entries[0].family))
    title = panel.title if not alone else label if len(label) <= longest else family
    lines = [""]
    for part in re.split("(?<=,)", title):
        if lines[-1] and len(lines[-1] + part) > longest:
            lines.append(part.lstrip())
        else:
            lines[-1] += part
    return "\n".join(canvas.readable(line, longest) for line in lines)


def main_line(axes: Axes, before: int) -> Line2D | None:
    """Return the first line that was drawn after so many others; None where it has no point."""
    new = axes.get_lines()[before:]
    return new[0] if new and np.size(new[0].get_xdata()) else None


def end_of(line: Line2D, name: str, colour: object) -> End:
    """Return the end of a line: of a line with gaps, its last place and the median of the ends of its parts."""
    x, y = (np.asarray(values, dtype=float) for values in line.get_data())
    known = np.flatnonzero(np.isfinite(y))
    last = [i for i in known if i + 1 == len(y) or not np.isfinite(y[i + 1])]
    through = line.axes is not None and not line.get_transform().contains_branch(line.axes.transData)
    return End(None if through else float(np.max(x[last])), float(np.median(y[last])), name, colour)
