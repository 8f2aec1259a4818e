"""The length from which power attention is faster than softmax attention, as numbers and as a figure.

The paper's first experiment (arXiv 2507.04239, section 4.1): both in the same arithmetic on the same device, softmax by
the fastest of PyTorch's backends at each length. Loads matplotlib, so only report commands import this.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from icl_bench.reports.canvas import GREY, add_legend, handle, look, new_figure, set_title, settings, svg

if TYPE_CHECKING:
    from icl_bench.kernels.measurement.measure import Row

Direction = Literal["forward", "both"]
TITLES: dict[Direction, str] = {"forward": "forward", "both": "forward + backward"}


class Curve(NamedTuple):
    """How much faster power attention is than softmax, by length."""

    width: int
    p: int
    direction: Direction
    points: tuple[tuple[int, float], ...]
    """Length, and softmax's time over power's; by length."""


class Crossing(NamedTuple):
    """The length from which the ratio stays at 1 or above."""

    length: float
    outside: Literal["", "at most", "above"]
    """Whether it lies before the first or after the last length that was measured."""

    def __str__(self) -> str:
        return f"{self.outside} {binary(self.length)}".strip()


def curves(rows: "Sequence[Row]") -> list[Curve]:
    """A curve for each direction, width and power with at least one length where both sides were timed."""
    swept = [row for row in rows if row.part == "crossover"]
    made = []
    directions: tuple[Direction, ...] = ("forward", "both")
    for direction in directions:
        for width, p in sorted({(row.key, row.p) for row in swept if row.p is not None}):
            points = []
            for t in sorted({row.t for row in swept}):
                here = [row for row in swept if row.key == width and row.t == t]
                power = fastest([row for row in here if row.p == p], direction)
                softmax = fastest([row for row in here if row.p is None], direction)
                if power is not None and softmax is not None:
                    points.append((t, softmax / power))
            if points:
                made.append(Curve(width, p, direction, tuple(points)))
    return made


def fastest(rows: "Sequence[Row]", direction: Direction) -> float | None:
    """The least median of the rows that have a time."""
    taken = [row.forward if direction == "forward" else row.both for row in rows]
    return min((times.median for times in taken if times is not None), default=None)


def crossing(points: Sequence[tuple[int, float]]) -> Crossing:
    """Where the ratio rises through 1 for the last time, straight between measured lengths on logarithmic axes.

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
    """A length in units of 1024.

    >>> binary(512), binary(65536), binary(6300)
    ('512', '64k', '6.2k')
    """
    if length < 1024:
        return f"{length:.0f}"
    return f"{length / 1024:.0f}k" if length >= 10 * 1024 else f"{length / 1024:.1f}k".replace(".0k", "k")


def crossover_figure(drawn: Sequence[Curve]) -> bytes:
    """The figure as SVG: a panel for each direction and width, a line for each power; 1 is as fast as softmax."""
    widths, powers = sorted({curve.width for curve in drawn}), sorted({curve.p for curve in drawn})
    with settings():
        figure, panels = new_figure(520, 2, len(widths))
        for axes, (direction, width) in zip(panels, [(d, w) for d in TITLES for w in widths], strict=True):
            set_title(axes, f"{TITLES[direction]}, d = {width}")
            for curve in drawn:
                if (curve.direction, curve.width) == (direction, width):
                    _draw(axes, curve, powers.index(curve.p))
            _scale(axes, sorted({t for curve in drawn for t, _ in curve.points}), width == widths[0])
        for axes in panels[-len(widths) :]:
            axes.set_xlabel("sequence length T")
        add_legend(figure, [handle(look(i)) for i in range(len(powers))], [f"power p = {p}" for p in powers])
        return svg(figure)


def _draw(axes: Axes, curve: Curve, index: int) -> None:
    style = look(index)
    lengths, ratios = zip(*curve.points, strict=True)
    axes.plot(lengths, ratios, color=style.colour, marker=style.marker, linestyle=style.dash, markersize=5)
    found = crossing(curve.points)
    if not found.outside:
        axes.annotate(
            binary(found.length),
            (found.length, 1),
            (5, -11),
            textcoords="offset points",
            color=style.colour,
            fontsize=8.5,
        )


def _scale(axes: Axes, lengths: Sequence[int], first: bool) -> None:
    axes.axhline(1, color=GREY, linestyle=":", linewidth=1.4)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(list(lengths)[:: 1 + len(lengths) // 6]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: binary(value)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel("times as fast as softmax" if first else "")
