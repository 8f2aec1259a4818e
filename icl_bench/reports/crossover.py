"""The sequence length from which power attention is faster than softmax attention, as a number and as a figure.

The first experiment of arXiv 2507.04239 (section 4.1): both in the same arithmetic on the same device, softmax by the
fastest of PyTorch's backends at each length. Loads matplotlib, so only commands that need a figure import it.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator

from icl_bench.reports import canvas

Direction = Literal["forward", "both"]
TITLES: dict[Direction, str] = {"forward": "forward", "both": "forward + backward"}


class SpeedCurve(NamedTuple):
    """Speed of power attention relative to softmax, by length."""

    width: int
    p: int
    direction: Direction
    points: tuple[tuple[int, float], ...]
    """Length, and the quotient of the times of softmax and power attention; by length."""


class Crossing(NamedTuple):
    """The length from which the ratio stays at 1 or above."""

    length: float
    outside: Literal["", "at most", "above"]
    """Position of the length, if it lies outside of the measured lengths."""

    def __str__(self) -> str:
        return f"{self.outside} {binary(self.length)}".strip()


def crossing(points: Sequence[tuple[int, float]]) -> Crossing:
    """Find the length at which the ratio last rises through 1, by linear interpolation on logarithmic axes.

    >>> str(crossing([(1024, 0.5), (4096, 2.0)])), str(crossing([(1024, 1.5)])), str(crossing([(1024, 0.5)]))
    ('2k', 'at most 1k', 'above 1k')
    """
    if points[-1][1] < 1:
        return Crossing(points[-1][0], "above")
    slower = [i for i, (_, ratio) in enumerate(points) if ratio < 1]
    if not slower:
        return Crossing(points[0][0], "at most")
    (before, low), (after, high) = points[slower[-1]], points[slower[-1] + 1]
    part = -math.log(low) / (math.log(high) - math.log(low))
    return Crossing(before * (after / before) ** part, "")


def binary(length: float) -> str:
    """Format a length in units of 1024.

    >>> binary(512), binary(65536), binary(6300)
    ('512', '64k', '6.2k')
    """
    if length < 1024:
        return f"{length:.0f}"
    return f"{length / 1024:.0f}k" if length >= 10 * 1024 else f"{length / 1024:.1f}k".replace(".0k", "k")


def crossover_figure(drawn: Sequence[SpeedCurve]) -> bytes:
    """Draw as SVG a panel for each direction and width, with a line for each power; 1 is as fast as softmax."""
    widths, powers = sorted({curve.width for curve in drawn}), sorted({curve.p for curve in drawn})
    with canvas.figure_settings():
        figure, panels = canvas.new_figure(520, 2, len(widths))
        for axes, (direction, width) in zip(panels, [(d, w) for d in TITLES for w in widths], strict=True):
            axes.set_title(f"{TITLES[direction]}, d = {width}", loc="left")
            for curve in drawn:
                if (curve.direction, curve.width) == (direction, width):
                    _draw(axes, curve, powers.index(curve.p))
            _scale(axes, sorted({t for curve in drawn for t, _ in curve.points}), width == widths[0])
        for axes in panels[-len(widths) :]:
            axes.set_xlabel("sequence length T")
        styles = map(canvas.series_style, range(len(powers)))
        canvas.add_legend(figure, canvas.legend_handles(styles), [f"power p = {p}" for p in powers])
        return canvas.svg(figure)


def _draw(axes: Axes, curve: SpeedCurve, index: int) -> None:
    style = canvas.series_style(index)
    lengths, ratios = zip(*curve.points, strict=True)
    axes.plot(lengths, ratios, color=style.colour, marker=style.marker, linestyle=style.dash, markersize=5)
    found = crossing(curve.points)
    if not found.outside:
        place: Any = {"xy": (found.length, 1), "xytext": (5, -11), "textcoords": "offset points"}
        axes.annotate(binary(found.length), color=style.colour, fontsize=8.5, **place)


def _scale(axes: Axes, lengths: Sequence[int], first: bool) -> None:
    axes.axhline(1, **canvas.FLOOR_LINE)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(list(lengths)[:: 1 + len(lengths) // 6]))
    canvas.write_ticks(axes.xaxis, binary)
    axes.set_yscale("log", base=2)
    canvas.write_ticks(axes.yaxis, "{:g}".format)
    axes.set_ylabel("times as fast as softmax" if first else "")
