"""The rates between which half of the seeds train, at each gain of a map of training."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

from icl_bench.reports.analysis import Section
from icl_bench.reports.blocks import Name, Table, table_of
from icl_bench.reports.parts.base import Part
from icl_bench.reports.parts.gains import gain_of, maps_of, outcome_kind
from icl_bench.reports.statistics import median, median_interval
from icl_bench.reports.text import NONE, format_level

NOTE = (
    "Half of the seeds train at rates between the two. A seed trains where it ends above half of the range from floor "
    "to 1; its own least and largest rate lie midway, on a logarithmic axis, between the outermost rate at which it "
    "does and the next one of the sweep. Shown are medians over the seeds, and in brackets the interval of a median "
    "between two order statistics, with its level. ≤ and ≥: they still train at the end of the sweep. A dash: half of "
    "the seeds train nowhere."
)
BELOW, ABOVE = 0.0, math.inf
"""Edges of a seed that trains at the end of the sweep."""


def half_table(section: Section) -> Table:
    """Make a row for each architecture and gain; no rows unless runs differ in gain."""
    seeds: dict[tuple[str, float], dict[int, dict[float, bool]]] = defaultdict(lambda: defaultdict(dict))
    floor, known = section.mean_floor or 0.0, list(maps_of(section))
    for run in section.runs if known else ():
        seeds[run.setting.arch, gain_of(run)][run.seeds[0]][run.lr] = outcome_kind(run, floor) == "trained"
    places = sorted(seeds, key=lambda place: (known.index(place[0]), place[1]))
    return table_of([row for place in places if (row := half_row(*place, list(seeds[place].values())))])


def half_row(arch: str, gain: float, seeds: Sequence[Mapping[float, bool]]) -> dict[str, str]:
    """Make the row of an architecture at a gain from the outcome by rate of each seed; empty without a sweep."""
    swept = [seed for seed in seeds if len(seed) > 1]
    if not swept:
        return {}
    low, high = zip(*map(seed_edges, swept), strict=True)
    level = format_level(median_interval(range(len(swept))))
    return {
        "architecture": Name(arch),
        "gain": f"{gain:g}",
        "seeds": str(len(swept)),
        "train at some rate": str(sum(any(seed.values()) for seed in swept)),
        "least rate": format_edge(low, "≤ ", min(swept[0])),
        "largest rate": format_edge(high, "≥ ", max(swept[0])),
        "level of the intervals": level,
    }


def seed_edges(trained: Mapping[float, bool]) -> tuple[float, float]:
    """Return the least and the largest rate at which a seed trains, midway to the next rate that was tried.

    Where it trains nowhere the least rate lies above all others, and the largest below.

    >>> seed_edges({0.01: False, 0.04: True, 0.16: True, 0.64: False})
    (0.02, 0.32)
    """
    rates = sorted(trained)
    good = [i for i, rate in enumerate(rates) if trained[rate]]
    if not good:
        return ABOVE, BELOW
    first, last = good[0], good[-1]
    low = math.sqrt(rates[first - 1] * rates[first]) if first else BELOW
    return low, math.sqrt(rates[last] * rates[last + 1]) if last + 1 < len(rates) else ABOVE


def format_edge(edges: Sequence[float], beyond: str, end: float) -> str:
    """Format the median of the edges of the seeds with its interval; `end` is the last rate of the sweep."""
    outside = BELOW if beyond == "≤ " else ABOVE

    def form(edge: float) -> str:
        return f"{edge:.2g}" if 0 < edge < math.inf else f"{beyond}{end:.2g}" if edge == outside else NONE

    interval = median_interval(edges)
    return form(median(edges)) + (f" [{form(interval.low)}, {form(interval.high)}]" if interval else "")


PART = Part("Rates at which half of the seeds train", half_table, None, NOTE)
