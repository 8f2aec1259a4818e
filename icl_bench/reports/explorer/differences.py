"""Differences between two stores: equal entries on equal tasks, compared by ranks."""

from collections.abc import Iterator, Sequence
from typing import Any

from icl_bench.reports.analysis import Section
from icl_bench.reports.entry import Entry
from icl_bench.reports.naming import flatten
from icl_bench.reports.ranking import SIGNIFICANT
from icl_bench.reports.statistics import holm, median, rank_test, shift_between
from icl_bench.reports.text import format_count
from icl_bench.runs.spec import FORMER_VALUES

DIGITS = 4


def store_differences(first: Sequence[Section], second: Sequence[Section]) -> dict[str, Any]:
    """Compare the entries that two stores have of the same task.

    An entry is compared with that of the same specification in the other store, else with that of the same label: what
    a label names depends on what else is in its store. A difference is marked where the rank test, adjusted by Holm's
    method for all rows, finds one at 5 %. Runs of equal seeds and settings are the same run, so that equal stores
    differ nowhere.
    """
    pairs = [
        (one.task, entry, other)
        for one in first
        for two in second
        if one.task == two.task
        for entry, other in counterparts(one, two)
    ]
    samples = [(list(entry.accuracies.values()), list(other.accuracies.values())) for _, entry, other in pairs]
    tested = [i for i, (mine, theirs) in enumerate(samples) if min(len(mine), len(theirs)) > 1]
    adjusted = dict(zip(tested, holm([rank_test(*samples[i]) for i in tested]), strict=True))
    rows: list[dict[str, Any]] = []
    for i, (task, entry, other) in enumerate(pairs):
        mine, theirs = samples[i]
        shift = shift_between(theirs, mine) if i in adjusted else None
        rows.append(
            {
                "task": task,
                "labels": [entry.label, other.label],
                "first": [round(median(mine), DIGITS), len(mine)],
                "second": [round(median(theirs), DIGITS), len(theirs)],
                "shift": shift and [round(value, DIGITS) for value in (shift.value, *shift.interval[:2])],
                "p": None if i not in adjusted else round(adjusted[i], 6),
                "differs": i in adjusted and adjusted[i] < SIGNIFICANT,
            }
        )
    differing = sum(row["differs"] for row in rows)
    common = format_count(len(rows), "architecture")
    return {"title": f"{differing} of {common} that both stores have differ significantly", "rows": rows}


def counterparts(one: Section, two: Section) -> Iterator[tuple[Entry, Entry]]:
    """Yield the scored entries of a section, each with its counterpart in the section of the other store."""
    scored = [entry for entry in two.entries if entry.accuracies]
    by_setting = {fields_of_setting(entry): entry for entry in scored}
    by_label = {entry.label: entry for entry in scored}
    for entry in one.entries:
        other = by_setting.get(fields_of_setting(entry)) or by_label.get(entry.label)
        if entry.accuracies and other is not None:
            yield entry, other


def fields_of_setting(entry: Entry) -> frozenset[tuple[str, str]]:
    """Return the fields of the specification of an entry, without seeds and learning rate."""
    return frozenset({**FORMER_VALUES, **flatten(entry.example_outline.setting.spec)}.items())
