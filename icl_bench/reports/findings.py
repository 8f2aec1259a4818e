"""The question and what was found, in up to three sentences made from the numbers."""

from collections.abc import Sequence

from icl_bench.reports.analysis import CellInfo, Entry, Section
from icl_bench.reports.capacities import Recall
from icl_bench.reports.naming import natural_key
from icl_bench.reports.ranking import (
    OUTCOMES,
    Comparison,
    Ranking,
    difference_interval,
    matched_state,
)
from icl_bench.reports.squared_error import error_of
from icl_bench.reports.text import bracketed, count, failures, listed, load, p_text, share
from icl_bench.schema import canonical_json

NAMED = 6
"""Most entries that a sentence names."""
SHORT_OUTCOMES = (
    ("not separated", "is not separated from {}"),
    ("rate decides", "is ahead of {} by its learning rate alone"),
    ("not compared", "shares fewer than two seeds with {}"),
)
RISE = 0.02
"""Rise in validation accuracy over the last third of the updates from which a run counts as still learning."""
BIMODAL_SEEDS = 10
"""Seeds asked for where some solve and others do not."""
FACTORS = ("conv", "rope", "gate")
"""Parameters that change recall beside the mixer, so that they should be equal in a comparison."""


def findings(section: Section, ranked: Sequence[Ranking], recalled: Sequence[Recall]) -> list[str]:
    """Up to three sentences: the question, what was found, and what limits it."""
    sentences = (question(section, ranked), answer(section, ranked, recalled), limits(section, ranked))
    return [sentence for sentence in sentences if sentence]


def question(section: Section, ranked: Sequence[Ranking]) -> str:
    """What was asked."""
    names = [entry.label for entry in section.entries]
    who = listed(names) if len(names) <= NAMED else f"{len(names)} architectures of {listed(section.families)}"
    do = "does" if len(names) == 1 else "do"
    return f"Asked: how much of {section.task} {do} {who} recall{loads(section)}{state_clause(section, ranked)}?"


def loads(section: Section) -> str:
    """The range of loads."""
    values = sorted({cell.load for cell in section.cells})
    if not values:
        return ""
    return f" at {values[0]}" + (f" to {values[-1]}" if len(values) > 1 else "") + f" {section.load_name}"


def state_clause(section: Section, ranked: Sequence[Ranking]) -> str:
    """How much state the entries carry, and whether it is matched."""
    sizes = sorted(entry.state_elements for entry in section.entries if entry.state_elements is not None)
    if not sizes:
        return ""
    if len(section.entries) == 1:
        return f", with {sizes[0]:,} state elements"
    if matched_state(section.entries):
        return f", at matched state ({span(sizes)} elements)"
    if len(ranked) > 1:
        return f", at {len(ranked)} sizes of matched state ({span(sizes)} elements)"
    return f", at unequal state ({span(sizes)} elements)"


def span(values: Sequence[int]) -> str:
    """Smallest and largest of sorted numbers."""
    return f"{values[0]:,}" if values[0] == values[-1] else f"{values[0]:,} to {values[-1]:,}"


def answer(section: Section, ranked: Sequence[Ranking], recalled: Sequence[Recall]) -> str:
    """What was found, as far as the numbers carry it."""
    scored = [entry for entry in section.entries if entry.accuracies]
    if not scored or not section.cells:
        return "Found: nothing; no run ended with a score."
    if len(scored) == 1:
        return f"Found: {single(scored[0], section)}{half_clause(recalled)}."
    if max(ranking.most_seeds for ranking in ranked) == 1:
        return f"Found: one seed each, so no ranking is claimed; {medians(scored)}."
    if len(ranked) > 1:
        return f"Found: {'; '.join(at_state(ranking) for ranking in ranked)}."
    if ranked[0].best is None:
        return f"Found: {no_ranking(ranked[0])}."
    return f"Found: {compared(ranked[0])}{cells_clause(ranked[0], section.cells)}{half_clause(recalled)}."


def half_clause(recalled: Sequence[Recall]) -> str:
    """Loads at which recall falls to a half, where they lie within those measured."""
    fits = [(row.entry.label, row.capacity.k50) for row in recalled if row.capacity]
    within = [(label, k50) for label, k50 in fits if k50.side == "within"]
    if not within or len(within) > NAMED:
        return ""
    return f"; recall falls to one half at K50 = {listed([f'{load(k50)} ({label})' for label, k50 in within])}"


def at_state(ranking: Ranking) -> str:
    """The outcome among entries of equal state, in short."""
    sizes = sorted(entry.state_elements for entry in ranking.entries if entry.state_elements is not None)
    where = f"at {span(sizes)} elements"
    if ranking.best is None:
        return f"{where} {no_ranking(ranking)}"
    if ranking.most_seeds == 1:
        return f"{where} one seed each, so no order"
    ahead = [short_lead(row, ranking) for row in ranking.comparisons if row.outcome == "ahead"]
    parts = [f"is ahead of {some(ahead)}"] if ahead else []
    for outcome, words in SHORT_OUTCOMES:
        others = [short_name(row.other, ranking) for row in ranking.comparisons if row.outcome == outcome]
        parts += [words.format(some(others))] if others else []
    return f"{where} {short_name(ranking.best, ranking)} {listed(parts)}"


def short_name(entry: Entry, ranking: Ranking) -> str:
    """The family, where it has one entry of this size alone."""
    families = [other.family for other in ranking.entries]
    return entry.family if families.count(entry.family) == 1 else entry.label


def short_lead(row: Comparison, ranking: Ranking) -> str:
    """A difference that is claimed, with its interval."""
    assert row.difference is not None
    gap = f"{row.difference.mean:.3f} {bracketed(difference_interval(row.difference))}"
    return f"{short_name(row.other, ranking)} (by {gap})"


def single(entry: Entry, section: Section) -> str:
    """The result of a lone entry."""
    assert entry.accuracy is not None
    seeds = len(entry.accuracies)
    what = "an accuracy" if seeds == 1 else f"a median accuracy over {seeds} seeds"
    if entry.errors:
        what = f"an error of {error_of(entry)}, {what}"
    return (
        f"{entry.label} reaches {what} of {share(entry.accuracy)}, against a floor of {share(section.mean_floor)}"
        + (" (one seed: no statement about other seeds)" if seeds == 1 else "")
    )


def no_ranking(ranking: Ranking) -> str:
    """Why nothing is ranked."""
    reasons = sorted(set(ranking.verdicts.values()))
    return f"nothing that ranks the architectures: every cell is {listed(reasons, 'or')}"


def medians(entries: Sequence[Entry]) -> str:
    """Accuracies, best first."""
    ordered = sorted(entries, key=lambda entry: -(entry.accuracy or 0.0))
    what = "error" if entries[0].errors else "accuracy"
    named = [f"{one.label} {error_of(one) if one.errors else share(one.accuracy)}" for one in ordered[:NAMED]]
    return f"{what} " + listed(named) + (f" and {len(ordered) - NAMED} more below" if len(ordered) > NAMED else "")


def compared(ranking: Ranking) -> str:
    """The best entry against the others."""
    assert ranking.best is not None
    rows = {outcome: [row for row in ranking.comparisons if row.outcome == outcome] for outcome in OUTCOMES}
    parts = []
    if rows["ahead"]:
        named = [lead(row) for row in sorted(rows["ahead"], key=gap)]
        more = f" and {len(named) - NAMED} others by more" if len(named) > NAMED else ""
        parts.append(f"{ranking.best.label} recalls more than {listed(named[:NAMED])}{more}")
    if rows["not separated"]:
        first = "it" if parts else f"{ranking.best.label}, which has the best median,"
        parts.append(f"{first} is not separated from {some(labels_of(rows['not separated']))} by these seeds")
    if rows["rate decides"]:
        whom = some(labels_of(rows["rate decides"]))
        parts.append(f"against {whom} the sweep of learning rates disagrees, so no order is claimed")
    if rows["not compared"]:
        parts.append(f"{some(labels_of(rows['not compared']))} shares fewer than two seeds with it and is not compared")
    return "; ".join(parts)


def gap(row: Comparison) -> float:
    """The difference, for sorting."""
    return row.difference.mean if row.difference else 0.0


def labels_of(rows: Sequence[Comparison]) -> list[str]:
    """Labels of the other entries."""
    return [row.other.label for row in rows]


def some(labels: Sequence[str]) -> str:
    """Labels, or how many there are."""
    return listed(labels) if len(labels) <= NAMED else f"{len(labels)} others"


def lead(row: Comparison) -> str:
    """A difference that is claimed, with all that it rests on."""
    assert row.difference is not None
    seeds = count(row.difference.pairs, "seed")
    interval = bracketed(difference_interval(row.difference))
    return f"{row.other.label} (by {row.difference.mean:.3f}, 95 % {interval}, p {p_text(row.p)}, {seeds})"


def cells_clause(ranking: Ranking, cells: Sequence[CellInfo]) -> str:
    """Which cells the comparison rests on, where not on all."""
    left_out = [
        f"{cell.label} ({ranking.verdicts[cell.label]})" for cell in cells if cell.label not in ranking.ranking_cells
    ]
    return f"; left out as they do not rank: {listed(left_out)}" if left_out else ""


def limits(section: Section, ranked: Sequence[Ranking]) -> str:
    """What the numbers do not carry."""
    notes = [*rate_limits(section), *seed_limits(section), *run_limits(section, ranked)]
    return f"Limits: {'; '.join(notes)}." if notes else ""


def rate_limits(section: Section) -> list[str]:
    """What the choice of learning rates leaves open."""
    untuned = [entry.label for entry in section.entries if len(entry.rates) == 1]
    edge = [entry.label for entry in section.entries if entry.at_edge]
    reused = [entry.label for entry in section.entries if len(entry.rates) > 1 and not entry.fresh]
    notes = [f"one learning rate was tried for {whom(untuned, section)}"] if untuned else []
    notes += [f"the best learning rate of {whom(edge, section)} lies at the edge of the sweep"] if edge else []
    notes += [f"the seeds of {whom(reused, section)} both chose the rate and measure"] if reused else []
    return notes


def seed_limits(section: Section) -> list[str]:
    """What the number and the spread of seeds leave open."""
    few = sorted({len(entry.accuracies) for entry in section.entries if 0 < len(entry.accuracies) < 5})
    notes = []
    if few and max(few) > 1:
        notes.append(f"{few[0]}{f' to {few[-1]}' if len(few) > 1 else ''} seeds are few (at least 5 are asked for)")
    bimodal = [entry for entry in section.entries if entry.bimodal]
    if bimodal:
        more = f" ({BIMODAL_SEEDS} are asked for)" if min(len(e.accuracies) for e in bimodal) < BIMODAL_SEEDS else ""
        names = whom([entry.label for entry in bimodal], section)
        notes.append(f"some seeds{more} of {names} solve and others do not, so means mislead")
    return notes


def run_limits(section: Section, ranked: Sequence[Ranking]) -> list[str]:
    """What the runs themselves leave open: their budget, factors that differ, failures, and what was not matched."""
    rising = [entry.label for entry in section.entries if entry.rise > RISE]
    notes = [f"{whom(rising, section)} still rose in validation at the end of training"] if rising else []
    notes += [f"architectures differ in {factor} ({listed(values)})" for factor, values in mixed(section)]
    statuses = [run.status for entry in section.entries for run in entry.failed]
    notes += [failures(statuses)] if statuses else []
    loose = len(section.entries) - sum(len(ranking.entries) for ranking in ranked)
    return notes + ([f"{count(loose, 'architecture')} without a match in state not ranked"] if loose else [])


def mixed(section: Section) -> list[tuple[str, list[str]]]:
    """Factors in which the architectures differ, with their values; one that lacks a factor is left out."""
    found = []
    for factor in FACTORS:
        values = {canonical_json(value) for entry in section.entries for value in entry.parameter(factor)}
        found += [(factor, sorted(values, key=natural_key))] if len(values) > 1 else []
    return found


def whom(labels: Sequence[str], section: Section) -> str:
    """Labels, shortened where they are all or many."""
    if len(labels) == len(section.entries) and len(labels) > 1:
        return "every architecture"
    return listed(labels) if len(labels) <= NAMED else f"{len(labels)} architectures"
