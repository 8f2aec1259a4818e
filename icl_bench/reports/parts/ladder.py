"""The ladder of budgets: the median of each architecture at each number of training steps, and its last move."""

from collections import defaultdict
from typing import NamedTuple

from icl_bench.reports.analysis import Section
from icl_bench.reports.blocks import Name, Table, table_of
from icl_bench.reports.entry import Entry
from icl_bench.reports.parts.base import Part
from icl_bench.reports.ranking import budget_key, budget_of
from icl_bench.reports.text import NONE, format_integer, format_share

SETTLED = 0.01
"""Largest move of a median over the last factor of the budget with which it counts as settled."""
NOTE = (
    "Median accuracy over seeds by number of training steps, each at the learning rate that the first table names. "
    f"Settled: the last factor moves the median by at most {SETTLED}. Claims are made at the largest budget alone; "
    "where a median is not settled, they hold for that budget and no other."
)


class Ladder(NamedTuple):
    """The entries of one architecture, equal in all but the number of training steps."""

    rungs: tuple[Entry, ...]
    """By rising number of steps; two or more."""

    @property
    def move(self) -> float | None:
        """Change of the median over the last factor; none where one of the two has no score."""
        before, after = (entry.accuracy for entry in self.rungs[-2:])
        return None if before is None or after is None else after - before


def ladders(section: Section) -> list[Ladder]:
    """Return the architectures that ran at several budgets."""
    found: dict[object, list[Entry]] = defaultdict(list)
    for entry in section.entries:
        found[budget_key(entry)].append(entry)
    return [Ladder(tuple(sorted(rungs, key=budget_of))) for rungs in found.values() if len(rungs) > 1]


def ladder_table(section: Section) -> Table:
    """Make a row for each architecture with several budgets; no rows where there is none."""
    found = ladders(section)
    budgets = sorted({budget_of(entry) for ladder in found for entry in ladder.rungs})
    return table_of([ladder_row(ladder, budgets, section) for ladder in found])


def without_budget(entry: Entry) -> str:
    """Return the label of an entry without its number of training steps."""
    return entry.label.replace(f", steps={budget_of(entry)}", "")


def ladder_row(ladder: Ladder, budgets: list[int], section: Section) -> dict[str, str]:
    """Make the row of an architecture."""
    medians = {budget_of(entry): entry.accuracy for entry in ladder.rungs}
    last = ladder.rungs[-1]
    move, trained = ladder.move, section.training(last) != "untrained"
    return {
        "architecture": Name(without_budget(last)),
        **{f"{format_integer(budget)} steps": format_share(medians.get(budget)) for budget in budgets},
        "last factor": f"{budget_of(last) / budget_of(ladder.rungs[-2]):g}",
        "last move": NONE if move is None else f"{move:+.3f}",
        "settled": NONE if move is None else "untrained" if not trained else "yes" if abs(move) <= SETTLED else "no",
    }


PART = Part("Budget", ladder_table, note=NOTE)
