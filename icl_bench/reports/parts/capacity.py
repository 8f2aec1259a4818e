"""Capacity: the loads to which an entry recalls, the bits that it recalls, and the prediction of theory."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from icl_bench.reports import canvas
from icl_bench.reports.analysis import Section
from icl_bench.reports.blocks import Name, Table, table_of
from icl_bench.reports.context import StudyContext
from icl_bench.reports.fits import Load
from icl_bench.reports.labels import MOST_STRIPS, STRIP_HEIGHT, End, label_ends, name_rows
from icl_bench.reports.naming import natural_key
from icl_bench.reports.panels import by_state
from icl_bench.reports.parts.base import Part, SectionFigure
from icl_bench.reports.parts.state import of_one_size
from icl_bench.reports.recall import Recall, recalls
from icl_bench.reports.text import NONE, format_integer, format_level, format_load, format_number

NOTE = (
    "K50 and K90: loads at which chance-corrected accuracy, (accuracy - floor) / (1 - floor), falls to 50 % and to 90 "
    "%. A logistic function of log2 load is fitted to each seed; shown is the median over seeds, with the exact "
    "interval of a median and its level, and beside it the median over the locked-in seeds alone; nothing is "
    "extrapolated beyond the measured loads. Predicted pairs: number of pairs that one layer of Hebbian sums over "
    "random keys recalls, (H d_v / (2 ln V) - 1) d (d + 2) ... / (2p - 1)!! with d = min(d_key, d_model), the largest "
    "rank of keys; a reference, not a bound. Recalled bits: bits that the median "
    "accuracy proves, by Fano's inequality, in the cell where they are most; slightly optimistic, because that cell is "
    "chosen on the same test examples. Upper bound: number of answers that the bits of the state, as it is stored, can "
    "distinguish."
)
ARROWS = {"above": "^", "below": "v"}
SIDEWAYS = {"above": ">", "below": "<"}
HEIGHT = 380
"""Height in pixels of the figure."""


def capacity_table(section: Section) -> Table:
    """Make a row for each entry with K50 and K90 or recalled bits."""
    return table_of([capacity_row(row) for row in recalls(section) if row.capacity or row.bits is not None])


def capacity_row(row: Recall) -> dict[str, str]:
    """Make the row of an entry."""
    fit = row.capacity
    return {
        "architecture": Name(row.entry.label),
        "state elements": format_integer(row.entry.state_elements),
        "K50": format_load(fit.k50) if fit else NONE,
        "K50, interval": load_interval(fit.k50) if fit else NONE,
        "K90": format_load(fit.k90) if fit else NONE,
        "K90, interval": load_interval(fit.k90) if fit else NONE,
        "their level": format_level(fit.k50.interval) if fit else NONE,
        "K50, locked-in seeds": format_load(row.locked.k50) if row.locked else NONE,
        "predicted pairs": format_number(row.predicted),
        "recalled bits": format_number(row.bits),
        "bits per element": format_number(row.bits_per_element),
        "upper bound": format_number(row.bound),
    }


def load_interval(found: Load) -> str:
    """Format the interval of a load, unless all of it lies beyond the measured loads."""
    if found.interval is None or (found.side != "within" and found.interval.low == found.interval.high):
        return NONE
    return f"[{format_number(found.interval.low)}, {format_number(found.interval.high)}]"


def capacity_by_state(section: Section, context: StudyContext) -> Figure | None:
    """Draw K50 against state elements; return None unless states differ and a K50 lies within the measured loads."""
    found = [row for row in recalls(section) if row.capacity and row.entry.state_elements]
    within = any(row.capacity.k50.side == "within" for row in found if row.capacity)
    if len({row.entry.state_elements for row in found}) < 2 or not within:
        return None
    if of_one_size(section):
        return capacity_strips(found, section)
    figure, (axes,) = canvas.new_figure(HEIGHT)
    ends = []
    for i, family in enumerate(section.families):
        members = sorted((row for row in found if row.entry.family == family), key=lambda row: by_state(row.entry))
        style = canvas.series_style(i)
        draw_capacities(axes, members, style)
        if members and members[-1].capacity:
            state, k50 = float(members[-1].entry.state_elements or 0), members[-1].capacity.k50.value
            ends.append(End(state, k50, family, style.colour))
    canvas.size_axis(axes, "state elements")
    canvas.load_scale(axes, f"K50, {section.load_name}")
    if not label_ends(axes, ends, HEIGHT):
        handles = canvas.legend_handles(map(canvas.series_style, range(len(section.families))))
        canvas.add_legend(figure, handles, section.families)
    return figure


def capacity_strips(found: Sequence[Recall], section: Section) -> Figure:
    """Draw a row for each entry, by falling K50: K50 with its interval, and the prediction as a star."""
    fitted = [(row.capacity.k50, row) for row in found if row.capacity]
    rows = sorted(fitted, key=lambda pair: (-pair[0].value, natural_key(pair[1].entry.label)))[:MOST_STRIPS]
    figure, (axes,) = canvas.new_figure(80 + STRIP_HEIGHT * len(rows))
    for place, (k50, row) in enumerate(rows):
        style = canvas.series_style(section.families.index(row.entry.family))
        if k50.side != "within":
            axes.add_line(canvas.hollow(k50.value, place, SIDEWAYS[k50.side], 8, style))
        else:
            if k50.interval:
                axes.plot(k50.interval[:2], [place, place], color=(*style.colour, 0.3), linewidth=6)
            axes.plot([k50.value], [place], color=style.colour, marker=style.marker, markersize=6)
        if row.predicted:
            axes.plot([row.predicted], [place], color=style.colour, marker="*", markersize=8, fillstyle="none")
    axes.set_xscale("log", base=2)
    canvas.write_ticks(axes.xaxis, "{:g}".format)
    axes.set_xlabel(canvas.readable(f"K50, {section.load_name}"), parse_math=False)
    name_rows(axes, [row.entry.label for _, row in rows], [False for _ in rows])
    return figure


def draw_capacities(axes: Axes, rows: Sequence[Recall], style: canvas.SeriesStyle) -> None:
    """Draw each K50 with its interval, an arrow where it lies beyond the measured loads, and predictions as stars."""
    points = [(row.entry.state_elements or 0, row.capacity.k50) for row in rows if row.capacity]
    within = [(state, k50) for state, k50 in points if k50.side == "within"]
    axes.plot([x for x, _ in within], [k50.value for _, k50 in within], color=style.colour, linestyle=style.dash)
    for state, k50 in points:
        if k50.side != "within":
            axes.add_line(canvas.hollow(state, k50.value, ARROWS[k50.side], 8, style))
            continue
        if k50.interval:
            axes.plot([state, state], list(k50.interval[:2]), color=style.colour, linewidth=1.2)
        axes.plot([state], [k50.value], color=style.colour, marker=style.marker, markersize=6)
    law = [(row.entry.state_elements or 0, row.predicted) for row in rows if row.predicted]
    axes.plot([x for x, _ in law], [y for _, y in law], color=style.colour, linestyle=":", marker="*", markersize=8)


PART = Part(
    "Capacity",
    capacity_table,
    SectionFigure(
        "capacity",
        "K50 with its interval, by state where states differ. Open arrows: beyond the measured loads. Stars: pairs "
        "that are predicted for random keys.",
        capacity_by_state,
    ),
    NOTE,
)
