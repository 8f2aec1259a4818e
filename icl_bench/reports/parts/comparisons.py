"""The best entry compared with each other one, with the tests that the claims rest on."""

from icl_bench.reports.analysis import Section
from icl_bench.reports.blocks import Name, Table, table_of
from icl_bench.reports.entry import Entry
from icl_bench.reports.parts.base import Part
from icl_bench.reports.ranking import SIGNIFICANT, Comparison, rankings
from icl_bench.reports.text import NONE, format_interval, format_p

NOTE = (
    "Differences in accuracy, mean over the cells that rank the compared architectures: those of equal state (within "
    "5 %) if there are several such groups, else all. p, paired t: t test for pairs over common seeds, adjusted by "
    f"Holm's method for all pairs of architectures; a difference is claimed below {SIGNIFICANT}. Rate decides: the "
    "median over the sweep of learning rates does not agree, so that the difference lies in how easily the "
    "architectures are trained. p, medians: permutation test of medians; p, Fisher: exact test on the numbers of "
    "solved seeds; neither is adjusted. Every seed has its own test examples, so that intervals over seeds include "
    "the variation over examples."
)


def comparison_table(section: Section) -> Table:
    """Make a row for each comparison in each ranking; no rows where no two entries share seeds."""
    pairs = [(ranking.best, row) for ranking in rankings(section) if ranking.best for row in ranking.comparisons]
    shown = any(row.difference for _, row in pairs)
    return table_of([comparison_row(best, row) for best, row in pairs] if shown else [], 2)


def comparison_row(best: Entry, row: Comparison) -> dict[str, str]:
    """Make the row of a comparison."""
    found = row.difference
    solved = (f"{entry.solved_seeds}/{len(entry.accuracies)}" for entry in (best, row.other))
    return {
        "best": Name(best.label),
        "compared with": Name(row.other.label),
        "difference": f"{found.mean:+.3f}" if found else NONE,
        "95 % interval": format_interval(found.interval.clipped(-1.0)) if found else NONE,
        "p, paired t": format_p(row.p).removeprefix("= ") if found else NONE,
        "p, medians": format_p(row.median_p).removeprefix("= ") if found else NONE,
        "solved seeds": ", ".join(solved),
        "p, Fisher": format_p(row.solved_p).removeprefix("= "),
        "claim": row.claim,
    }


PART = Part("Comparisons", comparison_table, note=NOTE)
