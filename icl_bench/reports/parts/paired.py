"""Paired differences between the losses of language models: of runs with equal seeds, on the same test rows."""

import itertools
import math
from collections.abc import Mapping, Sequence

from icl_bench.reports.analysis import Section
from icl_bench.reports.blocks import Name, Table, table_of
from icl_bench.reports.parts.base import Part
from icl_bench.reports.parts.positions import keeps_losses, trained_cells
from icl_bench.reports.ranking import budget_of
from icl_bench.reports.statistics import Interval, mean_interval
from icl_bench.reports.text import NONE
from icl_bench.runs.outline import Seeds
from icl_bench.runs.record import CellScore

NOTE = (
    "Mean loss at the trained length of the second less that of the first, bits for a token: above 0 if the first is "
    "better. Runs with equal seeds have equal training rows in the same order, and equal test rows. Over seeds: "
    "Student's interval of the mean of the differences, 95 %, which takes them as normal; every seed has test rows of "
    "its own, so that it includes the variation over documents. Over documents: the same for the differences by test "
    "row, between the trained models as they are; none where records keep no losses of rows. Nothing here is corrected "
    "for the number of pairs."
)


def paired_table(section: Section) -> Table:
    """Make a row for each pair of entries of one budget that share seeds, the one with the lower loss first."""
    cells = {entry.label: trained_cells(entry) for entry in keeps_losses(section)}
    budgets = {entry.label: budget_of(entry) for entry in section.entries if cells.get(entry.label)}
    known = sorted(budgets, key=lambda label: (budgets[label], mean_loss(cells[label])))
    pairs = [pair for pair in itertools.combinations(known, 2) if budgets[pair[0]] == budgets[pair[1]]]
    return table_of([row for pair in pairs if (row := paired_row(pair, cells))], 2)


def mean_loss(cells: Mapping[Seeds, CellScore]) -> float:
    """Return the mean loss over seeds."""
    return math.fsum(cell.loss for cell in cells.values()) / len(cells)


def paired_row(pair: tuple[str, str], cells: Mapping[str, Mapping[Seeds, CellScore]]) -> dict[str, str]:
    """Make the row of a pair; empty where it shares no seed."""
    first, second = (cells[label] for label in pair)
    shared = [(first[seeds], second[seeds]) for seeds in first if seeds in second]
    if not shared:
        return {}
    gaps = [in_bits(theirs.loss - own.loss) for own, theirs in shared]
    return {
        "first": Name(pair[0]),
        "second": Name(pair[1]),
        "seeds": str(len(gaps)),
        "difference": f"{math.fsum(gaps) / len(gaps):+.3f}",
        "over seeds": signed_interval(mean_interval(gaps)),
        "over documents": signed_interval(interval_over_rows(shared)),
    }


def interval_over_rows(shared: Sequence[tuple[CellScore, CellScore]]) -> Interval | None:
    """Return the interval of the mean difference over test rows, in bits; None where losses of rows were not kept."""
    gaps = [
        in_bits(theirs - own)
        for first, second in shared
        for own, theirs in zip(first.example_losses or (), second.example_losses or (), strict=True)
    ]
    return mean_interval(gaps)


def in_bits(nats: float) -> float:
    """Convert nats to bits."""
    return nats / math.log(2)


def signed_interval(interval: Interval | None) -> str:
    """Format an interval with signs."""
    return NONE if interval is None else f"[{interval.low:+.3f}, {interval.high:+.3f}]"


PART = Part("Paired differences", paired_table, note=NOTE)
