"""The map of training over the learning rate and the initial scale of scores, where runs differ in `model.gain`."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations_with_replacement, pairwise, product
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FixedLocator

from icl_bench.reports import canvas
from icl_bench.reports.analysis import Section
from icl_bench.reports.blocks import Name, Table, table_of
from icl_bench.reports.context import StudyContext
from icl_bench.reports.naming import natural_key
from icl_bench.reports.parts.base import Part, SectionFigure
from icl_bench.reports.statistics import median
from icl_bench.reports.text import format_share
from icl_bench.runs.outline import Outline

PLATEAU, TRAINED = 0.05, 0.5
"""Shares of the range above the floor: a run on a plateau is below the first, one that trained above the second."""
COLUMNS = 3
KINDS: Mapping[str, str] = {"trained": "#0072B2", "between": "#E69F00", "plateau": "#999999", "diverged": "#D55E00"}
"""Kinds of places of a map, with their colours."""
TYPICAL: Mapping[str, float] = {"trained": 1.0, "between": 0.5, "plateau": 0.0, "diverged": 0.0}
"""Accuracy with which the legend shows each kind."""
FRAME: Mapping[str, Any] = {"fill": False, "edgecolor": canvas.INK, "linewidth": 1.8}
"""Looks of the usable region."""
PREDICTED: Mapping[str, Any] = {"color": canvas.INK, "linewidth": 1.2}
"""Looks of predicted lines: dotted for a gain, dashed for a rate."""
TAP_VARIANCE = 0.09
"""Variance of a tap of a convolution at the start."""
NORM_ROOT, SUM_EPS, LARGEST_OUTPUT = 1e-3, 1e-6, 30.0
"""Root of the constant in an RMS norm, constant added to sums of scores, and output of a mixer that is too large."""
RATE_FACTOR = 1.6
NOTE = (
    "Place: a learning rate and a gain. A place is of the kind that most of its seeds have (the worse one of two that "
    "are level): trained, above half of the range from floor to 1 at the last validation; plateau, below 5 % of it; "
    "diverged; or between. Accuracy: validation, median over seeds, at the best place. Window: decades of rates around "
    "the best place, at its gain, where most seeds trained; ≥ where it reaches an end of the rates. Usable: the "
    "largest rectangle of places at which most seeds trained."
)


class Place(NamedTuple):
    """The seeds at one learning rate and gain."""

    kind: str
    score: float
    """Median validation accuracy."""
    trained: int
    """Number of seeds that trained."""
    seeds: int


Map = Mapping[tuple[float, float], Place]
"""Places by learning rate and gain."""


class Region(NamedTuple):
    """A rectangle of places."""

    rates: tuple[float, float]
    """Least and largest learning rate."""
    gains: tuple[float, float]
    """Least and largest gain."""


def gain_of(run: Outline) -> float:
    """Return the gain of a run."""
    return float(run.setting.spec["model"].get("gain", 1.0))


def maps_of(section: Section) -> dict[str, Map]:
    """Return the map of each architecture; empty unless runs differ in gain."""
    if len({gain_of(run) for run in section.runs}) < 2:
        return {}
    seeds: dict[str, dict[tuple[float, float], list[Outline]]] = defaultdict(lambda: defaultdict(list))
    for run in section.runs:
        seeds[run.setting.arch][run.lr, gain_of(run)].append(run)
    ordered = sorted(seeds, key=natural_key)
    floor = section.mean_floor or 0.0
    return {arch: {at: map_place(runs, floor) for at, runs in seeds[arch].items()} for arch in ordered}


def map_place(runs: Sequence[Outline], floor: float) -> Place:
    """Return the place of runs that differ in seeds alone."""
    kinds = [outcome_kind(run, floor) for run in runs]
    most = max(reversed(list(KINDS)), key=kinds.count)
    return Place(most, median([max(0.0, run.validation) for run in runs]), kinds.count("trained"), len(runs))


def outcome_kind(run: Outline, floor: float) -> str:
    """Return the kind of a run by its last validation."""
    if run.status != "ok":
        return "diverged"
    above = (run.validation - floor) / max(1e-9, 1 - floor)
    return "trained" if above > TRAINED else "plateau" if above < PLATEAU else "between"


def usable_region(places: Map) -> Region | None:
    """Return the largest rectangle of places where most seeds trained, the widest of equal ones; None without any."""
    rates, gains = (sorted({at[i] for at in places}) for i in range(2))
    trained = {at for at, place in places.items() if place.kind == "trained"}
    best: tuple[tuple[int, int], Region] | None = None
    for low, high in combinations_with_replacement(range(len(gains)), 2):
        own = gains[low : high + 1]
        run = 0
        for i, rate in enumerate(rates):
            run = run + 1 if trained.issuperset(product([rate], own)) else 0
            size = (run * len(own), run)
            if run and (best is None or size > best[0]):
                best = size, Region((rates[i - run + 1], rate), (own[0], own[-1]))
    return best[1] if best else None


def gain_table(section: Section) -> Table:
    """Make a row for each architecture that has a map."""
    return table_of([gain_row(arch, places) for arch, places in maps_of(section).items()])


def gain_row(arch: str, places: Map) -> dict[str, str]:
    """Make the row of an architecture."""
    kinds = [place.kind for place in places.values()]
    (best_rate, gain), best = max(places.items(), key=lambda item: item[1].score)
    rates = sorted(rate for rate, own in places if own == gain)
    trained = [places[rate, gain].kind == "trained" for rate in rates]
    low = high = rates.index(best_rate)
    while low > 0 and trained[low - 1]:
        low -= 1
    while high + 1 < len(rates) and trained[high + 1]:
        high += 1
    open_end = trained[low] and (low == 0 or high == len(rates) - 1)
    width = math.log10(rates[high] / rates[low]) if trained[low] else 0.0
    region = usable_region(places)
    return {
        "architecture": Name(arch),
        "places": str(len(kinds)),
        **{kind: format_share(kinds.count(kind) / len(kinds)) for kind in KINDS},
        "best accuracy": format_share(best.score),
        "at rate": f"{best_rate:.3g}",
        "at gain": f"{gain:.3g}",
        "window, decades": f"{'≥ ' if open_end else ''}{width:.2f}",
        "usable rates": f"{region.rates[0]:.2g} to {region.rates[1]:.2g}" if region else "none",
        "usable gains": f"{region.gains[0]:.3g} to {region.gains[1]:.3g}" if region else "none",
    }


def draw_maps(section: Section, context: StudyContext) -> Figure | None:
    """Draw a map for each architecture; None where runs do not differ in gain."""
    maps = maps_of(section)
    if not maps:
        return None
    rows = -(-len(maps) // COLUMNS)
    figure, axes = canvas.new_figure(60 + 210 * rows, rows, COLUMNS)
    for unused in axes[len(maps) :]:
        unused.set_visible(False)
    settings = {run.setting.arch: run.setting.spec for run in section.runs}
    length = max(cell.length for cell in section.cells) if section.cells else 1
    for i, (one, (arch, places)) in enumerate(zip(axes, maps.items(), strict=False)):
        draw_map(one, places)
        draw_predictions(one, settings[arch], length)
        one.set_title(canvas.readable(arch), loc="left", parse_math=False)
        one.set_ylabel("gain" if i % COLUMNS == 0 else "")
    explain_maps(figure, predicted=any(axis.lines for axis in axes))
    return figure


def explain_maps(figure: Figure, predicted: bool) -> None:
    """Add a legend below a figure of maps, in the colours that places have, with predicted lines where one is drawn."""
    handles: dict[str, Any] = {kind: Patch(facecolor=shade(Place(kind, TYPICAL[kind], 0, 0))) for kind in KINDS}
    handles["largest usable region"] = Patch(**FRAME)
    if predicted:
        handles["predicted limit of the normaliser"] = Line2D([], [], linestyle=":", **PREDICTED)
        handles["predicted edge of rates"] = Line2D([], [], linestyle="--", **PREDICTED)
    figure.legend([*handles.values()], [*handles], loc="outside lower center", ncols=len(KINDS))


def draw_map(axes: Axes, places: Map) -> None:
    """Draw the places as a grid of rectangles: hue by kind, the lighter the lower the accuracy."""
    rates, gains = (sorted({at[i] for at in places}) for i in range(2))
    colours = [[shade(places.get((rate, gain))) for rate in rates] for gain in gains]
    axes.grid(visible=False)
    axes.pcolormesh(edges(rates), edges(gains), colours, edgecolors="white", linewidth=0.4)
    for (rate, gain), place in places.items():
        if 0 < place.trained < place.seeds:
            ink = "white" if place.kind == "trained" else canvas.INK
            axes.text(rate, gain, f"{place.trained}/{place.seeds}", color=ink, fontsize=6.5, ha="center", va="center")
    if region := usable_region(places):
        (left, right), (low, high) = outline(rates, region.rates), outline(gains, region.gains)
        axes.add_patch(Rectangle((left, low), right - left, high - low, **FRAME))
    canvas.rate_scale(axes)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(FixedLocator([gain for gain in gains if math.log2(gain) % 1 == 0]))
    canvas.write_ticks(axes.yaxis, "{:g}".format)


def shade(place: Place | None) -> tuple[float, float, float]:
    """Return the colour of a place; white where nothing ran."""
    if place is None:
        return (1.0, 1.0, 1.0)
    red, green, blue = (part + (1 - part) * 0.6 * (1 - place.score) for part in to_rgb(KINDS[place.kind]))
    return (red, green, blue)


def edges(values: Sequence[float]) -> list[float]:
    """Return the borders between values on a logarithmic axis, half a spacing beyond each end."""
    if len(values) == 1:
        return [values[0] / 1.5, values[0] * 1.5]
    inner = [math.sqrt(low * high) for low, high in pairwise(values)]
    return [values[0] ** 2 / inner[0], *inner, values[-1] ** 2 / inner[-1]]


def outline(values: Sequence[float], ends: tuple[float, float]) -> tuple[float, float]:
    """Return the borders before the first and behind the last of two values on a logarithmic axis."""
    borders = edges(values)
    return borders[values.index(ends[0])], borders[values.index(ends[1]) + 1]


def predicted_gain(spec: Mapping[str, Any], length: int) -> float | None:
    """Return the gain at which power sums leave the range of their normaliser, by the spread of scores at the start.

    With sigma = gain^2 times the variance of a query's entry: an RMS norm is damped below sqrt(T (2p - 1)!!) sigma^p =
    1e-3, a sum is at its constant for a first token below sigma^p = 1e-6, and an output without a norm is too large
    above sqrt(T (2p - 1)!!) sigma^p = 30. None for other architectures.
    """
    params = spec["arch"][0]["params"]
    if len(spec["arch"]) > 1 or not {"p", "normalizer", "conv"} <= params.keys():
        return None
    p, taps = params["p"], params["conv"]
    spread = math.sqrt(length * math.prod(range(1, 2 * p, 2)))
    limits = {"rms": NORM_ROOT / spread, "sum": SUM_EPS, "raw": LARGEST_OUTPUT / spread}
    sigma = limits[params["normalizer"]] ** (1 / p)
    return math.sqrt(sigma / (TAP_VARIANCE * taps if taps else 1.0))


def draw_predictions(axes: Axes, spec: Mapping[str, Any], length: int) -> None:
    """Draw the predicted gain and, for a power p, the predicted edge of rates 1 / (1.6 p C)."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    gain = predicted_gain(spec, length)
    if gain is None:
        return
    rate = 1 / (RATE_FACTOR * spec["arch"][0]["params"]["p"] * spec["model"]["d_model"])
    axes.plot([left, right], [gain, gain], linestyle=":", **PREDICTED)
    axes.plot([rate, rate], [low, high], linestyle="--", **PREDICTED)
    axes.set_xlim(left, right)
    axes.set_ylim(low, high)


PART = Part(
    "Learning rate and gain",
    gain_table,
    SectionFigure(
        "gains",
        "Outcome by learning rate and initial scale of queries and keys: hue for the kind of most seeds, lighter the "
        "lower the accuracy; the share of seeds that trained, where others did not. Framed: the largest rectangle in "
        "which most seeds trained at each place. Dotted: gain at which the normaliser is predicted to fail. Dashed: "
        "predicted edge of rates, 1 / (1.6 p C).",
        draw_maps,
    ),
    NOTE,
)
