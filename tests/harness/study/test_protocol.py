"""The protocol of studies: tuned rates, fresh seeds, nothing done twice."""

import pytest
import torch

from icl_bench.commands.progress import LineReporter
from icl_bench.harness.engines.base import Executor
from icl_bench.harness.engines.inline import InlineEngine
from icl_bench.harness.study.file import Study, load_study, packaged_studies, parse_study
from icl_bench.harness.study.protocol import best_rate, extend_grid, plan_study, run_study
from icl_bench.harness.training.trainer import Machine
from icl_bench.runs.record import RunRecord, Status
from icl_bench.runs.store import Store
from tests.runs import records

TINY = ["train.steps=4", "train.batch=4", "model.d_model=16", "evaluation.examples=8", "evaluation.validation=8"]
TEXT = """
name: small
question: Does it run?
tasks: ["assoc-recall:length=16,pairs=2,vocab=64"]
archs: [linear, "window:conv=0"]
sizes: [512]
lr: 1e-3..1e-2/2
tune_seeds: "100,101"
seeds: 0..2
settings: [{settings}]
"""


@pytest.fixture
def study() -> Study:
    return parse_study(TEXT.format(settings=", ".join([*TINY, "evaluation.points=1"])), "small.yaml")


def record(lr: float, accuracy: float, status: Status = "ok") -> RunRecord:
    """Make the record of a run with this learning rate, validation accuracy and status."""
    result = records.result(records.BASE).model_copy(update={"lr": lr, "status": status})
    metrics = (records.POINT.model_copy(update={"accuracy": accuracy}),)
    return RunRecord(spec={}, manifest=records.MANIFEST, result=result, metrics=metrics)


def test_tunes_measures_and_does_nothing_twice(study, tmp_path, capsys) -> None:
    from rich.console import Console

    store, engine = Store(tmp_path), InlineEngine(Machine(torch.device("cpu")))
    executor = Executor(store, engine, 8, LineReporter(Console(stderr=True)))
    outcome = run_study(study, executor)
    assert {record.result.seed for record in outcome.measured} == {0, 1, 2}
    assert {record.result.seed for record in outcome.tuning} == {100, 101}
    assert len(outcome.measured) == 6 and not outcome.left_out
    rates = {(record.result.arch, record.result.lr) for record in outcome.measured}
    assert len(rates) == 2
    before = sorted(store.ids())
    again = run_study(study, executor)
    assert sorted(store.ids()) == before and again == outcome
    assert plan_study(study, store).done == 8


def test_the_best_rate_is_that_of_validation_and_failures_count_as_nothing() -> None:
    ended = [record(1e-3, 0.5), record(1e-2, 0.7), record(1e-2, 0.1)]
    failed = [record(1e-1, 0.9, "diverged"), record(1.0, 0.9, "oom")]
    assert best_rate([*ended, *failed]) == 1e-3
    assert best_rate([record(lr, 1.0) for lr in (1e-4, 1e-3, 1e-2)]) == 1e-3


def test_the_grid_grows_until_the_best_is_interior() -> None:
    first = (1e-3, 1e-2)
    assert extend_grid(first, 1e-2, first) == (1e-3, 1e-2, 0.1)
    assert extend_grid(first, 1e-3, first) == (1e-4, 1e-3, 1e-2)
    grown = (1e-3, 1e-2, 0.1)
    assert extend_grid(grown, 1e-2, first) == grown


def test_the_grid_does_not_grow_for_ever() -> None:
    grid = first = (1e-3, 1e-2)
    for _ in range(50):
        grid = extend_grid(grid, max(grid), first)
    assert len(grid) == 6


def test_every_packaged_study_can_be_planned(tmp_path) -> None:
    for name in packaged_studies():
        assert plan_study(load_study(name), Store(tmp_path)).runs > 0
