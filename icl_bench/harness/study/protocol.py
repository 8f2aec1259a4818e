"""The protocol of a study: match sizes, choose learning rates on validation accuracy, measure fresh seeds.

A study runs in two phases. Tuning trains a grid of learning rates on seeds of its own, and extends the grid until the
best rate is an interior point. Measuring trains fresh seeds at the chosen rate. All runs are ordinary runs, found in
the store by their ids, so that a study can grow without repeating a finished run.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from icl_bench.errors import StateBudgetError
from icl_bench.harness.engines.base import Executor
from icl_bench.harness.matching import Budget, Match, Shape, match
from icl_bench.harness.resolve import Request, expand_request, make_task, model_of, task_component
from icl_bench.harness.study.file import Study
from icl_bench.runs.rates import SCORED, choose_rate, rate_score, validation_accuracy
from icl_bench.runs.record import RunRecord
from icl_bench.runs.spec import RunSpec
from icl_bench.runs.store import Store

MOST_EXTENSIONS = 4
"""Largest number of points by which a grid of learning rates may grow on each side."""


class Contender(NamedTuple):
    """An architecture at one size on one task."""

    task: str
    arch: str
    """Architecture as typed, with the matched dimensions written out."""
    size: int | None
    """Size to match; none if the architecture stays as typed."""
    matched: Match | None


class StudyOutcome(NamedTuple):
    """The records that a finished study returns."""

    measured: list[RunRecord]
    """Runs on fresh seeds at the chosen learning rates."""
    tuning: list[RunRecord]
    """Runs of the grid of learning rates."""
    left_out: list[str]
    """Reasons why some contenders could not be made, a message each."""


class StudyPlan(NamedTuple):
    """The runs of a study before its grids are extended."""

    runs: int
    done: int
    """Number of tuning runs that the store holds already."""
    left_out: list[str]
    """Reasons why some contenders could not be made, a message each."""
    contenders: list[Contender]
    left: list[list[RunSpec]]
    """Unfinished runs of the two phases; measuring runs are listed at the first rate of the grid."""


def make_contenders(study: Study) -> tuple[list[Contender], list[str]]:
    """Match every architecture to every size on every task; also return why some of them cannot be matched."""
    found, left_out = [], []
    model = model_of(study.preset, study.settings)
    for task in study.tasks:
        length = max(cell.length for cell in make_task(task_component(task)).eval_cells)
        shape = Shape(model.d_model, model.layers, length)
        for size in study.sizes or (None,):
            for arch in study.archs:
                if size is None:
                    found.append(Contender(task, arch, None, None))
                    continue
                try:
                    matched = match(arch, Budget(size, study.match.by, study.match.cut), shape)
                    found.append(Contender(task, matched.arch, size, matched))
                except StateBudgetError as error:
                    left_out.append(str(error))
    return found, left_out


def runs_of(study: Study, contender: Contender, lrs: Sequence[float], seeds: Sequence[int]) -> list[RunSpec]:
    """Return the run specifications of one contender at these learning rates and seeds."""
    archs = [contender.arch]
    return expand_request(Request(contender.task, archs, study.preset, lrs, seeds, study.precision, study.settings))


def run_study(study: Study, executor: Executor) -> StudyOutcome:
    """Tune the learning rates of all contenders, then measure each contender at its best rate."""
    contenders, left_out = make_contenders(study)
    tuning = tune(study, contenders, executor) if len(study.lr) > 1 else {}
    chosen = {each: best_rate(tuning[each]) if tuning else study.lr[0] for each in contenders}
    measuring = [spec for each in contenders for spec in runs_of(study, each, [chosen[each]], study.seeds)]
    measured = executor.finish(measuring) if measuring else []
    return StudyOutcome(measured, [record for records in tuning.values() for record in records], left_out)


def tune(study: Study, contenders: Sequence[Contender], executor: Executor) -> dict[Contender, list[RunRecord]]:
    """Train each contender on its grid of learning rates, and extend the grid until the best rate is interior."""
    grids = dict.fromkeys(contenders, study.lr)
    tuning: dict[Contender, list[RunRecord]] = {}
    for _ in range(2 * MOST_EXTENSIONS + 1 if contenders else 0):
        wanted = {each: runs_of(study, each, grids[each], study.tune_seeds) for each in contenders}
        records = executor.finish([spec for specs in wanted.values() for spec in specs])
        by_id = {record.result.id: record for record in records}
        tuning = {each: [by_id[spec.id] for spec in specs] for each, specs in wanted.items()}
        grown = {each: extend_grid(grids[each], best_rate(tuning[each]), study.lr) for each in contenders}
        if grown == grids:
            break
        grids = grown
    return tuning


def best_rate(records: Sequence[RunRecord]) -> float:
    """Choose the learning rate of one contender from the records of its tuning runs."""
    rates: dict[float, list[float]] = {record.result.lr: [] for record in records}
    for record in records:
        if record.result.status in SCORED:
            rates[record.result.lr].append(validation_accuracy(record))
    return choose_rate({rate: rate_score(accuracies) for rate, accuracies in rates.items()})


def extend_grid(grid: tuple[float, ...], best: float, first: Sequence[float]) -> tuple[float, ...]:
    """Add a learning rate beyond the best one if that is the lowest or highest of the grid and growth is allowed.

    The grid before any extension, `first`, sets the ratio of neighbouring rates and the limits of growth.
    """
    ordered = tuple(sorted(grid))
    if len(ordered) < 2 or len(ordered) >= len(first) + 2 * MOST_EXTENSIONS:
        return grid
    ratio = math.exp(math.log(max(first) / min(first)) / (len(first) - 1))
    if best == ordered[0] and best > min(first) / ratio ** (MOST_EXTENSIONS - 0.5):
        return (float(f"{best / ratio:.6g}"), *ordered)
    if best == ordered[-1] and best < max(first) * ratio ** (MOST_EXTENSIONS - 0.5):
        return (*ordered, float(f"{best * ratio:.6g}"))
    return grid


def plan_study(study: Study, store: Store) -> StudyPlan:
    """Count the runs of a study before tuning; the measuring runs are counted at the first learning rate."""
    contenders, left_out = make_contenders(study)
    rates = study.lr if len(study.lr) > 1 else ()
    grid = [spec for each in contenders if rates for spec in runs_of(study, each, rates, study.tune_seeds)]
    measuring = [spec for each in contenders for spec in runs_of(study, each, study.lr[:1], study.seeds)]
    left = [[spec for spec in runs if not store.has(spec.id)] for runs in (grid, measuring)]
    return StudyPlan(len(grid) + len(measuring), len(grid) - len(left[0]), left_out, contenders, left)
