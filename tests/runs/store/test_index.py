"""The index is a cache: whatever happens to it, what is read is what the folders hold."""

import errno
import os
import sqlite3
from pathlib import Path

import pytest

from icl_bench.errors import RecordError
from icl_bench.runs.store import Store, rows
from icl_bench.runs.store import index as index_module
from icl_bench.runs.store.index import NAME, Index
from tests.runs.records import finished, result, spec


@pytest.fixture
def store(tmp_path) -> Store:
    made = Store(tmp_path)
    for seed in range(5):
        finished(made, spec(seed), accuracy=seed / 8)
    return made


def from_folders(store: Store) -> list[dict]:
    return [record.model_dump(mode="json") for record in store.read_all()[0]]


def from_index(store: Store) -> list[dict]:
    records, _ = Index(store).records()
    plain = [record.model_copy(update={"metrics": tuple(record.metrics)}) for record in records]
    return [record.model_dump(mode="json") for record in plain]


def test_it_holds_what_the_folders_hold(store: Store) -> None:
    assert from_index(store) == from_folders(store) == from_index(store)
    rows, problems = Index(store).summaries()
    assert [row.id for row in rows] == list(store.ids()) and problems == []
    assert sorted((row.seed, row.accuracy) for row in rows) == [(seed, seed / 8) for seed in range(5)]


def test_steps_and_accuracies_are_at_hand_and_the_rest_on_demand(store: Store, monkeypatch) -> None:
    records, _ = Index(store).records()
    monkeypatch.setattr(index_module, "read_bytes", lambda path: pytest.fail("read a file"))
    assert records[0].metrics.curve == ((5, 0.5),) and bool(records[0].metrics) and len(records[0].metrics) == 1
    monkeypatch.undo()
    assert records[0].metrics[-1].train_loss == 1.5 and records[0].metrics[0].step == 5
    path = store.path(records[1].result.id) / "metrics.jsonl"
    path.write_bytes(path.read_bytes().replace(b"0.5", b"0.6"))
    with pytest.raises(RecordError, match="a stored file never changes"):
        list(records[1].metrics)


def test_new_removed_and_rewritten_runs_are_noticed(store: Store) -> None:
    Index(store).summaries()
    finished(store, spec(7))
    store.remove(spec(0).id)
    changed = store.path(spec(1).id) / "result.json"
    content = changed.read_bytes()
    changed.write_bytes(content[:-2])
    assert from_index(store) == from_folders(store) and len(Index(store).records()[1]) == 1
    changed.write_bytes(content)
    assert from_index(store) == from_folders(store) and Index(store).records()[1] == []
    assert len(Index(store).summaries()[0]) == 5


@pytest.mark.parametrize("what", ["deleted", "empty", "text", "cut", "other layout", "link"])
def test_a_missing_or_damaged_index_is_made_again(store: Store, monkeypatch, what: str, tmp_path_factory) -> None:
    Index(store).summaries()
    path = store.root / NAME
    if what == "deleted":
        path.unlink()
    elif what == "link":
        elsewhere = tmp_path_factory.mktemp("elsewhere") / NAME
        path.rename(elsewhere)
        path.symlink_to(elsewhere)
        before = elsewhere.read_bytes()
    elif what == "other layout":
        monkeypatch.setattr(rows, "LAYOUT", 99)
    else:
        path.write_bytes({"empty": b"", "text": b"x" * 5000, "cut": path.read_bytes()[:5000]}[what])
    finished(store, spec(9))
    assert from_index(store) == from_folders(store) and len(from_index(store)) == 6
    assert not path.is_symlink() and sqlite3.connect(path).execute("SELECT count(*) FROM runs").fetchone() == (6,)
    if what == "link":
        assert elsewhere.read_bytes() == before


def test_a_flipped_bit_in_the_index_changes_nothing(store: Store) -> None:
    Index(store).summaries()
    path = store.root / NAME
    content = path.read_bytes()
    for text in (b"assoc-recall", b'"accuracy":0.', b'"precision"', b'"device":"d"', b'"any-value"', b"2026-01-01"):
        place = content.rfind(text)
        assert place >= 0
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert from_index(store) == from_folders(store)
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert {row.task for row in Index(store).summaries()[0]} == {"assoc-recall"}


def test_a_damaged_detail_is_read_from_its_folder_and_the_index_made_again(store: Store) -> None:
    whole = from_folders(store)
    outlined, _ = Index(store).outlines()
    path = store.root / NAME
    content = path.read_bytes()
    place = content.rfind(b'"exact_match"')
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    damaged, _ = Index(store).outlines()
    assert sorted(run[5:] for run in damaged) == sorted(run[5:] for run in outlined)
    records = sorted((run.record for run in damaged), key=lambda record: record.result.id)
    assert [record.result.model_dump(mode="json") for record in records] == [record["result"] for record in whole]
    assert not path.exists() and from_index(store) == whole and path.exists()


@pytest.mark.parametrize("call", ["replace", "connect"])
def test_where_it_cannot_be_written_the_runs_are_read_all_the_same(store: Store, monkeypatch, call: str) -> None:
    def refused(*arguments, **named):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    Index(store).summaries()
    finished(store, spec(7))
    real = sqlite3.connect
    if call == "replace":
        monkeypatch.setattr(Path, "replace", refused)
    else:
        monkeypatch.setattr(
            sqlite3, "connect", lambda path, **named: refused() if str(path).startswith("/") else real(path, **named)
        )
    index = Index(store)
    assert len(index.records()[0]) == 6 and not index.kept
    assert len(Index(store).summaries()[0]) == 6
    monkeypatch.undo()
    assert sorted(path.name for path in store.root.glob("*index*")) == [NAME]


def test_a_reader_keeps_the_file_that_it_opened(store: Store) -> None:
    Index(store).summaries()
    base = index_module.connect(store.root / NAME)
    finished(store, spec(8))
    Index(store).summaries()
    assert len(rows.read_summaries(base)) == 5


def test_an_unreadable_run_does_not_rewrite_it_every_time(store: Store) -> None:
    (store.path(spec(0).id) / "result.json").write_bytes(b"{")
    Index(store).summaries()
    before = (store.root / NAME).stat().st_ino
    assert len(Index(store).summaries()[1]) == 1 and (store.root / NAME).stat().st_ino == before


def test_runs_without_validations_and_that_failed(tmp_path) -> None:
    store = Store(tmp_path)
    writer = store.begin(spec(0), finished(store, spec(1)) and store.load(spec(1).id).manifest)
    writer.commit(result(spec(0)).model_copy(update={"status": "error", "detail": "x\ny", "cells": ()}))
    records, _ = Index(store).records()
    failed = next(record for record in records if record.result.status == "error")
    assert not failed.metrics and len(failed.metrics) == 0 and failed.result.detail == "x\ny"
