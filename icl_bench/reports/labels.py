"""Names beside what they name: labels at the ends of lines, and rows of strips. Loads matplotlib."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator
from matplotlib.transforms import ScaledTranslation

from icl_bench.reports.canvas import GREY, INK, legible, readable

STRIP_HEIGHT = 24
"""Height in pixels of a row of strips."""
MOST_STRIPS = 60
"""Largest number of rows; the first ones are drawn."""
LONGEST_ROW = 72
"""Largest number of characters in the name of a row."""
LABEL_HEIGHT = 14
"""Height in pixels of a direct label with the space to the next."""
AXES_MARGIN = 70
"""Height in pixels that the ticks, the label and the title of an axis take from a panel."""
MOST_SHIFTED = 9.0
"""Height in pixels over which lines that coincide are spread at most."""
NEAR = 0.008
"""Part of the vertical axis within which lines coincide."""


class End(NamedTuple):
    """The end of a line, which gets a label."""

    x: float | None
    """None where the line goes through the whole panel."""
    y: float
    name: str
    colour: Any


def label_ends(axes: Axes, ends: Sequence[End], panel_height: float) -> bool:
    """Write the names of lines to the right of a panel, each at the end of its line; return False if they do not fit.

    Labels stand in the order of the ends, and are moved apart where they would overlap; a thin line leads from a label
    to its end. The scale of the vertical axis must be set. `panel_height` is in pixels.
    """
    axes.autoscale_view()
    heights = [float(axes.transLimits.transform(axes.transScale.transform((1.0, end.y)))[1]) for end in ends]
    places = apart(heights, LABEL_HEIGHT / (panel_height - AXES_MARGIN))
    if places is None:
        return False
    for end, height, place in zip(ends, heights, places, strict=True):
        through = end.x is None
        looks: Any = {"xycoords": "axes fraction" if through else "data", "textcoords": "axes fraction"}
        looks |= {"va": "center", "fontsize": 8.5, "annotation_clip": False, "parse_math": False}
        looks["color"] = legible(end.colour)
        looks |= {"arrowprops": {"arrowstyle": "-", "color": end.colour, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}}
        looks["arrowprops"]["relpos"] = (0.0, 0.5)
        axes.annotate(readable(end.name), (1.0, height) if through else (end.x, end.y), (1.03, place), **looks)
    return True


def apart(heights: Sequence[float], gap: float) -> list[float] | None:
    """Move heights between 0 and 1 apart by at least a gap, in their order; None where they do not fit.

    >>> [round(place, 2) for place in apart([0.5, 0.5, 0.0], 0.1)], apart([0.5] * 12, 0.1)
    ([0.45, 0.55, 0.0], None)
    """
    if (len(heights) - 1) * gap > 1:
        return None
    order = sorted(range(len(heights)), key=heights.__getitem__)
    blocks: list[list[float]] = []  # sums of the wished places of the first label, and numbers of labels
    for i in order:
        blocks.append([min(max(heights[i], 0.0), 1.0), 1])
        while len(blocks) > 1 and bottom(blocks[-2], gap) + blocks[-2][1] * gap > bottom(blocks[-1], gap):
            wished, number = blocks.pop()
            before = blocks[-1]
            before[0] += wished - number * before[1] * gap
            before[1] += number
    places = [bottom(block, gap) + k * gap for block in blocks for k in range(int(block[1]))]
    return [places[order.index(i)] for i in range(len(heights))]


def bottom(block: Sequence[float], gap: float) -> float:
    """Return the place of the first label of a block: the mean of those wished, with all of it between 0 and 1."""
    wished, number = block
    return min(max(wished / number, 0.0), 1.0 - (number - 1) * gap)


def draw_apart(axes: Axes, lines: Sequence[Line2D]) -> None:
    """Shift lines that coincide by up to two pixels each, so that each is seen; the vertical axis must be set."""
    low, high = axes.get_ylim()
    near = NEAR * (high - low)
    values = [np.asarray(line.get_ydata(), dtype=float) for line in lines]
    groups: list[list[int]] = []
    for i, mine in enumerate(values):
        found = next((group for group in groups if any(coincide(mine, values[k], near) for k in group)), None)
        groups.append([i]) if found is None else found.append(i)
    for group in groups:
        for place, i in enumerate(group):
            shift = min(2.0, MOST_SHIFTED / len(group)) * (place - (len(group) - 1) / 2) / 96
            figure = axes.get_figure(root=True)
            assert figure is not None
            lines[i].set_transform(axes.transData + ScaledTranslation(0, shift, figure.dpi_scale_trans))


def coincide(first: Any, second: Any, near: float) -> bool:
    """Return whether two lines of equally many points lie together at two points in a row."""
    if len(first) != len(second):
        return False
    close = np.abs(first - second) < near
    return bool(np.any(close[1:] & close[:-1]))


def name_rows(axes: Axes, names: Sequence[str], faint: Sequence[bool]) -> None:
    """Name the rows 0, 1, ... of a panel of strips from the top; names of `faint` rows are grey."""
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.yaxis.set_major_locator(FixedLocator(range(len(names))))
    axes.yaxis.set_major_formatter(FixedFormatter([readable(name, LONGEST_ROW) for name in names]))
    axes.grid(visible=False, axis="y")
    for text, grey in zip(axes.get_yticklabels(), faint, strict=True):
        text.set_parse_math(False)
        text.set_color(GREY if grey else INK)
