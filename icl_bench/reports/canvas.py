"""The look of figures, and SVG with the same bytes every time. Loads matplotlib, so only report commands import this.

Figures are opaque and light, so that they read the same on light and dark pages; 880 pixels wide, the width of a page
on GitHub, with no text below 10 pixels there. Colours are those of Okabe and Ito, told apart by colour-blind readers;
marker and dash differ as well.
"""

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, LogLocator, NullLocator

from icl_bench.reports.text import plain

WIDTH = 880 / 96
"""Inches: 880 pixels at the 96 a browser counts to an inch."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
Dash = Literal["-", "--", "-."]
DASHES: tuple[Dash, ...] = ("-", "--", "-.")
INK = "#24292f"
GREY = "#57606a"
FAINT = "#d0d7de"
LONGEST_NAME = 34
MOST_DOTS = 30
"""Dots in one spot; of more seeds, as many quantiles are drawn."""
LEAST_SPAN = 3.0
"""Ratio of the ends of an axis of counts, at least, so that small differences look small."""
SETTINGS: Any = {
    "svg.hashsalt": "icl-bench",
    "svg.fonttype": "none",
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.7,
    "path.simplify": False,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "savefig.facecolor": "white",
}
"""matplotlib settings. Text stays text, in a font that matplotlib brings, so that bytes are the same anywhere."""


class Look(NamedTuple):
    """How an entry is drawn."""

    colour: tuple[float, float, float]
    marker: str
    dash: Dash


def look(index: int, shade: float = 0.0) -> Look:
    """The look of the entry at this place in the order of labels; `shade` from 0 to 1 makes it lighter."""
    colour = to_rgb(COLOURS[index % len(COLOURS)])
    light = tuple(part + (1 - part) * 0.65 * shade for part in colour)
    turn = index // len(COLOURS)
    return Look((light[0], light[1], light[2]), MARKERS[(index + turn) % len(MARKERS)], DASHES[turn % len(DASHES)])


@contextmanager
def settings() -> Iterator[None]:
    """Draw with the settings of reports, whatever those of the user are."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)
        yield


def new_figure(height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure `height` pixels high, with panels that share the vertical axis."""
    figure = Figure(figsize=(WIDTH, height / 96), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
    return figure, [axes for row in panels for axes in row]


def svg(figure: Figure) -> bytes:
    """The figure as SVG, byte for byte the same for the same content."""
    FigureCanvasSVG(figure)
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine(None)  # else saving draws all of it once more, to lay it out
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def readable(name: str) -> str:
    """A name as a figure shows it: short, and in characters that its font has."""
    name = plain(name).encode("latin-1", "replace").decode("latin-1")
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def add_legend(figure: Figure, handles: Sequence[Any], names: Sequence[str]) -> None:
    """A legend right of the panels; names are shown as they are, never read as mathematics."""
    legend = figure.legend(handles, [str(i) for i in range(len(names))], loc="outside right upper")
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(readable(name))


def handle(style: Look) -> Line2D:
    """What a legend shows for an entry."""
    return Line2D([], [], color=style.colour, marker=style.marker, linestyle=style.dash, markersize=5)


def floor_handle() -> Line2D:
    """What a legend shows for the floor."""
    return Line2D([], [], color=GREY, linestyle=":", linewidth=1.4)


def draw_floor(axes: Axes, x: Sequence[float], floors: Sequence[float]) -> None:
    """The floor, dotted; a level line where there is one point."""
    if len(x) == 1:
        axes.axhline(floors[0], color=GREY, linestyle=":", linewidth=1.4)
    else:
        axes.plot(x, floors, color=GREY, linestyle=":", linewidth=1.4)


def thinned(values: Sequence[float]) -> list[float]:
    """The values, or as many of them as are drawn, evenly spread over their ranks.

    >>> thinned([0.5, 0.2])
    [0.5, 0.2]
    """
    if len(values) <= MOST_DOTS:
        return list(values)
    ordered, last = sorted(values), len(values) - 1
    return [ordered[round(i * last / (MOST_DOTS - 1))] for i in range(MOST_DOTS)]


def draw_seeds(axes: Axes, places: Sequence[float], columns: Sequence[Sequence[float]], style: Look) -> None:
    """At each place a dot for every seed, or for 30 quantiles of more, the least and the largest among them.

    All dots of an entry are one artist, which takes a quarter of the time of one for each place.
    """
    shown = [thinned(values) for values in columns]
    axes.plot(
        [x for x, values in zip(places, shown, strict=True) for _ in values],
        [value for values in shown for value in values],
        linestyle="none",
        marker=style.marker,
        markersize=4.5,
        markerfacecolor=(*style.colour, 0.55),
        markeredgecolor="white",
        markeredgewidth=0.4,
        clip_on=False,
        zorder=3,
        in_layout=False,
    )


def draw_curves(axes: Axes, curves: Sequence[Sequence[tuple[float, float]]], style: Look) -> None:
    """Curves of one look, as one artist with gaps."""
    points = [point for curve in curves for point in (*curve, (math.nan, math.nan))]
    axes.plot(*zip(*points, strict=True), color=style.colour, linestyle=style.dash, linewidth=1.1)


def share_axis(axes: Axes, label: str) -> None:
    """A vertical axis from 0 to 1."""
    axes.set_ylim(-0.02, 1.02)
    axes.yaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
    axes.set_ylabel(label)


def name_ticks(axes: Axes, places: Sequence[float], names: Sequence[str]) -> None:
    """Horizontal ticks at the places, with names shown as they are."""
    axes.xaxis.set_major_locator(FixedLocator(list(places)))
    axes.xaxis.set_major_formatter(FixedFormatter([readable(name) for name in names]))
    axes.xaxis.set_minor_locator(NullLocator())
    for text in axes.get_xticklabels():
        text.set_parse_math(False)


def set_title(axes: Axes, title: str) -> None:
    """A title shown as it is."""
    axes.set_title(readable(title), loc="left", parse_math=False)


def size_axis(axes: Axes, label: str) -> None:
    """A logarithmic horizontal axis of counts that spans a factor of three or more, with ticks like 2k and 50k."""
    axes.set_xscale("log")
    axes.margins(x=0.08)
    low, high = axes.get_xlim()
    short_of = math.sqrt(max(1.0, LEAST_SPAN * low / high))
    low, high = low / short_of, high * short_of
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5) if high > 8 * low else (1, 1.5, 2, 3, 4, 5, 6, 8)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(label, parse_math=False)


def short(value: float) -> str:
    """A count in thousands or millions.

    >>> short(500), short(2000), short(1.5e6)
    ('500', '2k', '1.5M')
    """
    for unit, letter in ((1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g}{letter}"
    return f"{value:.3g}"


def rate_scale(axes: Axes) -> None:
    """A logarithmic horizontal axis of learning rates."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(10, subs=(1, 3)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}".replace("e-0", "e-")))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("learning rate")


def load_scale(axes: Axes, label: str) -> None:
    """A logarithmic vertical axis of loads, with ticks at powers of two."""
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.margins(y=0.1)
    axes.set_ylabel(label, parse_math=False)
