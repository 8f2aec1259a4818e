"""Differences between two stores: entries with equal labels on equal tasks, compared by ranks."""

from collections.abc import Sequence
from typing import Any

from icl_bench.reports.analysis import Section
from icl_bench.reports.ranking import SIGNIFICANT
from icl_bench.reports.statistics import holm, median, rank_test, shift_between
from icl_bench.reports.text import format_count

DIGITS = 4


def store_differences(first: Sequence[Section], second: Sequence[Section]) -> dict[str, Any]:
    """Compare the entries of two stores that have the same task and label.

    A difference is marked where the rank test, adjusted by Holm's method for all rows, finds one at 5 %. Runs of
    equal seeds and settings are the same run, so that equal stores differ nowhere.
    """
    pairs = [
        (one.task, entry, other)
        for one in first
        for two in second
        if one.task == two.task
        for entry in one.entries
        for other in two.entries
        if entry.label == other.label and entry.accuracies and other.accuracies
    ]
    samples = [(list(entry.accuracies.values()), list(other.accuracies.values())) for _, entry, other in pairs]
    tested = [i for i, (mine, theirs) in enumerate(samples) if min(len(mine), len(theirs)) > 1]
    adjusted = dict(zip(tested, holm([rank_test(*samples[i]) for i in tested]), strict=True))
    rows: list[dict[str, Any]] = []
    for i, (task, entry, _) in enumerate(pairs):
        mine, theirs = samples[i]
        shift = shift_between(theirs, mine) if i in adjusted else None
        rows.append(
            {
                "task": task,
                "label": entry.label,
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
