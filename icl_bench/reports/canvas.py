"""The style of figures, and SVG with the same bytes every time. Loads matplotlib, so only report commands import it.

Figures are opaque and light, so that they read the same on light and dark pages; 880 pixels wide, the width of a page
on GitHub, with no text below 10 pixels there. Colours are those of Okabe and Ito, which colour-blind readers can
tell apart; marker and dash differ as well.
"""

import io
import math
import textwrap
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, get_args

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, LogLocator

from icl_bench.escapes import plain

WIDTH = 880 / 96
"""Width of a figure in inches: 880 pixels at the 96 pixels that a browser counts to an inch."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
Dash = Literal["-", "--", "-."]
DASHES: tuple[Dash, ...] = get_args(Dash)
LIGHTEST = 0.5
"""Part of the way to white of the lightest shade of a colour."""
LEAST_CONTRAST = 4.5
"""Least contrast of text with white."""
INK = "#24292f"
GREY = "#57606a"
FAINT = "#d0d7de"
FLOOR_LINE: Any = {"color": GREY, "linestyle": ":", "linewidth": 1.4}
LONGEST_NAME = 34
LONGEST_LINE = 90
"""Most characters of a name in a legend below a figure."""
TITLE_WIDTH = 104
"""Characters in a line of a figure's title."""
TITLE_HEIGHT = 18
"""Height in pixels of a line of a figure's title."""
MOST_DOTS = 30
"""Largest number of dots in one place; of more seeds, this number of quantiles is drawn."""
SIZE_STEPS = ((200, (1,)), (20, (1, 3)), (8, (1, 2, 5)), (4, (1, 1.5, 2, 3, 5)), (0, (1, 1.5, 2, 3, 4, 6, 8)))
"""Ratios of the two ends of an axis of counts, and the ticks in a power of ten above that ratio.

Their labels do not meet in a third of a figure."""
WIDEST_HALF_DECADES = 1_500.0
"""Largest ratio of learning rates on an axis with labels at 1 and 3 of each decade."""
LEAST_SPAN = 3.0
"""Smallest ratio of the two ends of an axis of counts, so that small differences look small."""
SETTINGS: Any = {
    "svg.hashsalt": "icl-bench",
    "svg.fonttype": "none",
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
    **dict.fromkeys(("font.size", "axes.titlesize", "axes.labelsize"), 9),
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 8.5),
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), INK),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), GREY),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "path.simplify", "legend.frameon"), False),
    **dict.fromkeys(("axes.grid", "axes.axisbelow"), True),
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.7,
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "white"),
}
"""matplotlib settings. Text stays text, in a font that matplotlib contains, so that bytes are equal everywhere."""


class SeriesStyle(NamedTuple):
    """The colour, marker and dash of an entry."""

    colour: tuple[float, float, float]
    marker: str
    dash: Dash


PUBLISHED_STYLE = SeriesStyle((0.0, 0.0, 0.0), "o", "-")
"""Style of published results."""


def series_style(index: int, shade: float = 0.0) -> SeriesStyle:
    """Return the style of the entry at this position in the order of labels; `shade` from 0 to 1 makes it lighter."""
    red, green, blue = (part + (1 - part) * LIGHTEST * shade for part in to_rgb(COLOURS[index % len(COLOURS)]))
    turn = index // len(COLOURS)
    return SeriesStyle((red, green, blue), MARKERS[(index + turn) % len(MARKERS)], DASHES[turn % len(DASHES)])


def legible(colour: Any) -> tuple[float, float, float]:
    """Return a colour, darkened for text on white until its contrast, as WCAG 2 defines it, is at least 4.5.

    >>> legible("#000000"), [round(part, 2) for part in legible("#E69F00")]
    ((0.0, 0.0, 0.0), [0.6, 0.41, 0.0])
    """
    red, green, blue = to_rgb(colour)
    while 1.05 / (luminance(red, green, blue) + 0.05) < LEAST_CONTRAST:
        red, green, blue = (0.95 * part for part in (red, green, blue))
    return red, green, blue


def luminance(red: float, green: float, blue: float) -> float:
    """Return the luminance of a colour in sRGB, relative to that of white."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in (red, green, blue)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@contextmanager
def figure_settings() -> Iterator[None]:
    """Replace the user's settings of matplotlib by those of reports."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)
        yield


def new_figure(height: float, rows: int = 1, columns: int = 1, sharey: bool = True) -> tuple[Figure, list[Axes]]:
    """Make a figure `height` pixels high, with panels that share the vertical axis unless `sharey` is False."""
    figure = Figure(figsize=(WIDTH, height / 96), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    panels = figure.subplots(rows, columns, squeeze=False, sharey=sharey)
    return figure, [axes for row in panels for axes in row]


def svg(figure: Figure) -> bytes:
    """Return the figure as SVG, with the same bytes for the same content."""
    FigureCanvasSVG(figure)
    if (engine := figure.get_layout_engine()) is not None:
        engine.execute(figure)
        figure.set_layout_engine(None)  # otherwise saving draws everything once more, to lay it out
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def add_title(figure: Figure, title: str) -> None:
    """Write a title over a figure, a line or more for each of its sentences, and make the figure as much higher."""
    parts = title.replace("≥", "at least").split("; ")
    sentences = [textwrap.wrap(readable(part, len(part)), TITLE_WIDTH) for part in parts]
    lines = [line for part in sentences for line in part]
    figure.set_figheight(figure.get_figheight() + (8 + TITLE_HEIGHT * len(lines)) / 96)
    looks: Any = {"x": 0.01, "ha": "left", "fontsize": 10, "fontweight": "bold", "linespacing": 1.35}
    figure.suptitle("\n".join(lines), **looks).set_parse_math(False)


def readable(name: str, most: int = LONGEST_NAME) -> str:
    """Shorten a name in its middle for a figure, and replace characters that its font lacks.

    >>> readable("window:w=69,kv_heads=1,d_key=8,d_value=8,rope=true")
    'window:w=69,kv_heads…e=8,rope=true'
    """
    name = plain(name).encode("latin-1", "replace").decode("latin-1")
    tail = most // 3 + 2  # what tells names apart often stands last
    return name if len(name) <= most else f"{name[: most - tail - 1]}…{name[-tail:]}"


def add_legend(place: Figure | Axes, handles: Sequence[Line2D], names: Sequence[str], title: str | None = None) -> None:
    """Add a legend to the right of a figure, or a small one to the right of a panel; names are shown unchanged."""
    small: Any = {"loc": "upper left", "bbox_to_anchor": (1, 1), "fontsize": 8, "title": title, "title_fontsize": 8}
    numbers = [str(i) for i in range(len(names))]
    legend = place.legend(handles, numbers, **(small if isinstance(place, Axes) else {"loc": "outside right center"}))
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(readable(name))


def legend_handles(styles: Iterable[SeriesStyle]) -> list[Line2D]:
    """Return the symbols of styles in a legend."""
    return [Line2D([], [], color=one.colour, marker=one.marker, linestyle=one.dash, markersize=5) for one in styles]


def legend_below(figure: Figure, styles: Sequence[SeriesStyle], names: Iterable[str]) -> None:
    """Add a legend below a figure, a line for each name."""
    labels = [readable(name, LONGEST_LINE) for name in names]
    figure.legend(legend_handles(styles), labels, loc="outside lower center", ncols=1)


def hollow(x: float, y: float, marker: str, size: float, style: SeriesStyle) -> Line2D:
    """Return a hollow marker."""
    looks: Any = {"color": style.colour, "marker": marker, "markersize": size, "markerfacecolor": "none"}
    return Line2D([x], [y], linestyle="none", clip_on=False, **looks)


def thinned(values: Sequence[float]) -> list[float]:
    """Return the values, or, of too many, 30 quantiles that include the least and the largest.

    >>> thinned([0.5, 0.2])
    [0.5, 0.2]
    """
    if len(values) <= MOST_DOTS:
        return list(values)
    ordered, last = sorted(values), len(values) - 1
    return [ordered[round(i * last / (MOST_DOTS - 1))] for i in range(MOST_DOTS)]


def draw_seeds(
    axes: Axes,
    places: Sequence[float],
    columns: Sequence[Sequence[float]],
    style: SeriesStyle,
    filled: bool = True,
    factor: float = 1.0,
) -> None:
    """Draw at each place a dot for every seed, or for 30 quantiles of more seeds; open dots where not `filled`.

    Seeds of a place lie side by side, within this factor to both sides. All dots of an entry are one artist, which
    takes a quarter of the time of an artist for each place.
    """
    dots = [
        (x * factor ** jitter(i), value)
        for x, values in zip(places, columns, strict=True)
        for i, value in enumerate(thinned(values))
    ]
    looks = dot_looks(style, filled)
    axes.plot([x for x, _ in dots], [value for _, value in dots], clip_on=False, in_layout=False, **looks)


def dot_looks(style: SeriesStyle, filled: bool) -> Any:
    """Return the looks of the dots of seeds: filled if they are locked in, else open."""
    looks: Any = {"linestyle": "none", "marker": style.marker, "markersize": 4.5, "zorder": 3}
    face, edge = ((*style.colour, 0.55), "white") if filled else ("white", style.colour)
    return looks | {"markerfacecolor": face, "markeredgecolor": edge, "markeredgewidth": 0.4 if filled else 1.0}


def draw_locked(
    axes: Axes,
    places: Sequence[float],
    columns: Sequence[Mapping[Any, float]],
    locked: Container[Any],
    style: SeriesStyle,
    factor: float = 1.0,
) -> None:
    """Draw at each place a dot for every seed, given by seed: filled if the seed is locked in, else open."""
    for filled in (True, False):
        found = [[value for seed, value in column.items() if (seed in locked) == filled] for column in columns]
        if any(found):
            draw_seeds(axes, places, found, style, filled, factor)


def jitter(i: int) -> float:
    """Return a number between -1 and 1 for the seed at this position, far from those of its neighbours."""
    return i * 0.6180339887 % 1 * 2 - 1


def share_axis(axes: Axes, label: str) -> None:
    """Set the vertical axis to the range from 0 to 1."""
    axes.set_ylim(-0.02, 1.02)
    axes.yaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
    axes.set_ylabel(label)


def name_ticks(axes: Axes, places: Sequence[float], names: Sequence[str]) -> None:
    """Set horizontal ticks at the places, with names shown unchanged."""
    axes.xaxis.set_major_locator(FixedLocator(list(places)))
    axes.xaxis.set_major_formatter(FixedFormatter([readable(name) for name in names]))
    axes.xaxis.minorticks_off()
    for text in axes.get_xticklabels():
        text.set_parse_math(False)


def write_ticks(axis: Axis, written: Callable[[float], str]) -> None:
    """Write the ticks of a logarithmic axis by a function; leave out minor ones."""
    axis.set_major_formatter(lambda value, _: written(value))
    axis.minorticks_off()


def spread_logarithmically(axes: Axes) -> tuple[float, float]:
    """Make the horizontal axis logarithmic, over a factor of at least three; return its limits."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    short_of = math.sqrt(max(1.0, LEAST_SPAN * low / high))
    axes.set_xlim(low / short_of, high * short_of)
    return low / short_of, high * short_of


def size_axis(axes: Axes, label: str) -> None:
    """Set a logarithmic horizontal axis of counts, with ticks such as 2k."""
    axes.margins(x=0.08)
    low, high = spread_logarithmically(axes)
    steps = next(steps for ratio, steps in SIZE_STEPS if high > ratio * low)
    axes.xaxis.set_major_locator(LogLocator(10, subs=steps))
    write_ticks(axes.xaxis, short_count)
    axes.set_xlabel(readable(label), parse_math=False)


def short_count(value: float) -> str:
    """Format a count in thousands, millions or billions.

    >>> short_count(500), short_count(2000), short_count(1.5e6), short_count(1e9)
    ('500', '2k', '1.5M', '1G')
    """
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g}{letter}"
    return f"{value:.3g}"


class RateLocator(LogLocator):
    """Ticks at 1 and 3 of each decade; at 1 alone where labels of both would meet."""

    def tick_values(self, vmin: float, vmax: float) -> Sequence[float]:
        """Return the ticks between two values."""
        self.set_params(subs=(1,) if vmax > WIDEST_HALF_DECADES * vmin else (1, 3))
        found: Sequence[float] = super().tick_values(vmin, vmax)
        return found


def rate_scale(axes: Axes) -> None:
    """Set a logarithmic horizontal axis of learning rates."""
    axes.set_xscale("log")
    write_decades(axes.xaxis)
    axes.set_xlabel("learning rate")


def write_decades(axis: Axis) -> None:
    """Write ticks of a logarithmic axis such as 3e-4, 1 and 1e7."""
    axis.set_major_locator(RateLocator(10))
    write_ticks(axis, lambda value: f"{value:.0e}".replace("e-0", "e-").removesuffix("e+00").replace("e+0", "e"))


def load_scale(axes: Axes, label: str) -> None:
    """Set a logarithmic vertical axis of loads, with ticks at powers of two."""
    axes.set_yscale("log", base=2)
    write_ticks(axes.yaxis, "{:g}".format)
    axes.margins(y=0.1)
    axes.set_ylabel(readable(label), parse_math=False)
