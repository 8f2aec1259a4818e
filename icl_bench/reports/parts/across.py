"""Several tasks together: chance-corrected accuracy by task and architecture, and its interquartile mean."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from icl_bench.reports.analysis import Section
from icl_bench.reports.blocks import Content, Name, Prose, Table, titled
from icl_bench.reports.entry import Entry
from icl_bench.reports.naming import natural_key
from icl_bench.reports.ranking import judge_cell
from icl_bench.reports.statistics import Interval, aggregate, median
from icl_bench.reports.text import NONE, enumerate_words, format_interval, format_share

NOTE = (
    "Chance-corrected accuracy, (accuracy - floor) / (1 - floor), mean over the cells of a task. By task: median over "
    "seeds. Over tasks: interquartile mean over all runs, in which every task has the same weight, with a Student "
    "interval by the standard error of a bootstrap over the seeds of each task. The tasks are fixed: the interval says "
    "nothing about other tasks, and two intervals that lie apart are no test of two architectures."
)


class Standing(NamedTuple):
    """The scores of an architecture on all tasks."""

    name: str
    by_task: Sequence[Sequence[float]]
    """Chance-corrected accuracy of each seed, [task][seed]."""
    mean: float
    """Interquartile mean over the tasks that rank architectures."""
    interval: Interval | None
    """95 % interval of the interquartile mean; none where a task has one seed."""


def standings(sections: Sequence[Section]) -> list[Standing]:
    """Return the architectures that have a score on every task, by name; none where there is one task.

    Entries on two tasks are the same architecture where their labels are equal. Where dimensions were matched task by
    task, labels differ: then entries are the same where their families are, if a family has one entry on each task.
    """
    ranking = [i for i, section in enumerate(sections) if ranks(section)]
    if len(sections) < 2 or not ranking:
        return []
    known = [scored_by_name(section) for section in sections]
    names = sorted(set.intersection(*(set(found) for found in known)), key=natural_key)
    found = []
    for name in names:
        scores = [section.corrected_scores(by[name]) for section, by in zip(sections, known, strict=True)]
        if all(scores):
            found.append(Standing(name, scores, *aggregate([scores[i] for i in ranking])))
    return found


def ranks(section: Section) -> bool:
    """Return whether any cell can rank architectures; false where all solve each, or none is above its floor."""
    return any(judge_cell(section, section.entries, cell) == "ranks" for cell in section.cells)


def scored_by_name(section: Section) -> Mapping[str, Entry]:
    """Return the entries with a score: by family where a family has one entry, else by label."""
    entries = [entry for entry in section.entries if entry.accuracies]
    families = [entry.family for entry in entries]
    return {entry.family if families.count(entry.family) == 1 else entry.label: entry for entry in entries}


def aggregate_table(rows: Sequence[Standing], tasks: int) -> Table:
    """Make a table of interquartile means over this many tasks, best first, with floor and oracle."""
    header = ("architecture", "tasks", "interquartile mean", "95 % interval")
    cells = [
        (Name(row.name), str(tasks), format_share(row.mean), format_interval(row.interval))
        for row in sorted(rows, key=lambda row: -row.mean)
    ]
    ends = [(Name(name), NONE, format_share(value), NONE) for name, value in (("floor", 0.0), ("oracle", 1.0))]
    return Table(header, (*cells, *ends) if rows else ())


def task_table(sections: Sequence[Section], rows: Sequence[Standing]) -> Table:
    """Make a table of the median over seeds by task and architecture, the more numerous of them downwards."""
    names, tasks = [Name(row.name) for row in rows], [Name(section.task) for section in sections]
    medians = [[format_share(median(list(scores))) for scores in row.by_task] for row in rows]
    if len(rows) > len(sections):
        cells = tuple((name, *of_tasks) for name, of_tasks in zip(names, medians, strict=True))
        return Table(("architecture", *tasks), cells)
    cells = tuple((task, *(of_tasks[i] for of_tasks in medians)) for i, task in enumerate(tasks))
    return Table(("task", *names), cells if rows else ())


def across_blocks(sections: Sequence[Section]) -> list[Content]:
    """Return the tables over all tasks; empty where no architecture has a score on two tasks or more."""
    rows, left_out = standings(sections), [section.task for section in sections if not ranks(section)]
    note = f"{NOTE} Left out of it, as none of their cells ranks: {enumerate_words(left_out)}." if left_out else NOTE
    table = aggregate_table(rows, len(sections) - len(left_out))
    return titled(2, "Across tasks", task_table(sections, rows), table, Prose(note))
