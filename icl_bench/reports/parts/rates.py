"""The sweep of learning rates, and the width of the window of good ones."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from icl_bench.reports.analysis import Section
from icl_bench.reports.blocks import Name, Table, table_of
from icl_bench.reports.canvas import SeriesStyle, draw_seeds, hollow, rate_scale
from icl_bench.reports.context import StudyContext
from icl_bench.reports.entry import Entry
from icl_bench.reports.panels import draw_panels
from icl_bench.reports.parts.base import Part, SectionFigure, quantile_remark, shared_remark
from icl_bench.reports.parts.gains import maps_of
from icl_bench.reports.statistics import median, rate_window
from icl_bench.reports.text import NONE, format_share

NOTE = (
    "Validation accuracy: at the chosen rate, median over the seeds of the sweep. Median over rates: of the same "
    "medians, over the sweep. Window: width in decades of the learning rates that reach 90 % of the best accuracy, "
    "interpolated between the rates of the sweep; ≥ where the window reaches an end of the sweep. No rate trained: no "
    "seed of the sweep leaves the floor, so that the best rate is the best by chance, and there is no window."
)


def rate_table(section: Section) -> Table:
    """Make a row for each entry with a sweep; no rows where none was swept."""
    rows = [rate_row(entry, section) for entry in section.entries if was_swept(entry)]
    for name, accuracy in (("floor", section.mean_floor), ("oracle", 1.0)):
        score = format_share(accuracy)
        rows += [{"architecture": Name(name), "validation accuracy": score, "median over rates": score}] if rows else []
    return table_of(rows)


def rate_row(entry: Entry, section: Section) -> dict[str, str]:
    """Make the row of an entry."""
    scores = [max(0.0, rate.score) for rate in entry.rates]
    window = rate_window([rate.rate for rate in entry.rates], scores)
    written = f"{'≥ ' if window.open_end else ''}{window.decades:.2f}"
    return {
        "architecture": Name(entry.label),
        "rates": str(len(scores)),
        "lowest": f"{entry.rates[0].rate:.3g}",
        "highest": f"{entry.rates[-1].rate:.3g}",
        "chosen": f"{entry.rate:.3g}",
        "validation accuracy": format_share(scores[[rate.rate for rate in entry.rates].index(entry.rate)]),
        "median over rates": format_share(median(scores)),
        "window, decades": written if section.any_rate_trained(entry) else NONE,
        "chosen rate lies": rate_place(entry, section),
    }


def rate_place(entry: Entry, section: Section) -> str:
    """Return the place of the chosen rate in the sweep, if any rate trained a tuning seed."""
    if not section.any_rate_trained(entry):
        return "no rate trained"
    return "at the edge" if entry.at_edge else "inside"


def learning_rates(section: Section, context: StudyContext) -> Figure | None:
    """Draw validation accuracy against learning rate, of entries with several rates; return None where there are none.

    None is returned too where a map shows them.
    """
    if not any(map(was_swept, section.entries)) or maps_of(section):
        return None
    return draw_panels(section, "validation accuracy", draw_sweep, rate_scale, crowded=True, drawn=was_swept)


def was_swept(entry: Entry) -> bool:
    """Return whether several learning rates were tried."""
    return len(entry.rates) > 1


def draw_sweep(axes: Axes, entry: Entry, style: SeriesStyle, offset: float) -> None:
    """Draw a dot for each seed at each rate, a line through the medians, and a ring around the chosen rate."""
    scores = [max(0.0, rate.score) for rate in entry.rates]
    rates = [rate.rate for rate in entry.rates]
    axes.plot(rates, scores, color=style.colour, linestyle=style.dash)
    draw_seeds(axes, rates, [list(rate.by_seed.values()) for rate in entry.rates], style)
    axes.add_line(hollow(entry.rate, scores[rates.index(entry.rate)], "o", 11, style))


def sweep_remark(section: Section) -> str:
    """Return what all entries of the figure share, and the remark that dots are quantiles."""
    shared = shared_remark([entry for entry in section.entries if was_swept(entry)])
    return shared + quantile_remark([len(rate.by_seed) for entry in section.entries for rate in entry.rates])


PART = Part(
    "Learning rates",
    rate_table,
    SectionFigure(
        "learning-rates",
        "Validation accuracy by learning rate: a dot for each seed, a line through the medians, a ring around the "
        "chosen rate.",
        learning_rates,
        sweep_remark,
    ),
    NOTE,
)
