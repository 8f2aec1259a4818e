"""Finished runs that a command meets again."""

from pathlib import Path

import pytest

from icl_bench.harness.finished import edited_parts, set_failed_aside
from icl_bench.runs.spec import RunSpec
from icl_bench.runs.store import Store
from tests.runs.records import MANIFEST, finished, result, spec


def with_source(seed: int, source: str | None) -> RunSpec:
    run = spec(seed)
    return run.model_copy(update={"arch": (run.arch[0].model_copy(update={"source": source}),)})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs")


def test_runs_of_another_source_are_counted_by_name(store: Store) -> None:
    assert edited_parts(store, [with_source(9, "new")]) == {}
    for seed, source in enumerate(("old", "old", "new", None)):
        finished(store, with_source(seed, source))
    assert edited_parts(store, [with_source(9, "new")]) == {"linear": 3}
    assert edited_parts(store, [with_source(9, None)]) == {}


def test_errors_are_set_aside_and_other_outcomes_stay(store: Store) -> None:
    runs = [spec(seed) for seed in range(4)]
    for run, status in zip(runs, ("error", "diverged", "crashed", "ok"), strict=True):
        store.begin(run, MANIFEST).commit(
            result(run).model_copy(update={"status": status} if status == "ok" else {"status": status, "cells": ()})
        )
    assert set_failed_aside(store, runs) == [runs[0].id, runs[2].id]
    assert [store.has(run.id) for run in runs] == [False, True, False, True]
