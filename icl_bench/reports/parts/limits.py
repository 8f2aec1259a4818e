"""The limits of a result, written from the numbers: rates, seeds, training, and factors that differ."""

import itertools
from collections import defaultdict
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

from icl_bench.reports.analysis import Section
from icl_bench.reports.entry import Entry
from icl_bench.reports.naming import natural_key
from icl_bench.reports.parts.ladder import SETTLED, ladders
from icl_bench.reports.ranking import MATCHED, SIGNIFICANT, Ranking, largest_budget
from icl_bench.reports.recall import padded_keys
from icl_bench.reports.statistics import least_p
from icl_bench.reports.text import (
    MOST_NAMED,
    enumerate_some,
    enumerate_words,
    format_count,
    format_failures,
    format_span,
)
from icl_bench.schema import format_value

RISE = 0.02
"""Smallest rise in validation accuracy over the last third of the updates with which a run counts as still learning."""
LEAST_SEEDS = 5
"""Recommended number of seeds."""
BIMODAL_SEEDS = 10
"""Recommended number of seeds where some leave the floor and others do not."""


def limits(section: Section, ranked: Sequence[Ranking]) -> str:
    """Write the limits of the result."""
    notes = [
        *rate_limits(section),
        *seed_limits(section, ranked),
        *run_limits(section, ranked),
        *factor_limits(section, ranked),
    ]
    return f"Limits: {'; '.join(notes)}." if notes else ""


def rate_limits(section: Section) -> list[str]:
    """List the limits that the choice of learning rates sets."""
    untuned = [entry for entry in section.entries if len(entry.rates) == 1]
    swept = [entry for entry in section.entries if len(entry.rates) > 1]
    noise = [entry for entry in swept if not section.any_rate_trained(entry)]
    edge = [entry for entry in swept if entry.at_edge and entry not in noise]
    other = [entry for entry in swept if entry.rate != entry.best_rate]
    reused = [entry for entry in swept if not entry.fresh]
    notes = [f"one learning rate was tried for {naming(untuned, section)}"] if untuned else []
    notes += [f"the best learning rate of {naming(edge, section)} lies at the edge of the sweep"] if edge else []
    notes += [f"no learning rate trained {naming(noise, section)}"] if noise else []
    if other:
        lost = max(entry.lost_by_rate for entry in other)
        whose = f", at which the median validation accuracy of tuning seeds is up to {lost:.3f} higher"
        notes.append(f"{naming(other, section)} ran at another rate than that of the best median{whose}")
    whose = "its" if len(reused) in (1, len(section.entries)) else "their"
    notes += [f"the seeds that measure {naming(reused, section)} also chose {whose} learning rate"] if reused else []
    return notes


def seed_limits(section: Section, ranked: Sequence[Ranking]) -> list[str]:
    """List the limits that the number and the spread of seeds set."""
    few = sorted({len(entry.accuracies) for entry in section.entries if 0 < len(entry.accuracies) < LEAST_SEEDS})
    notes = (
        [f"{format_span(few)} seeds are few (at least {LEAST_SEEDS} are recommended)"] if few and max(few) > 1 else []
    )
    if several := [ranking for ranking in ranked if ranking.most_seeds > 1 and len(ranking.entries) > 1]:
        pairs = several[0].pairs
        if not any(ranking.decidable for ranking in several):
            least = next(n for n in itertools.count(2) if pairs * least_p(n, n) < SIGNIFICANT)
            notes.append(
                f"with {format_count(pairs, 'pair')}, no difference is significant below {least} seeds on a side"
            )
    if bimodal := [entry for entry in section.entries if section.training(entry) == "bimodal"]:
        enough = min(len(entry.accuracies) for entry in bimodal) >= BIMODAL_SEEDS
        seeds = "seeds" if enough else f"seeds (at least {BIMODAL_SEEDS} are recommended)"
        notes.append(f"{seeds} of {naming(bimodal, section)} are bimodal, so that a median depends on few of them")
    if untrained := [entry for entry in section.entries if section.training(entry) == "untrained"]:
        notes.append(f"untrained, below the floor: {naming(untrained, section)}")
    return notes


def run_limits(section: Section, ranked: Sequence[Ranking]) -> list[str]:
    """List the limits that training, failures and unmatched states set."""
    rising = [entry for entry in largest_budget(section.entries) if entry.rise > RISE]
    notes = [f"validation accuracy of {naming(rising, section)} still rose at the end of training"] if rising else []
    moves = {ladder.rungs[-1]: move for ladder in ladders(section) if (move := ladder.move) is not None}
    if moving := [entry for entry, move in moves.items() if abs(move) > SETTLED]:
        most = max(abs(move) for move in moves.values())
        notes.append(f"the last factor of the budget moved {naming(moving, section)}, by up to {most:.3f}")
    padded = [f"{entry.label} ({rank})" for entry in section.entries if (rank := padded_keys(entry))]
    notes += [f"padded state, which can hold less than its size: {enumerate_some(padded)}"] if padded else []
    seen = [f"{share:.1%} of {label}" for label, share in section.repeated.items()]
    notes += [f"test examples of the same content as training examples: {enumerate_some(seen)}"] if seen else []
    notes += [
        f"equal in every seed and cell, as one function is: {enumerate_some(names)}" for names in equal_entries(section)
    ]
    if statuses := [run.status for entry in section.entries for run in entry.failed]:
        notes.append(f"runs: {format_failures(statuses)}")
    ranked_once = {entry for ranking in ranked for entry in ranking.entries}
    if loose := len(largest_budget(section.entries)) - len(ranked_once):
        notes.append(f"not ranked, for lack of a match in state: {format_count(loose, 'architecture')}")
    return notes


def equal_entries(section: Section) -> list[list[str]]:
    """Return the labels of entries that have the same accuracies, of which some are between 0 and 1.

    A window that is longer than the sequences, for example, computes what softmax attention does.
    """
    by_scores: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for entry in section.entries:
        cells = [sorted(entry.in_cell(cell.label).items()) for cell in section.cells]
        if any(0 < accuracy < 1 for cell in cells for _, accuracy in cell):
            by_scores[tuple(map(tuple, cells))].append(entry.label)
    return [labels for labels in by_scores.values() if len(labels) > 1]


def factor_values(entries: Sequence[Entry]) -> dict[str, set[str]]:
    """Return the values of each parameter of the mixers, and of each field outside of them, in these entries.

    A parameter that one entry of an architecture has and another lacks has its default there, and so has a field:
    records leave out what was added since, at its default. Between architectures a lacking parameter says nothing.
    """
    found: dict[str, set[str]] = defaultdict(set)
    known: dict[str, set[str]] = defaultdict(set)
    parts = [part for entry in entries for part in entry.factors]
    for arch, params in parts:
        known[arch] |= params.keys()
    for arch, params in parts:
        for name in known[arch]:
            found[name].add(format_value(params[name]) if name in params else "default")
    for name in {name for entry in entries for name in entry.outer_fields}:
        found[name] = {entry.outer_fields.get(name, "default") for entry in entries}
    return found


def factor_limits(section: Section, ranked: Sequence[Ranking]) -> list[str]:
    """List the properties besides the mixer, and the sizes, in which entries differ that are ranked together."""
    values: dict[str, set[str]] = defaultdict(set)
    for ranking in ranked:
        found = factor_values(ranking.entries)
        for name in found:
            values[name] |= found[name] if len(found[name]) > 1 else set()
    differing = [
        f"{name.rpartition('.')[2]} ({enumerate_words(sorted(told, key=natural_key))})"
        for name, told in sorted(values.items())
        if told
    ]
    notes = [f"architectures that are compared differ in {'; '.join(differing)}"] if differing else []
    matched = [ranking.entries for ranking in ranked if ranking.group.matched == "elements"]
    for noun, size_of in (
        ("bytes of state", attrgetter("state_bytes")),
        ("parameters", attrgetter("example.result.params")),
    ):
        sizes = [[size for entry in entries if (size := size_of(entry))] for entries in matched]
        most = max((max(row) / min(row) for row in sizes if row), default=1.0)
        notes += [f"states of equal elements differ in {noun}, up to {most:.1f} times"] if most > MATCHED else []
    return notes


def naming(entries: Sequence[Entry], section: Section) -> str:
    """Enumerate the labels of entries; write `every architecture`, or their number, where they are many."""
    if len(entries) == len(section.entries) and len(entries) > 1:
        return "every architecture"
    if len(entries) <= MOST_NAMED:
        return enumerate_words([one.label for one in entries])
    return f"{len(entries)} {'architectures' if len(section.kinds) == len(section.entries) else 'entries'}"
