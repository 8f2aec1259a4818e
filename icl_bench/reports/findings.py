"""The question and what was found, in up to three sentences made from the numbers."""

from collections.abc import Sequence

from icl_bench.reports.analysis import CellInfo, Entry, Section
from icl_bench.reports.ranking import SIGNIFICANT, Comparison, Ranking, matched_state
from icl_bench.reports.text import count, listed, share

NAMED = 6
"""Most entries that a sentence names."""


def findings(section: Section, ranking: Ranking) -> list[str]:
    """Up to three sentences: the question, what was found, and what limits it."""
    return [
        sentence for sentence in (question(section), answer(section, ranking), limits(section, ranking)) if sentence
    ]


def question(section: Section) -> str:
    """What was asked."""
    names = [entry.label for entry in section.entries]
    who = listed(names) if len(names) <= NAMED else f"{len(names)} architectures of {listed(section.families)}"
    do = "does" if len(names) == 1 else "do"
    return f"Asked: how much of {section.task} {do} {who} recall{loads(section)}{state_clause(section)}?"


def loads(section: Section) -> str:
    """The range of loads."""
    values = sorted({cell.load for cell in section.cells})
    if not values:
        return ""
    return f" at {values[0]}" + (f" to {values[-1]}" if len(values) > 1 else "") + f" {section.load_name}"


def state_clause(section: Section) -> str:
    """How much state the entries carry, and whether it is matched."""
    sizes = sorted(entry.state_elements for entry in section.entries if entry.state_elements is not None)
    if not sizes:
        return ""
    if len(section.entries) == 1:
        return f", with {sizes[0]:,} state elements"
    if matched_state(section.entries):
        return f", at matched state ({span(sizes)} elements)"
    return f", at unequal state ({span(sizes)} elements)"


def span(values: Sequence[int]) -> str:
    """Smallest and largest of sorted numbers."""
    return f"{values[0]:,}" if values[0] == values[-1] else f"{values[0]:,} to {values[-1]:,}"


def answer(section: Section, ranking: Ranking) -> str:
    """What was found, as far as the numbers carry it."""
    scored = [entry for entry in section.entries if entry.accuracies]
    if not scored or not section.cells:
        return "Found: nothing; no run ended with a score."
    if ranking.best is None:
        return f"Found: {single(scored[0], section)}." if len(scored) == 1 else f"Found: {no_ranking(ranking)}."
    if max(len(entry.accuracies) for entry in scored) == 1:
        return f"Found: one seed each, so no ranking is claimed; {medians(scored)}."
    return f"Found: {compared(ranking)}{cells_clause(ranking, section.cells)}."


def single(entry: Entry, section: Section) -> str:
    """The result of a lone entry."""
    assert entry.accuracy is not None
    seeds = len(entry.accuracies)
    what = "an accuracy" if seeds == 1 else f"a median accuracy over {seeds} seeds"
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
    named = [f"{entry.label} {share(entry.accuracy)}" for entry in ordered[:NAMED]]
    return "accuracy " + listed(named) + (f" and {len(ordered) - NAMED} more below" if len(ordered) > NAMED else "")


def compared(ranking: Ranking) -> str:
    """The best entry against the others."""
    assert ranking.best is not None
    ahead = [row for row in ranking.comparisons if row.separated]
    tied = [row.other.label for row in ranking.comparisons if not row.separated and row.learnable]
    limited = [row.other.label for row in ranking.comparisons if not row.learnable]
    parts = []
    if ahead:
        named = [lead(row) for row in sorted(ahead, key=lambda row: row.difference.mean if row.difference else 0.0)]
        more = f" and {len(named) - NAMED} others by more" if len(named) > NAMED else ""
        parts.append(f"{ranking.best.label} recalls more than {listed(named[:NAMED])}{more}")
    if tied:
        first = "it" if ahead else f"{ranking.best.label}, which has the best median,"
        parts.append(f"{first} is not separated from {some(tied)} by these seeds")
    if limited:
        parts.append(f"against {some(limited)} the sweep of learning rates disagrees, so no order is claimed")
    return "; ".join(parts)


def some(labels: Sequence[str]) -> str:
    """Labels, or how many there are."""
    return listed(labels) if len(labels) <= NAMED else f"{len(labels)} others"


def lead(row: Comparison) -> str:
    """A difference that is claimed."""
    assert row.difference is not None
    low, high = max(-1.0, row.difference.low), min(1.0, row.difference.high)
    p = "< 0.001" if row.p < 0.001 else f"= {row.p:.3f}"
    seeds = count(row.difference.pairs, "seed")
    return f"{row.other.label} (by {row.difference.mean:.3f}, 95 % [{low:.3f}, {high:.3f}], p {p}, {seeds})"


def cells_clause(ranking: Ranking, cells: Sequence[CellInfo]) -> str:
    """Which cells the comparison rests on, where not on all."""
    left_out = [
        f"{cell.label} ({ranking.verdicts[cell.label]})" for cell in cells if cell.label not in ranking.ranking_cells
    ]
    return f"; left out as they do not rank: {listed(left_out)}" if left_out else ""


def limits(section: Section, ranking: Ranking) -> str:
    """What the numbers do not carry."""
    notes = []
    untuned = [entry.label for entry in section.entries if len(entry.rates) == 1]
    edge = [entry.label for entry in section.entries if entry.at_edge]
    reused = [entry.label for entry in section.entries if len(entry.rates) > 1 and not entry.fresh]
    few = sorted({len(entry.accuracies) for entry in section.entries if 0 < len(entry.accuracies) < 5})
    if untuned:
        notes.append(f"one learning rate was tried for {whom(untuned, section)}")
    if edge:
        notes.append(f"the best learning rate of {whom(edge, section)} lies at the edge of the sweep")
    if reused:
        notes.append(f"the seeds of {whom(reused, section)} both chose the rate and measure")
    if few and max(few) > 1:
        notes.append(f"{few[0]}{f' to {few[-1]}' if len(few) > 1 else ''} seeds are few (at least 5 are asked for)")
    bimodal = [entry.label for entry in section.entries if entry.bimodal]
    if bimodal:
        notes.append(f"some seeds of {whom(bimodal, section)} solve and others do not, so means mislead")
    failed = sum(len(entry.failed) for entry in section.entries)
    if failed:
        notes.append(f"{count(failed, 'run')} failed")
    if ranking.best and any(row.difference is None for row in ranking.comparisons) and few != [1]:
        notes.append("some architectures share fewer than two seeds with the best and are not compared")
    return f"Limits: {'; '.join(notes)}." if notes else ""


def whom(labels: Sequence[str], section: Section) -> str:
    """Labels, shortened where they are all or many."""
    if len(labels) == len(section.entries) and len(labels) > 1:
        return "every architecture"
    return some(labels)


def significance_note() -> str:
    """How differences are judged, for the notes under a table."""
    return f"paired t over common seeds, adjusted by Holm's method, claimed below p = {SIGNIFICANT}"
