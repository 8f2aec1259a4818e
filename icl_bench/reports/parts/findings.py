"""The findings of a section in up to three sentences, written from the numbers: question, result and limits."""

from collections.abc import Sequence

from icl_bench.reports.analysis import Section
from icl_bench.reports.entry import Entry
from icl_bench.reports.naming import natural_key
from icl_bench.reports.ranking import Claim, Comparison, Ranking, matched_state, rankings
from icl_bench.reports.recall import Recall, recalls
from icl_bench.reports.statistics import Difference
from icl_bench.reports.text import (
    enumerate_words,
    format_count,
    format_failures,
    format_interval,
    format_load,
    format_p,
    format_share,
)
from icl_bench.schema import canonical_json

NAMED = 6
"""Largest number of entries that a sentence names."""
SHORT_CLAIMS: dict[Claim, str] = {
    "ahead": "is ahead of {}",
    "not significant": "does not differ significantly from {}",
    "rate decides": "is ahead of {} at the chosen learning rates only",
    "not compared": "shares fewer than two seeds with {}",
}
RISE = 0.02
"""Smallest rise in validation accuracy over the last third of the updates with which a run counts as still learning."""
LEAST_SEEDS = 5
"""Recommended number of seeds."""
BIMODAL_SEEDS = 10
"""Recommended number of seeds where some solve the task and others do not."""
FACTORS = ("conv", "rope", "gate")
"""Parameters that change recall whatever the mixer is, so that they should be equal in a comparison."""


def findings(section: Section) -> list[str]:
    """Write up to three sentences: the question, the result, and its limits."""
    ranked, recalled = rankings(section), recalls(section)
    sentences = (question(section, ranked), result(section, ranked, recalled), limits(section, ranked))
    return [sentence for sentence in sentences if sentence]


def question(section: Section, ranked: Sequence[Ranking]) -> str:
    """Write the question that the runs answer."""
    names = [entry.label for entry in section.entries]
    many = f"{len(names)} architectures of {enumerate_words(section.families)}"
    who = ("does " if len(names) == 1 else "do ") + (enumerate_words(names) if len(names) <= NAMED else many)
    loads = sorted({cell.load for cell in section.cells})
    at = f" at {span(loads)} {section.load_name}" if loads else ""
    return f"Question: how much of {section.task} {who} recall{at}{state_clause(section, ranked)}?"


def state_clause(section: Section, ranked: Sequence[Ranking]) -> str:
    """Write the size of the state, and whether it is matched."""
    sizes = sorted(entry.state_elements for entry in section.entries if entry.state_elements is not None)
    if not sizes:
        return ""
    if len(section.entries) == 1:
        return f", with {sizes[0]:,} state elements"
    several = f"{len(ranked)} sizes of matched state" if len(ranked) > 1 else "unequal state"
    return f", at {'matched state' if matched_state(section.entries) else several} ({span(sizes)} elements)"


def span(values: Sequence[int]) -> str:
    """Write the smallest and the largest of sorted numbers."""
    return f"{values[0]:,}" if values[0] == values[-1] else f"{values[0]:,} to {values[-1]:,}"


def result(section: Section, ranked: Sequence[Ranking], recalled: Sequence[Recall]) -> str:
    """Write the result, as far as the numbers allow a claim."""
    scored = [entry for entry in section.entries if entry.accuracies]
    if not scored or not section.cells:
        return "Result: none; no run ended with a score."
    if len(scored) == 1:
        return f"Result: {single(scored[0], section)}{half_clause(recalled)}."
    if max(ranking.most_seeds for ranking in ranked) == 1:
        return f"Result: no ranking, since every architecture has one seed; {medians(scored)}."
    if len(ranked) > 1:
        return f"Result: {'; '.join(at_state(ranking) for ranking in ranked)}."
    if ranked[0].best is None:
        return f"Result: {no_ranking(ranked[0])}."
    return f"Result: {compared(ranked[0])}{half_clause(recalled)}."


def half_clause(recalled: Sequence[Recall]) -> str:
    """Write the loads at which recall falls to one half, where they lie within the measured loads."""
    fits = [(row.entry.label, row.capacity.k50) for row in recalled if row.capacity]
    within = [f"{format_load(k50)} ({label})" for label, k50 in fits if k50.side == "within"]
    if not within or len(within) > NAMED:
        return ""
    return f"; chance-corrected accuracy falls to 50 % at K50 = {enumerate_words(within)}"


def at_state(ranking: Ranking) -> str:
    """Write the result among entries of equal state, in short."""
    sizes = sorted(entry.state_elements for entry in ranking.entries if entry.state_elements is not None)
    where = f"at {span(sizes)} state elements"
    if ranking.best is None:
        return f"{where} {no_ranking(ranking)}"
    if ranking.most_seeds == 1:
        return f"{where} no ranking, since every architecture has one seed"
    parts = []
    for claim, words in SHORT_CLAIMS.items():
        if rows := ranking.by_claim.get(claim):
            gaps = [f" ({gap(row.difference, ' ')})" if row.difference and claim == "ahead" else "" for row in rows]
            names = [short_name(row.other, ranking) + told for row, told in zip(rows, gaps, strict=True)]
            parts.append(words.format(some(names)))
    return f"{where} {short_name(ranking.best, ranking)} {enumerate_words(parts)}"


def short_name(entry: Entry, ranking: Ranking) -> str:
    """Return the family of an entry, where it has no other entry of this size, else the label."""
    families = [other.family for other in ranking.entries]
    return entry.family if families.count(entry.family) == 1 else entry.label


def single(entry: Entry, section: Section) -> str:
    """Write the result of the only entry."""
    seeds = len(entry.accuracies)
    score = "an accuracy" if seeds == 1 else f"a median accuracy over {seeds} seeds"
    if entry.errors:
        score = f"an error of {format_share(entry.error)}, {score}"
    floor = f"the floor is {format_share(section.mean_floor)}"
    remark = " (one seed, which says nothing about other seeds)" if seeds == 1 else ""
    return f"{entry.label} reaches {score} of {format_share(entry.accuracy)}; {floor}{remark}"


def no_ranking(ranking: Ranking) -> str:
    """Write the reasons why nothing is ranked."""
    return f"no ranking, since every cell is {enumerate_words(sorted(set(ranking.verdicts.values())), 'or')}"


def medians(entries: Sequence[Entry]) -> str:
    """Write accuracies or errors, best first."""
    ordered = sorted(entries, key=lambda entry: -(entry.accuracy or 0.0))
    named = [f"{one.label} {format_share(one.error if one.errors else one.accuracy)}" for one in ordered[:NAMED]]
    more = f" and {len(ordered) - NAMED} more below" if len(ordered) > NAMED else ""
    return f"{'error' if entries[0].errors else 'accuracy'} {enumerate_words(named)}{more}"


def compared(ranking: Ranking) -> str:
    """Write the comparisons of the best entry with the others, and the cells that they leave out, with the reasons."""
    assert ranking.best is not None
    rows = ranking.by_claim
    others = {claim: some([row.other.label for row in found]) for claim, found in rows.items()}
    parts = []
    if ahead := sorted(rows.get("ahead", []), key=lambda row: row.difference.mean if row.difference else 0.0):
        more = f" and {len(ahead) - NAMED} others by more" if len(ahead) > NAMED else ""
        parts.append(f"{ranking.best.label} recalls more than {enumerate_words([*map(lead, ahead[:NAMED])])}{more}")
    if "not significant" in others:
        first = "it" if parts else f"{ranking.best.label}, which has the best median,"
        parts.append(f"{first} does not differ significantly from {others['not significant']}")
    if "rate decides" in others:
        disagrees = "since the sweep of learning rates does not agree"
        parts.append(f"no order is claimed against {others['rate decides']}, {disagrees}")
    if "not compared" in others:
        parts.append(f"not compared, for lack of two common seeds: {others['not compared']}")
    if left_out := [f"{label} ({verdict})" for label, verdict in ranking.verdicts.items() if verdict != "ranks"]:
        parts.append(f"cells left out of the ranking: {enumerate_words(left_out)}")
    return "; ".join(parts)


def some(labels: Sequence[str]) -> str:
    """Enumerate labels, or count them where there are many."""
    return enumerate_words(labels) if len(labels) <= NAMED else f"{len(labels)} others"


def lead(row: Comparison) -> str:
    """Write a claimed difference with its interval, p value and number of seeds."""
    assert row.difference is not None
    seeds = format_count(row.difference.pairs, "seed")
    return f"{row.other.label} ({gap(row.difference, ', 95 % interval ')}, p {format_p(row.p)}, {seeds})"


def gap(difference: Difference, between: str) -> str:
    """Write a difference and its interval, with words between them."""
    return f"by {difference.mean:.3f}{between}{format_interval(difference.interval.clipped(-1.0))}"


def limits(section: Section, ranked: Sequence[Ranking]) -> str:
    """Write the limits of the result."""
    notes = [*rate_limits(section), *seed_limits(section), *run_limits(section, ranked)]
    return f"Limits: {'; '.join(notes)}." if notes else ""


def rate_limits(section: Section) -> list[str]:
    """List the limits that the choice of learning rates sets."""
    untuned = [entry for entry in section.entries if len(entry.rates) == 1]
    edge = [entry for entry in section.entries if entry.at_edge]
    reused = [entry for entry in section.entries if len(entry.rates) > 1 and not entry.fresh]
    notes = [f"one learning rate was tried for {naming(untuned, section)}"] if untuned else []
    notes += [f"the best learning rate of {naming(edge, section)} lies at the edge of the sweep"] if edge else []
    whose = "its" if len(reused) in (1, len(section.entries)) else "their"
    notes += [f"the seeds that measure {naming(reused, section)} also chose {whose} learning rate"] if reused else []
    return notes


def seed_limits(section: Section) -> list[str]:
    """List the limits that the number and the spread of seeds set."""
    few = sorted({len(entry.accuracies) for entry in section.entries if 0 < len(entry.accuracies) < LEAST_SEEDS})
    notes = [f"{span(few)} seeds are few (at least {LEAST_SEEDS} are recommended)"] if few and max(few) > 1 else []
    if bimodal := [entry for entry in section.entries if entry.bimodal]:
        enough = min(len(entry.accuracies) for entry in bimodal) >= BIMODAL_SEEDS
        seeds = "some seeds" if enough else f"some seeds (at least {BIMODAL_SEEDS} are recommended)"
        notes.append(f"{seeds} of {naming(bimodal, section)} solve the task and others do not, so that means mislead")
    return notes


def run_limits(section: Section, ranked: Sequence[Ranking]) -> list[str]:
    """List the limits that training, unequal parameters, failures and unmatched states set."""
    rising = [entry for entry in section.entries if entry.rise > RISE]
    notes = [f"validation accuracy of {naming(rising, section)} still rose at the end of training"] if rising else []
    for factor in FACTORS:
        values = {canonical_json(value) for entry in section.entries for value in entry.parameter(factor)}
        if len(values) > 1:
            notes.append(f"architectures differ in {factor} ({enumerate_words(sorted(values, key=natural_key))})")
    if statuses := [run.status for entry in section.entries for run in entry.failed]:
        notes.append(f"runs: {format_failures(statuses)}")
    if loose := len(section.entries) - sum(len(ranking.entries) for ranking in ranked):
        notes.append(f"not ranked, for lack of a match in state: {format_count(loose, 'architecture')}")
    return notes


def naming(entries: Sequence[Entry], section: Section) -> str:
    """Enumerate the labels of entries; write `every architecture`, or their number, where they are many."""
    if len(entries) == len(section.entries) and len(entries) > 1:
        return "every architecture"
    return enumerate_words([one.label for one in entries]) if len(entries) <= NAMED else f"{len(entries)} architectures"
