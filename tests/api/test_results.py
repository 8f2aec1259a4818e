"""Runs as rows, frames and reports, and the examples of a task."""

import sys

import pytest
import torch

import icl_bench as icl
from icl_bench.errors import SpecError, StoreError, UnknownNameError
from icl_bench.runs.columns import SCORE_COLUMNS, STEP_COLUMNS
from tests.runs.records import filled, spec


def test_a_store_gives_its_runs_rows_and_curves(tmp_path) -> None:
    filled(tmp_path, 0, 1, 2)
    runs = icl.load(tmp_path)
    assert [run.id for run in runs] == sorted(spec(seed).id for seed in range(3)) and len(runs[1:]) == 2
    assert repr(runs).startswith("<3 runs in ") and f"{runs[0]!r}" in repr(runs)
    rows, points = list(runs.rows()), list(runs.rows(curves=True))
    assert list(rows[0]) == list(SCORE_COLUMNS) and list(points[0]) == list(STEP_COLUMNS)
    assert {row["accuracy"] for row in rows} == {0.5} and rows[0]["cell"] == "pairs=2"
    assert {(point["step"], point["train_loss"], point["validation"]) for point in points} == {(5, 1.5, 0.5)}
    assert runs[0].rows() == rows[:1]
    with pytest.raises(IndexError):
        runs[3]


def test_a_frame_needs_pandas(tmp_path, monkeypatch) -> None:
    runs = icl.load(filled(tmp_path, 0).root)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(SpecError, match=r"a data frame needs the package pandas, .*pip install 'icl-bench\[pandas\]'"):
        runs.frame()


def test_a_frame_has_the_columns_of_an_export(tmp_path) -> None:
    pytest.importorskip("pandas")
    frame = icl.load(filled(tmp_path, 0, 1).root).frame()
    assert list(frame.columns) == list(SCORE_COLUMNS) and frame.accuracy.mean() == 0.5


def test_a_folder_without_runs_is_refused(tmp_path) -> None:
    with pytest.raises(StoreError, match="a store is a folder of runs"):
        icl.load(tmp_path / "none")


def test_a_damaged_run_is_a_problem_and_no_run(tmp_path) -> None:
    store = filled(tmp_path, 0, 1)
    (store.path(spec(0).id) / "spec.json").unlink()
    runs = icl.load(tmp_path)
    assert len(runs) == 1 and len(runs.problems) == 1


def test_a_report_of_loaded_runs(tmp_path) -> None:
    runs = icl.load(filled(tmp_path, 0, 1).root)
    assert runs.report(tmp_path / "r.md").read_text().startswith("#")
    with pytest.raises(StoreError, match="a report is a file in a folder that exists"):
        runs.report(tmp_path / "nowhere" / "r.md")


def test_examples_are_those_that_runs_see() -> None:
    task = icl.task("assoc-recall:length=16,pairs=[2|4],vocab=64")
    assert task.cells == ("pairs=2", "pairs=4")
    batch = task.batch(8, cell="pairs=4", seed=3)
    assert batch.inputs.shape == (8, 16) and batch.positions.shape == batch.targets.shape == (8, 4)
    assert torch.equal(batch.inputs, task.batch(8, cell="pairs=4", seed=3).inputs)
    assert not torch.equal(batch.inputs, task.batch(8, cell="pairs=4", seed=3, split="test").inputs)
    words = task.spell(batch.inputs[0])
    assert len(words) == 16 and all(isinstance(word, str) for word in words)
    assert (
        len(
            icl.task("vector-recall:length=16,pairs=2").spell(
                icl.task("vector-recall:length=16,pairs=2").batch(1).inputs[0]
            )
        )
        == 16
    )
    with pytest.raises(UnknownNameError, match="no cell is labelled 'pairs=3'"):
        task.batch(cell="pairs=3")
    with pytest.raises(UnknownNameError, match="no task is named 'assoc-recal'; did you mean 'assoc-recall'"):
        icl.task("assoc-recal")
