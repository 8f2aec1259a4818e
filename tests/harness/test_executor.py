"""The executor: unfinished runs go to the engine, finished ones are read back, and the reporter is closed."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from icl_bench.harness.executor import Executor
from icl_bench.runs.events import Reporter, SilentReporter
from icl_bench.runs.record import RunResult
from icl_bench.runs.spec import RunSpec
from icl_bench.runs.store import Store
from tests.runs.records import filled, finished, spec


class FakeEngine:
    """An engine that finishes runs without training, and remembers its fleets."""

    def __init__(self) -> None:
        self.fleets: list[list[RunSpec]] = []

    def submit(self, fleets: Sequence[Sequence[RunSpec]], store: Store, reporter: Reporter) -> Iterator[RunResult]:
        self.fleets += [list(fleet) for fleet in fleets]
        for run in [run for fleet in fleets for run in fleet]:
            finished(store, run)
            yield store.load(run.id).result

    def close(self) -> None:
        """Do nothing."""


class Notes(SilentReporter):
    """A reporter that keeps the planned numbers, and whether it was closed."""

    plan, is_closed = (0, 0), False

    def planned(self, runs: int, done: int) -> None:
        self.plan = (runs, done)

    def closed(self) -> None:
        self.is_closed = True


def test_the_engine_gets_the_unfinished_runs_and_all_are_returned_in_order(tmp_path: Path) -> None:
    store, engine, notes = filled(tmp_path, 2), FakeEngine(), Notes()
    records = Executor(store, engine, 2, notes).finish([spec(seed) for seed in (3, 2, 1, 0)])
    assert [record.result.seed for record in records] == [3, 2, 1, 0]
    assert sorted(len(fleet) for fleet in engine.fleets) == [1, 2]
    assert {run.seed for fleet in engine.fleets for run in fleet} == {0, 1, 3}
    assert notes.plan == (4, 1) and notes.is_closed


def test_the_reporter_is_closed_after_a_failure(tmp_path: Path, monkeypatch) -> None:
    notes = Notes()
    monkeypatch.setattr("tests.harness.test_executor.finished", lambda store, run: pytest.fail("broken"))
    with pytest.raises(pytest.fail.Exception):
        Executor(Store(tmp_path), FakeEngine(), 1, notes).finish([spec(0)])
    assert notes.is_closed
