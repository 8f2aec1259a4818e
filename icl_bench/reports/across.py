"""Several tasks side by side: chance-corrected accuracy by task and architecture, and its interquartile mean."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from icl_bench.reports.analysis import Entry, Section
from icl_bench.reports.naming import natural_key
from icl_bench.reports.statistics import Interval, aggregate, median
from icl_bench.reports.tables import Name, Table, corrected_scores
from icl_bench.reports.text import NONE, bracketed, share


class Standing(NamedTuple):
    """An architecture over all tasks."""

    name: str
    by_task: Sequence[Sequence[float]]
    """Chance-corrected accuracy of each seed, [task][seed]."""
    mean: float
    """Interquartile mean."""
    interval: Interval
    """Its 95 % interval, by a bootstrap stratified by task."""


def standings(sections: Sequence[Section]) -> list[Standing]:
    """Architectures that have a score on all of two tasks or more, by name.

    An architecture is the same on two tasks where its label is; where its dimensions were matched task by task, so that
    labels differ, where its family is, if it has one size in each task.
    """
    if len(sections) < 2:
        return []
    known = [scored_by_name(section) for section in sections]
    names = sorted(set.intersection(*(set(found) for found in known)), key=natural_key)
    found = []
    for name in names:
        scores = [corrected_scores(section, by[name]) for section, by in zip(sections, known, strict=True)]
        if all(scores):
            found.append(Standing(name, scores, *aggregate(scores)))
    return found


def scored_by_name(section: Section) -> Mapping[str, Entry]:
    """Entries with a score: by family where it has one alone, else by label."""
    entries = [entry for entry in section.entries if entry.accuracies]
    families = [entry.family for entry in entries]
    return {entry.family if families.count(entry.family) == 1 else entry.label: entry for entry in entries}


def aggregate_table(sections: Sequence[Section]) -> Table:
    """Interquartile means over tasks, best first, between floor and oracle; empty for one task."""
    found = sorted(standings(sections), key=lambda row: -row.mean)
    header = ("architecture", "tasks", "interquartile mean", "95 % interval")
    rows = [(Name(row.name), str(len(sections)), share(row.mean), bracketed(row.interval)) for row in found]
    floor, oracle = ((Name(name), NONE, share(value), NONE) for name, value in (("floor", 0.0), ("oracle", 1.0)))
    return Table(header, (*rows, floor, oracle) if rows else ())


def task_table(sections: Sequence[Section]) -> Table:
    """Median over seeds by task and architecture; empty for one task."""
    found = standings(sections)
    header = ("task", *(Name(row.name) for row in found))
    rows = [
        (Name(section.task), *(share(median(list(row.by_task[i]))) for row in found))
        for i, section in enumerate(sections)
    ]
    return Table(header, tuple(rows) if found else ())
