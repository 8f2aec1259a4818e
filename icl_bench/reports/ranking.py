"""Rank entries, as far as the numbers allow.

Entries of equal state are ranked among each other; where there is no such group, all entries are ranked together. A
cell is left out of the ranking where every entry solves it or none is above its floor. On the other cells, the entry
with the best median is compared with each other entry by paired differences over common seeds. The p values are
adjusted by Holm's method for all pairs of entries, since the best was not known beforehand. A difference is claimed
only with two or more common seeds, and only if the median validation accuracy over the whole sweep of learning rates
has the same sign: otherwise the difference is one of learning rates, not of architectures.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

from icl_bench.reports.analysis import CellInfo, Section
from icl_bench.reports.entry import Entry
from icl_bench.reports.statistics import Difference, fisher_exact, holm, median, paired_difference, permutation_p
from icl_bench.runs.outline import Seeds
from icl_bench.runs.record import SOLVED

Z = 1.959964
"""Quantile of the normal distribution for a two-sided 95 % interval."""
SIGNIFICANT = 0.05
"""Largest adjusted p value for which a difference is not claimed."""
STATE_TOLERANCE = 1 - 0.95 / 1.05
"""Largest difference of matched states, relative to the larger: each may deviate by 5 % from their common target."""

Verdict = Literal["ranks", "saturated", "at the floor", "floor is 1", "no results"]
Claim = Literal["ahead", "not significant", "rate decides", "not compared"]


class Comparison(NamedTuple):
    """The best entry compared with another."""

    other: Entry
    difference: Difference | None
    """Difference of the mean accuracy over the ranking cells; none with fewer than two common seeds."""
    p: float
    """p value of the difference, adjusted for the number of pairs; 1 where there is no difference to test."""
    solved_p: float
    """p value of Fisher's exact test on the numbers of seeds that solve the task, not adjusted."""
    median_p: float
    """p value of a permutation test of the medians over seeds, which need not be common; not adjusted."""
    learnable: bool
    """True if the median over the sweep of learning rates has the same sign."""

    @property
    def claim(self) -> Claim:
        """The claim that the numbers allow."""
        if self.difference is None:
            return "not compared"
        if self.p >= SIGNIFICANT or self.difference.mean <= 0:
            return "not significant"
        return "ahead" if self.learnable else "rate decides"


class Ranking(NamedTuple):
    """The comparison of entries: all of a section, or those of equal state."""

    entries: tuple[Entry, ...]
    """The entries that were compared."""
    verdicts: dict[str, Verdict]
    """Verdict on each cell, by label."""
    best: Entry | None
    """The entry with the best median over the ranking cells; none where nothing can be ranked."""
    comparisons: tuple[Comparison, ...]
    """The best entry compared with each other one."""

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


@lru_cache(maxsize=64)  # the findings and the comparisons need the same tests, which are slow
def rankings(section: Section) -> tuple[Ranking, ...]:
    """Rank each group of equal state, by state; all entries together where there is at most one such group."""
    groups = [group for group in state_groups(section.entries) if len(group) > 1]
    return tuple(rank(section, group) for group in (groups if len(groups) > 1 else [section.entries]))


def state_groups(entries: Sequence[Entry]) -> list[tuple[Entry, ...]]:
    """Group entries by state: those of a group are within 5 % of one size."""
    known = sorted((entry.state_elements, i) for i, entry in enumerate(entries) if entry.state_elements is not None)
    groups: list[list[int]] = []
    start = 0
    for size, i in known:
        if not groups or size - start > STATE_TOLERANCE * size:
            groups.append([])
            start = size
        groups[-1].append(i)
    return [tuple(entries[i] for i in sorted(group)) for group in groups]


def rank(section: Section, entries: tuple[Entry, ...]) -> Ranking:
    """Rank entries of a section."""
    unranked = Ranking(entries, judge_cells(section, entries), None, ())
    labels = [label for label, verdict in unranked.verdicts.items() if verdict == "ranks"]
    scores = {entry.label: seed_scores(entry, labels) for entry in entries}
    scored = [entry for entry in entries if scores[entry.label]]
    if len(scored) < 2:
        return unranked
    best = max(scored, key=lambda entry: median(list(scores[entry.label].values())))
    adjusted = adjusted_pairs(scores, scored)
    rows = [
        Comparison(
            other=other,
            difference=difference_of(scores[best.label], scores[other.label]),
            p=adjusted[frozenset((best.label, other.label))],
            solved_p=fisher_exact(
                (best.solved_seeds, other.solved_seeds), (len(best.accuracies), len(other.accuracies))
            ),
            median_p=permutation_p(*(list(scores[entry.label].values()) for entry in (best, other))),
            learnable=sweep_agrees(best, other),
        )
        for other in scored
        if other is not best
    ]
    return unranked._replace(best=best, comparisons=tuple(rows))


def adjusted_pairs(scores: dict[str, dict[Seeds, float]], entries: Sequence[Entry]) -> dict[frozenset[str], float]:
    """Return the adjusted p value of each pair of entries, by their labels."""
    pairs = [frozenset((a.label, b.label)) for a, b in itertools.combinations(entries, 2)]
    found = [difference_of(*(scores[label] for label in sorted(pair))) for pair in pairs]
    return dict(zip(pairs, holm([difference.p if difference else 1.0 for difference in found]), strict=True))


def judge_cells(section: Section, entries: Sequence[Entry]) -> dict[str, Verdict]:
    """Judge each cell, by label."""
    return {cell.label: judge_cell(section, entries, cell) for cell in section.cells}


def judge_cell(section: Section, entries: Sequence[Entry], cell: CellInfo) -> Verdict:
    """Return `ranks` for a cell that can rank these entries, else the reason why it cannot."""
    medians = [median(list(found.values())) for entry in entries if (found := entry.in_cell(cell.label))]
    floor = section.floors[cell.label].accuracy
    if not medians:
        return "no results"
    if floor >= SOLVED:
        return "floor is 1"
    if min(medians) >= SOLVED:
        return "saturated"
    sampling_error = Z * math.sqrt(floor * (1 - floor) / section.examples)
    return "at the floor" if max(medians) <= floor + sampling_error else "ranks"


def seed_scores(entry: Entry, labels: Sequence[str]) -> dict[Seeds, float]:
    """Return the mean accuracy over cells by seed; seeds that lack a cell are left out."""
    cells = [entry.in_cell(label) for label in labels]
    common = set.intersection(*(set(cell) for cell in cells)) if cells else set()
    return {seeds: sum(cell[seeds] for cell in cells) / len(cells) for seeds in sorted(common)}


def difference_of(first: dict[Seeds, float], second: dict[Seeds, float]) -> Difference | None:
    """Return the paired difference over common seeds; None with fewer than two."""
    common = sorted(first.keys() & second.keys())
    if len(common) < 2:
        return None
    return paired_difference([first[seeds] for seeds in common], [second[seeds] for seeds in common])


def sweep_agrees(best: Entry, other: Entry) -> bool:
    """Return whether the best entry is also ahead in the median over the sweep; true where either ran at one rate."""
    first, second = (median([max(0.0, rate.score) for rate in entry.rates]) for entry in (best, other))
    return first > second or min(len(best.rates), len(other.rates)) < 2


def matched_state(entries: Sequence[Entry]) -> bool:
    """Return whether all entries have a state within 5 % of one size."""
    sizes = [entry.state_elements for entry in entries]
    known = [size for size in sizes if size is not None]
    return len(known) == len(sizes) and max(known) - min(known) <= STATE_TOLERANCE * max(known)
