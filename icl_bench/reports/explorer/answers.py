"""Titles of the explorer's figures: the answer that each figure gives, in words, with its uncertainty.

The numbers are those of the report (rankings, fits, windows, survival); a title claims nothing that a report does not.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby

from icl_bench.reports.analysis import Section
from icl_bench.reports.entry import Entry
from icl_bench.reports.parts.accuracy import group_accuracies
from icl_bench.reports.parts.across import Standing
from icl_bench.reports.parts.capacity import load_interval
from icl_bench.reports.parts.findings import gap, medians, no_ranking, short_name, single
from icl_bench.reports.parts.gains import Map, maps_of
from icl_bench.reports.parts.learning import LEVELS, reached
from icl_bench.reports.ranking import Claim, Ranking, judge_cell, rankings
from icl_bench.reports.recall import Recall, recalls
from icl_bench.reports.statistics import median, median_interval, rate_window, survival
from icl_bench.reports.text import (
    enumerate_words,
    format_count,
    format_failures,
    format_interval,
    format_level,
    format_load,
    format_number,
    format_share,
)
from icl_bench.runs.outline import Outline

MOST_IN_TITLE = 2
"""Largest number of entries that a title names one by one."""
OTHER_CLAIMS: Mapping[Claim, str] = {
    "not significant": "does not differ significantly from {}",
    "rate decides": "is ahead of {} at the chosen learning rates only",
    "not compared": "is not compared with {}, for lack of two seeds",
    "untrained": "has no opponent in {}, untrained",
}
"""Claims of a comparison without a difference, in words."""


def recall_answer(section: Section) -> str:
    """Answer which entry recalls most: a sentence for each of up to two groups of matched state, else their numbers."""
    scored = [entry for entry in section.entries if entry.accuracies]
    if not scored or not section.cells:
        return "No run ended with a score"
    if len(scored) == 1:
        return single(scored[0], section)
    ranked = rankings(section)
    if max(ranking.most_seeds for ranking in ranked) == 1:
        return f"No ranking, since every architecture has one seed; {medians(scored)}"
    if len(ranked) <= MOST_IN_TITLE:
        return "; ".join(group_answer(ranking) for ranking in ranked)
    return groups_answer(ranked)


def groups_answer(ranked: Sequence[Ranking]) -> str:
    """Count the groups of matched state in which each family is ahead, with the range of the claimed differences."""
    ahead: Counter[str] = Counter()
    shifts: dict[str, list[float]] = {}
    for ranking in ranked:
        rows = ranking.by_claim.get("ahead", [])
        if ranking.best is not None and rows:
            name = ranking.best.family
            ahead[name] += 1
            shifts.setdefault(name, []).extend(row.shift.value for row in rows if row.shift)
    parts = [
        f"{name} is ahead at {number} of {len(ranked)} (by {span_text(shifts[name], '.3f')})"
        for name, number in ahead.most_common(MOST_IN_TITLE)
    ]
    alone = sum({row.claim for row in ranking.comparisons} == {"untrained"} for ranking in ranked)
    rest = len(ranked) - ahead.total() - alone
    if not parts:
        words = f"In none of {len(ranked)} groups of matched state is a difference significant"
        return words + (f"; at {alone} no opponent is trained" if alone else "")
    parts += [f"no opponent is trained at {alone}"] if alone else []
    parts += [f"no difference is significant at {rest}"] if rest else []
    return f"Of {len(ranked)} groups of matched state, {enumerate_words(parts)}"


def group_answer(ranking: Ranking) -> str:
    """Answer which entry of a group is best, against how many others, and by how much at least."""
    where = f", {ranking.group.where}" if ranking.group.where else ""
    if ranking.best is None:
        return no_ranking(ranking) + where
    if ranking.most_seeds == 1:
        return f"no ranking, since every architecture has one seed{where}"
    rows, name = ranking.by_claim, short_name(ranking.best, ranking)
    if where and name.endswith(where):
        where = ""
    ahead = sorted(rows.get("ahead", []), key=lambda row: row.shift.value if row.shift else 0.0)
    parts = []
    if 0 < len(ahead) <= MOST_IN_TITLE:
        gaps = [f"{short_name(row.other, ranking)} ({gap(row.shift, ' ')})" for row in ahead if row.shift]
        parts.append(f"recalls more than {enumerate_words(gaps)}")
    elif ahead and ahead[0].shift:
        nearest = f"the nearest, {short_name(ahead[0].other, ranking)}, {gap(ahead[0].shift, ' ')}"
        parts.append(f"recalls more than {len(ahead)} of {len(ranking.comparisons)} others ({nearest})")
    for claim, words in OTHER_CLAIMS.items():
        found = [short_name(row.other, ranking) for row in ranking.comparisons if row.claim == claim]
        if found:
            parts.append(words.format(few_names(found)))
    return f"{name}{where} {enumerate_words(parts)}" if parts else f"{name}{where} has the best median"


def few_names(names: Sequence[str]) -> str:
    """Enumerate one or two names, or count more."""
    return enumerate_words(names) if len(names) <= MOST_IN_TITLE else f"{len(names)} others"


def capacity_answer(section: Section) -> str:
    """Answer at which load half of recall is lost: by entry, or the largest and the smallest."""
    fits = [(row, row.capacity.k50) for row in recalls(section) if row.capacity]
    if not fits:
        return "No load at which recall falls to one half can be fitted"
    fits.sort(key=lambda fit: -fit[1].value)
    words = [f"{row.entry.label} at {half_load(row)}" for row, _ in fits]
    unit = section.load_name
    if len(words) <= MOST_IN_TITLE:
        return f"Recall falls to one half for {enumerate_words(words)} {unit}"
    return f"Recall falls to one half latest for {words[0]} {unit}, first for {words[-1]}"


def half_load(row: Recall) -> str:
    """Write K50 with its interval."""
    assert row.capacity is not None
    found = row.capacity.k50
    interval = load_interval(found)
    return f"{format_load(found)} {interval}" if interval[0] == "[" else format_load(found)


def rates_answer(section: Section) -> str:
    """Answer how wide the windows of good learning rates are, of those entries that some rate trained."""
    swept = [entry for entry in section.entries if len(entry.rates) > 1]
    if not swept:
        return "No learning rates were swept"
    swept = [entry for entry in swept if section.any_rate_trained(entry)]
    if not swept:
        return "No learning rate trained a seed"
    windows = sorted(
        (rate_window([rate.rate for rate in one.rates], [max(0.0, rate.score) for rate in one.rates]), one.label)
        for one in swept
    )
    written = [f"{'≥ ' if window.open_end else ''}{window.decades:.2f} ({label})" for window, label in windows]
    edges = sum(entry.at_edge for entry in swept)
    note = f"; {format_count(edges, 'choice')} at an edge of the sweep" if edges else ""
    if len(written) == 1:
        return f"The window of good learning rates spans {written[0]} decades{note}"
    return f"Windows of good learning rates span {written[0]} to {written[-1]} decades{note}"


def learning_answer(section: Section) -> str:
    """Answer which entry first reaches the upper level of validation accuracy, and when."""
    times: list[tuple[float, Entry, int, int]] = []
    validated = [entry for entry in section.entries if any(run.curve for run in entry.scored)]
    for entry in validated:
        found = [reached(run, LEVELS[-1]) for run in entry.scored]
        middle = survival([one.updates for one in found], [one.there for one in found]).median
        if middle is not None:
            times.append((middle, entry, sum(one.there for one in found), len(found)))
    if not validated:
        return "No validation was recorded"
    if not times:
        return f"No architecture reaches a validation accuracy of {LEVELS[-1]} in half of its seeds"
    middle, entry, there, total = min(times, key=lambda row: (row[0], row[1].label))
    when = f"after a median of {format_number(middle)} updates ({there} of {total} seeds)"
    first = f"{entry.label} reaches {LEVELS[-1]} {when}"
    rest = len(validated) - len(times)
    return f"{first}; {rest} of {len(validated)} do not in half of their seeds" if rest else first


def loss_answer(section: Section) -> str:
    """Answer which entry ends with the lowest training loss, by the median over its seeds."""
    ends = [(entry, [run.losses[-1] for run in entry.scored if run.losses]) for entry in section.entries]
    found = sorted((median(losses), entry.label, losses) for entry, losses in ends if losses)
    if not found:
        return "No training loss was recorded"
    middle, label, losses = found[0]
    seeds = format_count(len(losses), "seed")
    first = f"{label} ends with the lowest training loss, {middle:.3g} (median of {seeds}, {span_text(losses)})"
    return first if len(found) == 1 else f"{first}; next is {found[1][1]} with {found[1][0]:.3g}"


def span_text(values: Sequence[float], style: str = ".3g") -> str:
    """Write the least and the largest of some values, once where both are written alike."""
    return " to ".join(dict.fromkeys(format(value, style) for value in (min(values), max(values))))


def failure_answer(runs: Sequence[Outline]) -> str:
    """Answer how many runs failed, and with which status."""
    failed = [run.status for run in runs if run.status != "ok"]
    return (
        f"{format_failures(failed)} of {format_count(len(runs), 'run')}"
        if failed
        else f"No run of {len(runs):,} failed"
    )


def matrix_answer(rows: Sequence[Standing], tasks: int) -> str:
    """Answer which architecture has the best interquartile mean over tasks; empty where none has a score on all."""
    if not rows:
        return ""
    first, *others = sorted(rows, key=lambda row: -row.mean)
    words = f"Over {format_count(tasks, 'task')}, {first.name} has the best interquartile mean, {standing_text(first)}"
    return f"{words}; next is {others[0].name}, {standing_text(others[0])}" if others else words


def standing_text(row: Standing) -> str:
    """Write an interquartile mean with its interval."""
    return f"{format_share(row.mean)} {format_interval(row.interval)}" if row.interval else format_share(row.mean)


def median_text(entry: Entry) -> str:
    """Write the median accuracy of an entry with its interval and level."""
    if entry.interval is None:
        return format_share(entry.accuracy)
    return f"{format_share(entry.accuracy)} {format_interval(entry.interval)} ({format_level(entry.interval)})"


def load_answer(section: Section) -> str:
    """Answer which two medians are best at the largest load that ranks; a statement on medians, and no test."""
    cells = [cell for cell in section.cells if judge_cell(section, section.entries, cell) == "ranks"]
    if not cells:
        return "No load ranks architectures: each is solved by all, or by none above the floor"
    label = max(cells, key=lambda cell: (cell.load, cell.length)).label
    scores = scores_in_cell(section, label)
    measure = "median" if max(len(values) for _, values in scores) > 1 else "accuracy"
    return f"At {label} the best {measure} is that of {best_two(scores)}"


def scores_in_cell(section: Section, label: str) -> list[tuple[Entry, list[float]]]:
    """Return the accuracies of each entry in a cell."""
    found = [(entry, list(entry.in_cell(label).values())) for entry in section.entries]
    return [(entry, values) for entry, values in found if values]


def best_two(scores: Sequence[tuple[Entry, Sequence[float]]]) -> str:
    """Write the best median with its interval, and the next one."""
    rows = sorted(
        ((median(values), entry.label, values) for entry, values in scores), key=lambda row: (-row[0], row[1])
    )
    words = []
    for _, label, values in rows[:2]:
        interval = median_interval(values)
        words.append(f"{label}, {format_share(median(values))}{f' {format_interval(interval)}' if interval else ''}")
    return "; the next that of ".join(words)


def group_positions_answer(section: Section) -> str:
    """Answer where the best median falls most between two groups of scored positions."""
    if len(section.groups) < 2:
        return ""
    best: list[tuple[float, str, str]] = []
    for name in section.groups:
        found = [(median(values), one.label) for one in section.entries if (values := group_accuracies(one, name))]
        best += [(*max(found), name)] if found else []
    if len(best) < 2:
        return ""
    (most, first, easy), (least, last, hard) = max(best), min(best)
    if format_share(most) == format_share(least):
        return f"The best median is {format_share(least)} at all of {len(best)} groups of positions"
    return (
        f"The best median is highest at {easy}, {format_share(most)} ({first}), and lowest at {hard}, "
        f"{format_share(least)} ({last})"
    )


def map_answer(section: Section) -> str:
    """Answer over how many decades of rates most seeds train at every gain of a map, and where they do at none."""
    spans = {arch: common_rates(places) for arch, places in maps_of(section).items()}
    widths = {arch: math.log10(rates[-1] / rates[0]) for arch, rates in spans.items() if rates}
    without = format_count(len(spans) - len(widths), "architecture")
    if not widths:
        return f"At no learning rate most seeds train at every gain, with any of {without}" if spans else ""
    widest = max(widths.values())
    best = [arch for arch, width in widths.items() if width > widest - 1e-9]
    ends = {(spans[arch][0], spans[arch][-1]) for arch in best}
    where = f", from {spans[best[0]][0]:.2g} to {spans[best[0]][-1]:.2g}" if len(ends) == 1 else ""
    others = f"; with {without} at no rate" if len(widths) < len(spans) else ""
    most = f", the most of {len(spans)}" if MOST_IN_TITLE >= len(best) < len(spans) else ""
    over = f"at every gain over {widest:.1f} decades of learning rates{most}{where}"
    names = enumerate_words(best) if len(best) <= MOST_IN_TITLE else f"{len(best)} of {len(spans)} architectures"
    return f"With {names} most seeds train {over}{others}"


def common_rates(places: Map) -> list[float]:
    """Return the longest run of neighbouring rates at which most seeds trained at every gain."""
    rates = sorted({rate for rate, _ in places})
    failing = {rate for (rate, _), place in places.items() if place.kind != "trained"}
    runs = [list(run) for fails, run in groupby(rates, key=failing.__contains__) if not fails]
    return max(runs, key=len, default=[])


FIGURE_ANSWERS: Mapping[str, Callable[[Section], str]] = {
    "recall-by-state": recall_answer,
    "accuracy-by-load": load_answer,
    "accuracy-by-group": group_positions_answer,
    "capacity": capacity_answer,
    "learning-rates": rates_answer,
    "learning-curves": learning_answer,
    "gains": map_answer,
}
"""Answers that the figures of a report give, by the name of the figure."""


def figure_title(name: str, section: Section) -> str:
    """Return the title of a figure, the answer that it gives; empty where it gives none."""
    answer = FIGURE_ANSWERS[name](section) if name in FIGURE_ANSWERS else ""
    return f"{answer[0].upper()}{answer[1:]}" if answer.startswith("no ") else answer
