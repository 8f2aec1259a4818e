"""The findings of a section in up to four sentences, written from the numbers: question, seeds, result and limits."""

from collections import Counter
from collections.abc import Sequence
from operator import attrgetter

from icl_bench.reports.analysis import Section
from icl_bench.reports.entry import Entry
from icl_bench.reports.naming import in_sentence
from icl_bench.reports.parts.limits import limits
from icl_bench.reports.parts.solved import solved_sentence
from icl_bench.reports.ranking import Claim, Comparison, Ranking, matched_state, rankings
from icl_bench.reports.recall import Recall, models_language, recalls
from icl_bench.reports.statistics import Shift
from icl_bench.reports.text import (
    MOST_NAMED,
    enumerate_some,
    enumerate_words,
    format_interval,
    format_level,
    format_load,
    format_p,
    format_share,
    format_span,
)

SHORT_CLAIMS: dict[Claim, str] = {
    "ahead": "is ahead of {}",
    "not significant": "does not differ significantly from {}",
    "rate decides": "is ahead of {} at the chosen learning rates only",
    "not compared": "has, or meets, fewer than two seeds with {}",
    "untrained": "has no opponent in {}, untrained",
}


def findings(section: Section) -> list[str]:
    """Write up to four sentences: the question, the seeds that solved a task that jumps, the result, and its limits."""
    ranked, recalled = rankings(section), recalls(section)
    seeds = solved_sentence(section)
    told = "" if seeds and len(section.entries) == 1 else result(section, ranked, recalled)
    sentences = (question(section, ranked), seeds, told, limits(section, ranked))
    return [sentence for sentence in sentences if sentence]


def question(section: Section, ranked: Sequence[Ranking]) -> str:
    """Write the question that the runs answer."""
    names = [in_sentence(entry.label) for entry in section.entries]
    many = f"{len(section.kinds)} architectures"
    many = many if len(section.kinds) == len(names) else f"{len(names)} entries of {many}"
    who = ("does " if len(names) == 1 else "do ") + (enumerate_words(names) if len(names) <= MOST_NAMED else many)
    loads = sorted({cell.load for cell in section.cells})
    at = f" at {format_span(loads)} {section.load_name}" if loads else ""
    asked = f"how well {who} predict {section.task}" if any(map(models_language, section.entries)) else None
    asked = asked or f"how much of {section.task} {who} recall"
    return f"Question: {asked}{at}{state_clause(section, ranked)}?"


def state_clause(section: Section, ranked: Sequence[Ranking]) -> str:
    """Write the size of the state, and whether it is matched."""
    sizes = sorted(entry.state_elements for entry in section.entries if entry.state_elements is not None)
    if not sizes:
        return ""
    if len(section.entries) == 1:
        return f", with {sizes[0]:,} state elements"
    several = f"{len(ranked)} sizes of matched state" if len(ranked) > 1 else "unequal state"
    return f", at {'matched state' if matched_state(section.entries) else several} ({format_span(sizes)} elements)"


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
        return f"Result: {'; '.join(at_states(ranked))}."
    if ranked[0].best is None:
        return f"Result: {no_ranking(ranked[0])}."
    return f"Result: {compared(ranked[0])}{half_clause(recalled)}."


def half_clause(recalled: Sequence[Recall]) -> str:
    """Write the loads at which recall falls to one half, where they lie within the measured loads."""
    fits = [(row.entry.label, row.capacity.k50) for row in recalled if row.capacity]
    within = [f"{format_load(k50)} ({label})" for label, k50 in fits if k50.side == "within"]
    if not within or len(within) > MOST_NAMED:
        return ""
    return f"; chance-corrected accuracy falls to 50 % at K50 = {enumerate_words(within)}"


def at_states(ranked: Sequence[Ranking]) -> list[str]:
    """Write the result of each group; groups that share a reason for no ranking are counted where they are many."""
    reasons = Counter(no_ranking(ranking) for ranking in ranked if ranking.best is None)
    many = [reason for reason, count in reasons.items() if count > MOST_NAMED]
    told = [at_state(one) for one in ranked if one.best is not None or no_ranking(one) not in many]
    return told + [f"at {reasons[reason]} of {len(ranked)} sizes of matched state {reason}" for reason in many]


def at_state(ranking: Ranking) -> str:
    """Write the result among the entries of a group, in short."""
    size_of = attrgetter("state_bytes" if ranking.group.matched == "bytes" else "state_elements")
    sizes = sorted(size for entry in ranking.entries if (size := size_of(entry)) is not None)
    unit = "bytes of state" if ranking.group.matched == "bytes" else "state elements"
    places = [f"{format_span(sizes)} {unit}"] if sizes else []
    where = f"at {', '.join([*places, *filter(None, [ranking.group.where])])}"
    if ranking.best is None:
        return f"{where} {no_ranking(ranking)}"
    if ranking.most_seeds == 1:
        return f"{where} no ranking, since every architecture has one seed"
    parts = []
    for claim, words in SHORT_CLAIMS.items():
        if rows := ranking.by_claim.get(claim):
            gaps = [f" ({gap(row.shift, ' ')})" if row.shift and claim == "ahead" else "" for row in rows]
            names = [short_name(row.other, ranking) + told for row, told in zip(rows, gaps, strict=True)]
            parts.append(words.format(enumerate_some(names)))
    return f"{where}, {short_name(ranking.best, ranking)} {enumerate_words(parts)}"


def short_name(entry: Entry, ranking: Ranking) -> str:
    """Return the family of an entry, or its label where others of this size are of the family, without the place."""
    families = [other.family for other in ranking.entries]
    name = entry.family if families.count(entry.family) == 1 else entry.label
    return name.removesuffix(f", {ranking.group.where}")


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
    verdicts = sorted(set(ranking.verdicts.values()))
    if "ranks" in verdicts:
        return "no ranking, since every architecture but one is without a score, or all are untrained"
    return f"no ranking, since every cell is {enumerate_words(verdicts, 'or')}"


def medians(entries: Sequence[Entry]) -> str:
    """Write accuracies or errors, best first."""
    ordered = sorted(entries, key=lambda entry: -(entry.accuracy or 0.0))
    named = [f"{one.label} {format_share(one.error if one.errors else one.accuracy)}" for one in ordered[:MOST_NAMED]]
    more = f" and {len(ordered) - MOST_NAMED} more below" if len(ordered) > MOST_NAMED else ""
    return f"{'error' if entries[0].errors else 'accuracy'} {enumerate_words(named)}{more}"


def compared(ranking: Ranking) -> str:
    """Write the comparisons of the best entry with the others, and the cells that they leave out, with the reasons."""
    assert ranking.best is not None
    rows = ranking.by_claim
    others = {claim: enumerate_some([row.other.label for row in found]) for claim, found in rows.items()}
    parts = []
    if ahead := sorted(rows.get("ahead", []), key=lambda row: row.shift.value if row.shift else 0.0):
        more = f" and {len(ahead) - MOST_NAMED} others by more" if len(ahead) > MOST_NAMED else ""
        parts.append(
            f"{ranking.best.label} recalls more than {enumerate_words([*map(lead, ahead[:MOST_NAMED])])}{more}"
        )
    if "not significant" in others:
        first = "it" if parts else f"{ranking.best.label}, which has the best median,"
        parts.append(f"{first} does not differ significantly from {others['not significant']}")
    if "rate decides" in others:
        disagrees = "since the sweep of learning rates does not agree"
        parts.append(f"no order is claimed against {others['rate decides']}, {disagrees}")
    if "not compared" in others:
        parts.append(f"not compared, for lack of two seeds: {others['not compared']}")
    if "untrained" in others:
        parts.append(f"untrained, so no opponent: {others['untrained']}")
    if left_out := [f"{label} ({verdict})" for label, verdict in ranking.verdicts.items() if verdict != "ranks"]:
        parts.append(f"cells left out of the ranking: {enumerate_words(left_out)}")
    return "; ".join(parts)


def lead(row: Comparison) -> str:
    """Write a claimed difference with its interval, adjusted p value and number of seeds."""
    assert row.shift is not None
    level = f", {format_level(row.shift.interval)} interval "
    return f"{row.other.label} ({gap(row.shift, level)}, p {format_p(row.p)})"


def gap(shift: Shift, between: str) -> str:
    """Write a shift and its interval, with words between them."""
    return f"by {shift.value:.3f}{between}{format_interval(shift.interval)}"
