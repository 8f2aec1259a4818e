"""The data document of the explorer: what is known of stores, tasks, entries and runs, as plain JSON.

Runs are one table, column by column, which is shorter when it is compressed. Runs that measure have scores and curves;
of the others, the outline is enough. Medians, intervals, fits and titles are computed here, of all seeds that measure.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from icl_bench.errors import RecordError
from icl_bench.escapes import plain
from icl_bench.reports.analysis import Section
from icl_bench.reports.context import StudyContext
from icl_bench.reports.entry import Entry, cell_of
from icl_bench.reports.explorer import answers
from icl_bench.reports.explorer.differences import store_differences
from icl_bench.reports.explorer.glossary import GLOSSARY
from icl_bench.reports.fits import Load
from icl_bench.reports.parts.accuracy import LOG_FROM, group_accuracies
from icl_bench.reports.parts.across import ranks, scored_by_name, standings
from icl_bench.reports.parts.findings import findings
from icl_bench.reports.parts.limits import limits
from icl_bench.reports.parts.rates import rate_place
from icl_bench.reports.ranking import Ranking, judge_cell, matched_state, rankings
from icl_bench.reports.recall import Recall, recalls
from icl_bench.reports.statistics import (
    Interval,
    chance_corrected,
    median,
    median_interval,
    rate_window,
    wilson,
)
from icl_bench.reports.text import format_count, format_failures
from icl_bench.runs.columns import power_of
from icl_bench.runs.kept import Samples
from icl_bench.runs.outline import MeasuredRun
from icl_bench.runs.record import SOLVED

DOCUMENT_SCHEMA = 2
"""Version of the layout of the document."""
DIGITS = 4
"""Decimals of accuracies in the document."""
MOST_CROSSED = 80
"""Largest number of entries of a task whose crossings are listed."""
MOST_EXAMPLES = 4
"""Largest number of kept examples of a run and cell that the document has."""
MOST_POINTS = 120
"""Largest number of validations of a run that the document has: a small chart has a pixel or two for each."""
RUN_FIELDS = (
    *("id", "section", "entry", "seed", "lr", "status", "role", "locked", "validation", "accuracy", "exact"),
    *("cells", "curve", "losses", "command", "device", "detail"),
)
"""Columns of runs. Role: `measures`, `chooses` (a seed that chose the learning rate) or `other`. Cells: accuracies in
the order of the section's cells. Curve: step and validation accuracy in turn. Losses: the mean training loss before
each of these validations. Command and device: places in lists."""


class ViewedStore(NamedTuple):
    """A store that the explorer shows."""

    name: str
    sections: Sequence[Section]
    problems: Sequence[RecordError] = ()
    """Errors of records that could not be read."""
    samples: Sequence[Samples] = ()
    """Kept examples of some of its runs."""


class Numbered:
    """Distinct texts by place, in the order of their first use."""

    def __init__(self) -> None:
        self.places: dict[str, int] = {}

    def place(self, text: str) -> int:
        """Return the place of a text, and add it if it is new."""
        return self.places.setdefault(plain(text), len(self.places))


def explorer_document(stores: Sequence[ViewedStore], title: str, command: str) -> dict[str, Any]:
    """Return the data document of stores; equal records give an equal document, in whatever order they come."""
    commands, devices = Numbered(), Numbered()
    sections: list[dict[str, Any]] = []
    runs: list[list[Any]] = []
    samples: list[dict[str, Any]] = []
    for number, store in enumerate(stores):
        for section in store.sections:
            place = len(sections)
            sections.append({"store": number, **section_fields(section)})
            runs += run_rows(section, place, commands, devices)
        samples += [sample_fields(one) for one in store.samples]
    return {
        "schema": DOCUMENT_SCHEMA,
        "title": title,
        "command": command,
        "stores": [store_fields(store) for store in stores],
        "sections": sections,
        "runs": {name: [row[i] for row in runs] for i, name in enumerate(RUN_FIELDS)},
        "commands": [*commands.places],
        "devices": [*devices.places],
        "samples": samples,
        "differences": store_differences(*(store.sections for store in stores)) if len(stores) == 2 else None,
        "glossary": dict(GLOSSARY),
    }


def store_fields(store: ViewedStore) -> dict[str, Any]:
    """Return the name, totals, problems and matrix of a store."""
    runs = [run for section in store.sections for run in section.runs]
    rows = standings(store.sections)
    ranked = sum(map(ranks, store.sections))
    return {
        "name": store.name,
        "totals": f"{format_count(len(runs), 'run')}, {format_failures(run.status for run in runs)}",
        "problems": sorted(map(str, store.problems)),
        "failures": answers.failure_answer(runs),
        "matrix": answers.matrix_answer(rows, ranked),
        "study": study_fields(store.sections[0].context) if store.sections else None,
        "standings": [
            {"name": row.name, "mean": to_digits(row.mean), "interval": interval_of(row.interval)} for row in rows
        ],
    }


def study_fields(context: StudyContext) -> dict[str, Any] | None:
    """Return the texts of a study; None for a store without one."""
    if context.name is None:
        return None
    lists = ("hypotheses", "conclusions", "corrections", "left_out")
    texts = {name: list(getattr(context, name)) for name in lists}
    return {"name": context.name, "question": context.question, **texts}


def section_fields(section: Section) -> dict[str, Any]:
    """Return the fields of a task: cells, texts, groups of matched state, and entries."""
    loads = [cell.load for cell in section.cells]
    logarithmic = bool(loads) and min(loads) > 0 and max(loads) >= LOG_FROM * min(loads)
    ranked = rankings(section)
    recalled = {row.entry: row for row in recalls(section)}
    names = {entry: name for name, entry in scored_by_name(section).items()}
    return {
        "task": section.task,
        "load": section.load_name,
        "logarithmic": logarithmic and len(set(loads)) == len(loads),
        "byLoad": len(set(loads)) == len(loads),
        "cells": [
            {
                "label": cell.label,
                "load": cell.load,
                "length": cell.length,
                "floor": to_digits(section.floors[cell.label].accuracy),
                "solver": section.floors[cell.label].solver,
                "verdict": judge_cell(section, section.entries, cell),
            }
            for cell in section.cells
        ],
        "floor": to_digits(section.mean_floor),
        "ranks": ranks(section),
        "matched": matched_state(section.entries),
        "families": list(section.families),
        "groupNames": list(section.groups),
        "question": next(iter(findings(section)), "").removeprefix("Question: "),
        "limits": limits(section, ranked).removeprefix("Limits: "),
        "answers": {
            "recall": answers.recall_answer(section),
            "capacity": answers.capacity_answer(section),
            "rates": answers.rates_answer(section),
            "learning": answers.learning_answer(section),
            "loss": answers.loss_answer(section),
            "failures": answers.failure_answer(section.runs),
        },
        "groups": [group_fields(section, ranking) for ranking in ranked],
        "crossings": crossings(section),
        "published": [point._asdict() for point in section.context.published],
        "entries": [entry_fields(section, one, recalled.get(one), names.get(one)) for one in section.entries],
    }


def group_fields(section: Section, ranking: Ranking) -> dict[str, Any]:
    """Return a group of matched state: its entries and its answer."""
    sizes = [entry.state_elements for entry in ranking.entries if entry.state_elements is not None]
    return {
        "entries": [section.entries.index(entry) for entry in ranking.entries],
        "matched": ranking.group.matched,
        "where": ranking.group.where,
        "sizes": [min(sizes), max(sizes)] if sizes else None,
        "answer": answers.group_answer(ranking),
        "best": None if ranking.best is None else section.entries.index(ranking.best),
    }


def crossings(section: Section) -> list[list[int]]:
    """Return where medians of two entries change their order: both entries, and the cells before and after.

    Both medians differ before and after, and the better one is above the floor: at the floor, lines cross by chance.
    """
    labels = [cell.label for cell in section.cells]
    floors = [section.floors[label].accuracy + section.floors[label].error for label in labels]
    medians = [[entry.median_in(label) for label in labels] for entry in section.entries]
    return [
        [i, k, cell, cell + 1]
        for i, k in itertools.combinations(range(min(len(medians), MOST_CROSSED)), 2)
        for cell in range(len(labels) - 1)
        if crosses([(medians[i][at], medians[k][at], floors[at]) for at in (cell, cell + 1)])
    ]


def crosses(pairs: Sequence[tuple[float | None, float | None, float]]) -> bool:
    """Return whether two medians change their order between two cells: each a pair of medians and a floor.

    >>> crosses([(0.9, 0.8, 0.1), (0.3, 0.5, 0.1)]), crosses([(0.9, 0.8, 0.1), (0.5, 0.5, 0.1)])
    (True, False)
    """
    if any(first is None or second is None for first, second, _ in pairs):
        return False
    signs = [(first or 0.0) - (second or 0.0) for first, second, _ in pairs]
    above = all(max(first or 0.0, second or 0.0) > floor for first, second, floor in pairs)
    return above and signs[0] * signs[1] < 0


def entry_fields(section: Section, entry: Entry, recalled: Recall | None, name: str | None) -> dict[str, Any]:
    """Return the fields of an entry: sizes, scores over seeds, fits, sweep and speed of learning."""
    scores = list(entry.accuracies.values())
    corrected = section.corrected_scores(entry)
    capacity = recalled.capacity if recalled else None
    return {
        "label": entry.label,
        "name": name,
        "family": entry.family,
        "p": power_of(entry.example_outline.setting.spec),
        "elements": entry.state_elements,
        "bytes": entry.state_bytes,
        "params": entry.example.result.params or None,
        "rate": entry.rate,
        "training": section.training(entry),
        "seeds": len(scores),
        "median": to_digits(entry.accuracy),
        "interval": interval_of(entry.interval),
        "score": answers.median_text(entry),
        "error": to_digits(entry.error),
        "corrected": to_digits(median(corrected)) if corrected else None,
        "correctedInterval": interval_of(median_interval(corrected)),
        "solved": proportion(entry.solved_seeds, len(scores)),
        "locked": proportion(len(section.locked_seeds(entry)), len(scores)),
        "cells": [cell_fields(section, entry, cell.label) for cell in section.cells],
        "groups": [
            to_digits(median(found)) if (found := group_accuracies(entry, name)) else None for name in section.groups
        ],
        "k50": load_fields(capacity.k50) if capacity else None,
        "k90": load_fields(capacity.k90) if capacity else None,
        "predicted": recalled.predicted if recalled else None,
        "bits": recalled.bits if recalled else None,
        **rate_fields(section, entry),
    }


def cell_fields(section: Section, entry: Entry, label: str) -> list[Any] | None:
    """Return the median of a cell, its interval, the median corrected by the floor, and the solved seeds."""
    found = list(entry.in_cell(label).values())
    if not found:
        return None
    middle, solved = median(found), sum(value >= SOLVED for value in found)
    corrected = chance_corrected(middle, section.floors[label].accuracy)
    return [
        to_digits(middle),
        interval_of(median_interval(found)),
        to_digits(corrected),
        proportion(solved, len(found)),
    ]


def rate_fields(section: Section, entry: Entry) -> dict[str, Any]:
    """Return the sweep of learning rates: rates with medians, the width of the window, and the place of the choice."""
    scores = [max(0.0, rate.score) for rate in entry.rates]
    window = rate_window([rate.rate for rate in entry.rates], scores)
    swept = len(entry.rates) > 1
    return {
        "rates": [[rate.rate, to_digits(score)] for rate, score in zip(entry.rates, scores, strict=True)],
        "window": round(window.decades, 2) if swept else None,
        "openEnd": window.open_end,
        "place": rate_place(entry, section) if swept else "not swept",
    }


def load_fields(found: Load) -> dict[str, Any]:
    """Return a load, its side of the measured loads, and its interval."""
    return {"value": round(found.value, 3), "side": found.side, "interval": interval_of(found.interval)}


def run_rows(section: Section, place: int, commands: Numbered, devices: Numbered) -> Iterable[list[Any]]:
    """Yield the row of each run, by entry, rate and seed; a run of a study names the command of the study."""
    for number, entry in enumerate(section.entries):
        measuring = {run.id for run in entry.measuring}
        locked = set(section.locked_seeds(entry))
        for run in entry.runs:
            role = "measures" if run.id in measuring else "chooses" if run.seeds in entry.choosing_seeds else "other"
            loaded = entry.load(run.id) if role == "measures" or run.status != "ok" else None
            command = f"icl-bench sweep {section.context.name}" if section.context.name else run.environment.command
            place_of = (commands.place(command), devices.place(run.environment.device))
            scores = run_scores(section, loaded if role == "measures" else None)
            detail = (loaded.result.detail or "").strip().splitlines()[-1:] if loaded else []
            own = [run.id, place, number, run.seeds[0], run.lr, run.status, role, int(run.seeds in locked)]
            yield [*own, to_digits(run.validation), *scores, *place_of, detail[0] if detail else None]


def run_scores(section: Section, run: MeasuredRun | None) -> list[Any]:
    """Return accuracy, exact match, accuracy by cell, curve and losses; a diverged run has accuracy 0."""
    if run is None or run.result.status not in ("ok", "diverged"):
        return [None] * 5
    result = run.result
    failed = 0.0 if result.status == "diverged" else None
    found = [cell_of(run, cell.label) for cell in section.cells]
    cells = [failed if cell is None else to_digits(cell.accuracy) for cell in found]
    kept = spread_points(len(run.curve))
    curve = [value for i in kept for value in (run.curve[i][0], to_digits(run.curve[i][1]))]
    losses = [float(f"{run.losses[i]:.{DIGITS}g}") for i in kept]
    return [to_digits(result.accuracy), to_digits(result.exact_match), cells, curve, losses]


def spread_points(number: int) -> list[int]:
    """Return the places of so many points, or of 120 that lie evenly among them, the first and the last included.

    >>> spread_points(3), spread_points(1000)[:3], spread_points(1000)[-1]
    ([0, 1, 2], [0, 8, 17], 999)
    """
    if number <= MOST_POINTS:
        return list(range(number))
    return [round(i * (number - 1) / (MOST_POINTS - 1)) for i in range(MOST_POINTS)]


def sample_fields(samples: Samples) -> dict[str, Any]:
    """Return the first kept examples of each cell of a run."""
    return {
        "run": samples.id,
        "cells": [
            {
                "label": cell.label,
                "examples": [
                    {
                        "inputs": list(one.inputs),
                        "positions": list(one.positions),
                        "targets": list(one.targets),
                        "answers": list(one.answers),
                        "hits": [to_digits(hit) for hit in one.hits],
                        "groups": list(one.groups),
                        "chances": [to_digits(chance) for chance in one.target_probabilities or ()] or None,
                    }
                    for one in cell.examples[:MOST_EXAMPLES]
                ],
            }
            for cell in samples.cells
        ],
    }


def proportion(number: int, total: int) -> list[float] | None:
    """Return a number of runs, their total, and Wilson's interval of the proportion; None of no runs."""
    if not total:
        return None
    interval = wilson(number, total)
    return [number, total, round(interval.low, DIGITS), round(interval.high, DIGITS)]


def interval_of(interval: Interval | None) -> list[float] | None:
    """Return ends and level of an interval."""
    return None if interval is None else [round(value, DIGITS) for value in interval]


def to_digits(value: float | None) -> float | None:
    """Round an accuracy for the document."""
    return None if value is None else round(value, DIGITS)
