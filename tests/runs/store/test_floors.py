"""Floors measured after the runs: kept by test examples, used by reports, without a change to any record."""

import pytest

from icl_bench.errors import RecordError
from icl_bench.reports.analysis import analyse
from icl_bench.runs.record import GroupScore
from icl_bench.runs.store.floors import (
    FLOORS_NAME,
    CellFloors,
    GroupFloors,
    examples_key,
    read_floors,
    renewed_run,
    with_floors,
    write_floors,
)
from icl_bench.runs.store.index import Index
from tests.runs.records import filled, read_all, spec

NEW = CellFloors(
    floor=0.75, floor_solver="most-frequent", references={"induction": 0.9, "other": 0.8}, answers=None, alphabet=None
)


def test_reports_use_new_floors_and_records_keep_their_own(tmp_path) -> None:
    store = filled(tmp_path, 0, 1)
    key = examples_key(spec(0).model_dump(mode="json"), 0)
    assert write_floors(store.root, {key: {"pairs=2": NEW}}) == tmp_path / FLOORS_NAME
    assert read_floors(store.root) == {key: {"pairs=2": NEW}}
    runs, problems = Index(store).runs()
    by_seed = {run.seeds[1]: run.evaluation.cells[0] for run in runs.outlines}
    assert not problems and (by_seed[0].floor, by_seed[0].floor_solver) == (0.75, "most-frequent")
    assert by_seed[0].references == (("induction", 0.9), ("other", 0.8)) and by_seed[1].floor == 0.5
    loaded = {runs.load(run.id).result.seed: runs.load(run.id).result.cells[0] for run in runs.outlines}
    assert (loaded[0].floor, loaded[0].accuracy, loaded[1].floor) == (0.75, 0.5, 0.5)
    assert all(record.result.cells[0].floor == 0.5 for record in read_all(store))
    (section,) = analyse(runs)
    assert section.floors["pairs=2"].accuracy == pytest.approx(0.625)
    assert section.references == {"induction": {"pairs=2": 0.9}, "other": {"pairs=2": 0.8}}


def test_groups_are_renewed_too(tmp_path) -> None:
    store = filled(tmp_path, 0)
    (record,) = read_all(store)
    groups = {"near": GroupScore(accuracy=0.7, count=9), "far": GroupScore(accuracy=0.1, count=9)}
    cell = record.result.cells[0].model_copy(update={"groups": groups})
    record = record.model_copy(update={"result": record.result.model_copy(update={"cells": (cell,)})})
    new = NEW.model_copy(update={"groups": {"near": GroupFloors(floor=0.25, references={"induction": 0.5})}})
    found = renewed_run(record, {examples_key(record.spec, 0): {"pairs=2": new}}).result.cells[0].groups
    assert found["near"] == GroupScore(accuracy=0.7, count=9, floor=0.25, references={"induction": 0.5})
    assert found["far"] == groups["far"]


def test_without_a_file_nothing_changes(tmp_path) -> None:
    store = filled(tmp_path, 0)
    (record,) = read_all(store)
    runs, _ = Index(store).runs()
    assert read_floors(store.root) == {} and renewed_run(record, {}) is record
    assert with_floors(runs, {}) is runs
    assert renewed_run(record, {"another": {"pairs=2": NEW}}) == record


def test_a_damaged_file_is_named(tmp_path) -> None:
    store = filled(tmp_path, 0)
    (tmp_path / FLOORS_NAME).write_text('{"floors": {"key": {"pairs=2": {"floor": "high"}}}}')
    with pytest.raises(RecordError, match=FLOORS_NAME):
        Index(store).runs()
