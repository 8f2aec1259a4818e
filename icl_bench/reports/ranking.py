"""Rank entries, as far as the numbers allow.

Entries of equal state, in elements or in bytes, are ranked among each other; where there is no such group, all entries
are ranked together. Entries that differ in a field of which one architecture has several values, such as the width of
the model, are ranked apart, and of several budgets of training the largest alone is ranked. A cell is left out of the
ranking where every entry solves it or none is above its floor. On the other cells, the trained entry with the best
median is compared with each other one by the primary test of the study. An untrained entry, all of whose seeds stay
near the floor with a median below it, is no opponent. The p values of all pairs of entries of all rankings of a report
are one family, adjusted by Holm's method: the best was not known beforehand. A difference is claimed only if the median
validation accuracy over the learning rates that both tried has the same sign: otherwise it is one of learning rates.
"""

import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

from icl_bench.reports.analysis import CellInfo, Section
from icl_bench.reports.context import PrimaryTest
from icl_bench.reports.entry import Entry
from icl_bench.reports.naming import varying
from icl_bench.reports.statistics import (
    Shift,
    fisher_exact,
    holm,
    least_p,
    median,
    precedence,
    rank_test,
    shift_between,
)
from icl_bench.runs.outline import Seeds
from icl_bench.runs.record import SOLVED

SIGNIFICANT = 0.05
"""Largest adjusted p value for which a difference is not claimed."""
STATE_TOLERANCE = 1 - 0.95 / 1.05
"""Largest difference of matched states, relative to the larger: each may deviate by 5 % from their common target."""
MATCHED = 1 / (1 - STATE_TOLERANCE)
"""Largest ratio of sizes that are matched."""
BUDGET_FIELD = "train.steps"
"""The field of which the largest value alone is ranked."""

Verdict = Literal["ranks", "saturated", "at the floor", "floor is 1", "no results"]
Claim = Literal["ahead", "not significant", "rate decides", "not compared", "untrained"]
Match = Literal["elements", "bytes", "nothing"]


class Comparison(NamedTuple):
    """A trained entry, most often the best one, compared with another."""

    other: Entry
    shift: Shift | None
    """Shift of the mean accuracy over ranking cells; none with fewer than two seeds, or if `other` is untrained."""
    p_rank: float
    """p value of the rank test on accuracies, not adjusted."""
    p_lock_in: float
    """p value of Fisher's exact test on the numbers of locked-in seeds, not adjusted."""
    p: float
    """p value of the primary test, adjusted for all pairs of the report."""
    favourable: bool
    """True if the first entry is ahead in the statistic of the primary test."""
    learnable: bool
    """True if the median over the common learning rates has the same sign."""
    trained: bool
    """False if `other` is untrained."""

    @property
    def claim(self) -> Claim:
        """The claim that the numbers allow."""
        if not self.trained:
            return "untrained"
        if self.shift is None:
            return "not compared"
        if self.p >= SIGNIFICANT or not self.favourable:
            return "not significant"
        return "ahead" if self.learnable else "rate decides"


class Group(NamedTuple):
    """Entries that are ranked among each other."""

    entries: tuple[Entry, ...]
    matched: Match
    """Quantity of the state in which they are equal."""
    where: str = ""
    """Fields outside the architecture that are equal in these entries and differ in others; empty if there are none."""


class Ranking(NamedTuple):
    """The comparison of the entries of a group."""

    group: Group
    verdicts: dict[str, Verdict]
    """Verdict on each cell, by label."""
    best: Entry | None = None
    """The trained entry with the best median over the ranking cells; none where nothing can be ranked."""
    comparisons: tuple[Comparison, ...] = ()
    """The best entry compared with each other one."""
    further: tuple[tuple[Entry, Comparison], ...] = ()
    """Pairs of trained entries without the best one whose adjusted p value is significant, the one ahead first."""
    pairs: int = 0
    """Number of pairs of entries in all rankings of the report, for which p values are adjusted."""

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The entries that were compared."""
        return self.group.entries

    @property
    def by_claim(self) -> dict[Claim, list[Comparison]]:
        """The comparisons with each claim that there is."""
        found: dict[Claim, list[Comparison]] = defaultdict(list)
        for row in self.comparisons:
            found[row.claim].append(row)
        return found

    @property
    def most_seeds(self) -> int:
        """Largest number of seeds of an entry."""
        return max((len(entry.accuracies) for entry in self.entries), default=0)

    @property
    def decidable(self) -> bool:
        """True if some difference between entries with these numbers of seeds could be significant."""
        sizes = sorted((len(entry.accuracies) for entry in self.entries), reverse=True)
        return len(sizes) > 1 and self.pairs * least_p(*sizes[:2]) < SIGNIFICANT


class Draft(NamedTuple):
    """A group with the numbers from which its ranking is made."""

    section: Section
    group: Group
    verdicts: dict[str, Verdict]
    scores: dict[Entry, dict[Seeds, float]]
    """Accuracy by seed, mean over the ranking cells, of each entry that has any."""

    @property
    def pairs(self) -> list[tuple[Entry, Entry]]:
        """Pairs of entries with a score in any cell, whether or not a cell ranks them."""
        return list(itertools.combinations([entry for entry in self.group.entries if entry.accuracies], 2))

    def samples(self, first: Entry, second: Entry) -> tuple[list[float], list[float]] | None:
        """Return the scores of two entries; None where one has fewer than two seeds."""
        found = tuple(list(self.scores.get(entry, {}).values()) for entry in (first, second))
        return (found[0], found[1]) if min(map(len, found)) > 1 else None

    def p_of(self, test: PrimaryTest, first: Entry, second: Entry) -> float:
        """Return the p value of a test of two entries, not adjusted; 1 where there is nothing to test."""
        samples = self.samples(first, second)
        if samples is None:
            return 1.0
        if test == "rank":
            return rank_test(*samples)
        first_locked, second_locked = (len(self.section.locked_seeds(entry)) for entry in (first, second))
        return fisher_exact((first_locked, second_locked), (len(first.accuracies), len(second.accuracies)))

    def standing(self, entry: Entry) -> tuple[float, float]:
        """Return the key by which the best entry is chosen: the statistic of the primary test, then the median."""
        middle = median(list(self.scores[entry].values()))
        by_lock_in = self.section.context.primary_test == "lock-in"
        return (len(self.section.locked_seeds(entry)) / len(entry.accuracies) if by_lock_in else middle), middle

    def favours(self, first: Entry, second: Entry) -> bool:
        """Return whether the first entry is ahead in the statistic of the primary test."""
        if self.section.context.primary_test == "lock-in":
            return self.standing(first)[0] > self.standing(second)[0]
        samples = self.samples(first, second)
        return samples is not None and precedence(*samples) > 0


def rankings(section: Section) -> tuple[Ranking, ...]:
    """Return the rankings of a section: of each group of equal state, by state, else of all entries together."""
    return study_rankings(tuple(section.report))[section]


@lru_cache(maxsize=8)  # the findings and the comparisons need the same tests, which are slow
def study_rankings(sections: tuple[Section, ...]) -> dict[Section, tuple[Ranking, ...]]:
    """Rank the groups of all sections of a report, whose pairs are one family of tests."""
    drafts = [draft(section, group) for section in sections for group in groups_of(section)]
    raw = [one.p_of(one.section.context.primary_test, *pair) for one in drafts for pair in one.pairs]
    left = iter(holm(raw))
    found: dict[Section, list[Ranking]] = {section: [] for section in sections}
    for one in drafts:
        adjusted = {frozenset(pair): next(left) for pair in one.pairs}
        found[one.section].append(rank(one, adjusted, len(raw)))
    return {section: tuple(made) for section, made in found.items()}


def draft(section: Section, group: Group) -> Draft:
    """Judge the cells of a group, and collect the scores in those that rank."""
    verdicts = {cell.label: judge_cell(section, group.entries, cell) for cell in section.cells}
    labels = [label for label, verdict in verdicts.items() if verdict == "ranks"]
    scores = {entry: seed_scores(entry, labels) for entry in group.entries}
    return Draft(section, group, verdicts, {entry: found for entry, found in scores.items() if found})


def rank(one: Draft, adjusted: Mapping[frozenset[Entry], float], pairs: int) -> Ranking:
    """Compare the best entry of a group with the others; `pairs` p values were adjusted together."""
    trained = [entry for entry in one.scores if one.section.training(entry) != "untrained"]
    if len(one.scores) < 2 or not trained:
        return Ranking(one.group, one.verdicts, pairs=pairs)
    best = max(trained, key=one.standing)
    comparisons = (
        compare_entries(one, adjusted, best, other, other in trained) for other in one.scores if other is not best
    )
    ordered = (
        (first, second) if one.favours(first, second) else (second, first)
        for first, second in itertools.combinations([entry for entry in trained if entry is not best], 2)
        if adjusted[frozenset((first, second))] < SIGNIFICANT
    )
    further = ((first, compare_entries(one, adjusted, first, second, True)) for first, second in ordered)
    return Ranking(one.group, one.verdicts, best, tuple(comparisons), tuple(further), pairs)


def compare_entries(
    one: Draft, adjusted: Mapping[frozenset[Entry], float], first: Entry, other: Entry, trained: bool
) -> Comparison:
    """Compare a trained entry with another, which may be untrained."""
    samples = one.samples(first, other) if trained else None
    return Comparison(
        other=other,
        shift=shift_between(*samples) if samples else None,
        p_rank=one.p_of("rank", first, other),
        p_lock_in=one.p_of("lock-in", first, other),
        p=adjusted[frozenset((first, other))],
        favourable=one.favours(first, other),
        learnable=sweep_agrees(first, other),
        trained=trained,
    )


def groups_of(section: Section) -> list[Group]:
    """Return the groups of entries that are ranked among each other; at least one."""
    entries = largest_budget(section.entries)
    elements = state_groups(entries, lambda one: one.state_elements)
    same_bytes = state_groups(entries, lambda one: one.state_bytes) if elements else []
    others = [group for group in same_bytes if not any(set(group) <= set(known) for known in elements)]
    found = [*(Group(group, "elements") for group in elements), *(Group(group, "bytes") for group in others)]
    parts = [part for group in found for part in split_by_fields(group) if len(part.entries) > 1]
    if len(found) < 2 or not parts:
        whole = Group(entries, "elements" if matched_state(entries) else "nothing")
        parts = [part for part in split_by_fields(whole) if len(part.entries) > 1] or [whole]
    return parts


def largest_budget(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """Leave out entries that another one equals in all but a larger budget of training."""
    most: dict[object, int] = defaultdict(int)
    for entry in entries:
        most[budget_key(entry)] = max(most[budget_key(entry)], budget_of(entry))
    return tuple(entry for entry in entries if budget_of(entry) == most[budget_key(entry)])


def budget_of(entry: Entry) -> int:
    """Return the number of training steps of an entry."""
    return int(entry.outer_fields[BUDGET_FIELD])


def budget_key(entry: Entry) -> object:
    """Return what the budgets of one architecture have in common: its label, and all fields but the budget."""
    others = sorted((key, value) for key, value in entry.outer_fields.items() if key != BUDGET_FIELD)
    return entry.example_outline.setting.arch, tuple(others)


def state_groups(entries: Sequence[Entry], size_of: Callable[[Entry], int | None]) -> list[tuple[Entry, ...]]:
    """Return the groups of two or more entries that are within 5 % of one size of the state."""
    known = sorted((size, i) for i, entry in enumerate(entries) if (size := size_of(entry)) is not None)
    groups: list[list[int]] = []
    start = 0
    for size, i in known:
        if not groups or size - start > STATE_TOLERANCE * size:
            groups.append([])
            start = size
        groups[-1].append(i)
    return [tuple(entries[i] for i in sorted(group)) for group in groups if len(group) > 1]


def split_by_fields(group: Group) -> list[Group]:
    """Split a group by budget, and by the fields outside the architecture of which one architecture has several values.

    Entries that trained for different numbers of steps are never compared, also where some lack the largest budget.
    """
    by_kind: dict[str, list[dict[str, str]]] = defaultdict(list)
    for entry in group.entries:
        by_kind[entry.kind].append(entry.outer_fields)
    budgets = {BUDGET_FIELD} if len({budget_of(entry) for entry in group.entries}) > 1 else set()
    fields = sorted({key for rows in by_kind.values() for key in varying(rows)} | budgets)
    parts: dict[str, list[Entry]] = defaultdict(list)
    for entry in group.entries:
        values = (f"{key.rpartition('.')[2]}={entry.outer_fields.get(key, 'none')}" for key in fields)
        parts[", ".join(values)].append(entry)
    return [Group(tuple(part), group.matched, where) for where, part in parts.items()]


def judge_cell(section: Section, entries: Sequence[Entry], cell: CellInfo) -> Verdict:
    """Return `ranks` for a cell that can rank these entries, else the reason why it cannot."""
    medians = [median(list(found.values())) for entry in entries if (found := entry.in_cell(cell.label))]
    floor = section.floors[cell.label]
    if not medians:
        return "no results"
    if floor.accuracy >= SOLVED:
        return "floor is 1"
    if min(medians) >= SOLVED:
        return "saturated"
    return "at the floor" if max(medians) <= floor.accuracy + floor.error else "ranks"


def seed_scores(entry: Entry, labels: Sequence[str]) -> dict[Seeds, float]:
    """Return the mean accuracy over cells by seed; seeds that lack a cell are left out."""
    cells = [entry.in_cell(label) for label in labels]
    common = set.intersection(*(set(cell) for cell in cells)) if cells else set()
    return {seeds: sum(cell[seeds] for cell in cells) / len(cells) for seeds in sorted(common)}


def sweep_agrees(best: Entry, other: Entry) -> bool:
    """Return whether the best entry is also ahead in the median over the learning rates that both tried.

    True where they have fewer than two rates in common.
    """
    sweeps = [{f"{rate.rate:.6g}": max(0.0, rate.score) for rate in entry.rates} for entry in (best, other)]
    common = sweeps[0].keys() & sweeps[1].keys()
    first, second = (median([sweep[rate] for rate in common]) if common else 0.0 for sweep in sweeps)
    return first > second or len(common) < 2


def matched_state(entries: Sequence[Entry]) -> bool:
    """Return whether all entries have a state within 5 % of one size."""
    sizes = [entry.state_elements for entry in entries]
    known = [size for size in sizes if size is not None]
    return len(known) == len(sizes) and max(known) - min(known) <= STATE_TOLERANCE * max(known)
