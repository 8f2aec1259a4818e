"""The best entry compared with each other one, with the tests that the claims rest on, and other clear differences."""

from icl_bench.reports.analysis import Section
from icl_bench.reports.blocks import Folded, Name, Notes, Table, table_of
from icl_bench.reports.entry import Entry
from icl_bench.reports.parts.base import Part
from icl_bench.reports.ranking import SIGNIFICANT, Comparison, Ranking, rankings
from icl_bench.reports.text import NONE, format_bytes, format_interval, format_level, format_p

TESTS = {
    "rank": "rank test (Mann and Whitney, every split of the seeds counted) on accuracies",
    "lock-in": "exact test (Fisher) on the numbers of locked-in seeds",
}
"""The primary tests in words."""


def comparison_table(section: Section) -> Table:
    """Make a row for each comparison in each ranking; no rows where every architecture has one seed."""
    rows = [(ranking, ranking.best, row) for ranking in rankings(section) for row in ranking.comparisons]
    shown = any(row.shift for _, _, row in rows)
    made = [comparison_row(section, ranking, best, row) for ranking, best, row in rows if best]
    return table_of(made if shown else [], 2)


def further_pairs(section: Section) -> Folded:
    """Make a row for each pair without the best entry whose adjusted p value is significant, the one ahead first."""
    rows = [(ranking, *pair) for ranking in rankings(section) for pair in ranking.further]
    made = [comparison_row(section, ranking, first, row, "ahead") for ranking, first, row in rows]
    return Folded(
        f"Other pairs whose adjusted p is below {SIGNIFICANT}; every pair in neither table is above it",
        table_of(made, 2),
    )


def comparison_row(
    section: Section, ranking: Ranking, first: Entry, row: Comparison, heading: str = "best"
) -> dict[str, str]:
    """Make the row of a comparison; the heading is that of the first entry."""
    pair, found = (first, row.other), row.shift
    where = {"where": Name(ranking.group.where)} if any(one.group.where for one in rankings(section)) else {}
    return {
        heading: Name(first.label),
        "compared with": Name(row.other.label),
        **where,
        "equal in": ranking.group.matched,
        "state sizes": ", ".join(format_bytes(entry.state_bytes) for entry in pair),
        "shift": f"{found.value:+.3f}" if found else NONE,
        "interval": format_interval(found.interval) if found else NONE,
        "its level": format_level(found.interval) if found else NONE,
        "locked-in seeds": ", ".join(f"{len(section.locked_seeds(entry))}/{len(entry.accuracies)}" for entry in pair),
        "p, ranks": p_text(row.p_rank, row),
        "p, lock-in": p_text(row.p_lock_in, row),
        "p, adjusted": p_text(row.p, row),
        "claim": row.claim,
    }


def p_text(p: float, row: Comparison) -> str:
    """Format a p value; nothing for an entry that is no opponent."""
    return format_p(p).removeprefix("= ") if row.shift else NONE


def comparison_notes(section: Section) -> Notes:
    """Explain the tests, and name the primary one."""
    pairs = rankings(section)[0].pairs
    return Notes(
        (
            f"Primary test: {TESTS[section.context.primary_test]}. p, adjusted: its p value by Holm's method for all "
            f"{pairs:,} pairs of architectures that this report compares, in one family. A difference is claimed "
            f"below {SIGNIFICANT}; the other p value is not adjusted and carries no claim.",
            "Compared are architectures of equal state (within 5 %), in elements or in bytes, if there are several "
            "such groups, else all. State sizes: of both, in bytes, in which states of equal elements can differ.",
            "Shift: median of all differences in accuracy between a seed of the one and a seed of the other (Hodges "
            "and Lehmann), mean over the cells that rank; its interval holds the shifts that the rank test does not "
            "reject, at the level that the numbers of seeds allow.",
            "Untrained: no seed is locked in and the median is below the floor, so that the entry is no opponent.",
            "Rate decides: the median over the learning rates that both tried does not agree, so that the difference "
            "lies in how easily the architectures are trained.",
            "Every seed has its own test examples, so that intervals over seeds include the variation over examples.",
        )
    )


PART = Part("Comparisons", comparison_table, note=comparison_notes, details=further_pairs)
