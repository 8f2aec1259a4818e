"""Stores put together, listed, exported."""

import csv
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from icl_bench.errors import SpecError, StoreError
from icl_bench.runs.store import Store, attempt, export, listing
from icl_bench.runs.store.checkpoint import Checkpoints
from icl_bench.runs.store.listing import Filters, listed, parse_since, unfinished
from icl_bench.runs.store.merge import merge
from icl_bench.runs.store.rows import Summary
from tests.runs.records import MANIFEST, POINT, finished, result, spec

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def filled(root: Path, *seeds: int, accuracy: float = 0.5) -> Store:
    store = Store(root)
    for seed in seeds:
        finished(store, spec(seed), accuracy)
    return store


def test_runs_that_are_not_there_are_copied_whole(tmp_path) -> None:
    one, two, target = filled(tmp_path / "a", 0, 1), filled(tmp_path / "b", 1, 2), filled(tmp_path / "c", 3)
    done = merge([one.root, two.root], target)
    assert (done.copied, done.present, done.conflicts, done.problems) == (3, 1, [], [])
    for seed in range(4):
        source = one if seed < 2 else two if seed == 2 else target
        for path in source.path(spec(seed).id).iterdir():
            assert (target.path(spec(seed).id) / path.name).read_bytes() == path.read_bytes()
    assert not list((target.root / "attempts").iterdir())
    assert merge([one.root, two.root], target).copied == 0


def test_other_numbers_are_a_conflict_that_is_named_and_changes_nothing(tmp_path) -> None:
    theirs, ours = filled(tmp_path / "a", 0, accuracy=0.25), filled(tmp_path / "b", 0, accuracy=0.5)
    done = merge([theirs.root], ours)
    assert done.conflicts == [f"{spec(0).id}: cells differs in {theirs.root}; {ours.root} keeps its own"]
    assert ours.load(spec(0).id).result.accuracy == 0.5 and done.copied == done.present == 0


def test_times_and_hosts_are_no_conflict(tmp_path) -> None:
    theirs, ours = filled(tmp_path / "a"), filled(tmp_path / "b", 0)
    writer = theirs.begin(spec(0), MANIFEST.model_copy(update={"device": "another"}))
    writer.log(POINT)
    writer.commit(result(spec(0)).model_copy(update={"seconds": 9.0, "examples_per_second": 1.0}))
    assert merge([theirs.root], ours).present == 1


def test_what_is_damaged_is_named_and_not_copied(tmp_path) -> None:
    theirs, ours = filled(tmp_path / "a", 0, 1), filled(tmp_path / "b")
    path = theirs.path(spec(0).id) / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    done = merge([theirs.root], ours)
    assert done.copied == 1 and list(ours.ids()) == [spec(1).id] and str(path) in str(done.problems[0])


def test_links_in_a_source_are_not_followed(tmp_path) -> None:
    theirs, ours = filled(tmp_path / "a", 0, 1), filled(tmp_path / "b")
    secret = tmp_path / "secret"
    secret.write_text("secret")
    path = theirs.path(spec(0).id) / "spec.json"
    path.unlink()
    path.symlink_to(secret)
    folder = theirs.path(spec(1).id)
    folder.rename(tmp_path / "moved")
    folder.symlink_to(tmp_path / "moved")
    done = merge([theirs.root], ours)
    assert done.copied == 0 and len(done.problems) == 1 and list(ours.ids()) == []


def test_a_source_must_be_another_store(tmp_path) -> None:
    ours = filled(tmp_path / "a", 0)
    with pytest.raises(StoreError, match="a merge takes stores"):
        merge([tmp_path], ours)
    with pytest.raises(StoreError, match="other stores than its target"):
        merge([ours.root], ours)


def row(**fields) -> Summary:
    base = Summary("0" * 16, "assoc-recall:length=16", "power:p=2", 0, 0.1, "ok", 0.5, "2026-01-02T00:00:00+00:00", 1.0)
    return base._replace(**fields)


@pytest.mark.parametrize(
    ("filters", "shown"),
    [
        (Filters(), True),
        (Filters(task="assoc-recall"), True),
        (Filters(task="assoc-recall:length=16"), True),
        (Filters(task="assoc"), False),
        (Filters(arch="power"), True),
        (Filters(arch="linear"), False),
        (Filters(status="error"), False),
        (Filters(since=datetime(2026, 1, 1, tzinfo=UTC)), True),
        (Filters(since=datetime(2026, 1, 3, tzinfo=UTC)), False),
    ],
)
def test_filters(filters: Filters, shown: bool) -> None:
    assert filters.admit(row()) is shown


def test_a_run_without_a_start_is_before_all() -> None:
    assert not Filters(since=NOW).admit(row(started="")) and list(listed([row()], [row()], Filters())) == [row()] * 2


@pytest.mark.parametrize(
    ("text", "when"),
    [
        ("2026-01-31", "2026-01-31T00:00:00+00:00"),
        ("2026-01-31T12:30", "2026-01-31T12:30:00+00:00"),
        ("2026-01-31T12:30:00+02:00", "2026-01-31T12:30:00+02:00"),
        ("90m", "2026-02-28T22:30:00+00:00"),
        ("2w", "2026-02-15T00:00:00+00:00"),
    ],
)
def test_since(text: str, when: str) -> None:
    assert parse_since(text, NOW).isoformat() == when


@pytest.mark.parametrize("text", ["", "yesterday", "12", "3y", "999999w", "2026-13-01"])
def test_since_says_how_it_is_written(text: str) -> None:
    with pytest.raises(SpecError, match="--since is a date, a time or how long ago; got"):
        parse_since(text, NOW)


def test_cut_and_running_runs_are_listed_until_they_are_finished(tmp_path, monkeypatch) -> None:
    store = filled(tmp_path, 0)
    store.begin(spec(1), MANIFEST)
    Checkpoints(tmp_path, [spec(2)], "2", "cpu", 0.0).folder.mkdir(parents=True)
    checkpoints = Checkpoints(tmp_path, [spec(2), spec(0)], "2", "cpu", 0.0)
    checkpoints.folder.mkdir(parents=True)
    checkpoints.name_runs()
    (tmp_path / "attempts" / "not-an-attempt").mkdir()
    assert {found.id: found.status for found in unfinished(store)} == {
        spec(1).id: "running",
        spec(2).id: "interrupted",
    }
    monkeypatch.setattr(attempt.os, "kill", lambda process, number: (_ for _ in ()).throw(ProcessLookupError))
    cut = next(found for found in unfinished(store) if found.id == spec(1).id)
    assert (cut.status, cut.task, cut.arch, cut.seed) == ("interrupted", "assoc-recall", "linear", 1)
    finished(store, spec(1))
    assert [found.id for found in unfinished(store)] == [spec(2).id]


def test_an_attempt_of_another_host_counts_as_cut_after_a_while(tmp_path, monkeypatch) -> None:
    store = Store(tmp_path)
    store.begin(spec(1), MANIFEST)
    monkeypatch.setattr(attempt, "HOST", "00000000")
    assert [found.status for found in unfinished(store)] == ["running"]
    monkeypatch.setattr(attempt, "SILENT_AFTER", -1.0)
    assert [found.status for found in listing.unfinished(store)] == ["interrupted"]


def test_a_table_of_all_runs(tmp_path) -> None:
    store = filled(tmp_path / "store", 0, 1)
    store.begin(spec(2), MANIFEST).commit(
        result(spec(2)).model_copy(update={"status": "error", "detail": "=1+1", "cells": (), "task": "@x"})
    )
    records, _ = store.read_all()
    assert export.export(records, tmp_path / "runs.csv") == 3
    with (tmp_path / "runs.csv").open() as file:
        read = {line["seed"]: line for line in csv.DictReader(file)}
    assert read["0"]["cell"] == "pairs=2" and float(read["0"]["accuracy"]) == 0.5 and read["0"]["data_seed"] == "0"
    assert read["2"]["detail"] == "'=1+1" and read["2"]["task"] == "'@x" and read["2"]["accuracy"] == ""
    assert set(read["0"]) == set(export.COLUMNS)


def test_parquet_without_pyarrow_says_what_to_do(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SpecError, match=r"needs the package pyarrow.*write \.csv, or run `pip install"):
        export.export([], tmp_path / "runs.parquet")
    with pytest.raises(SpecError, match=r"an export is a \.csv or \.parquet file; got"):
        export.export([], tmp_path / "runs.xlsx")


def test_parquet_with_pyarrow(tmp_path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    records, _ = filled(tmp_path / "store", 0, 1).read_all()
    export.export(records, tmp_path / "runs.parquet")
    table = parquet.read_table(tmp_path / "runs.parquet").to_pylist()
    assert [line["accuracy"] for line in table] == [0.5, 0.5] and json.dumps(table)
