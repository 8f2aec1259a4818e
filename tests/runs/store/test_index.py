"""The index is a cache: whatever happens to it, runs are read as the folders contain them."""

import errno
import os
import sqlite3
from contextlib import suppress
from pathlib import Path

import pytest

from icl_bench.errors import RecordError
from icl_bench.runs.outline import FinishedRuns
from icl_bench.runs.store import Store, files
from icl_bench.runs.store import index as index_module
from icl_bench.runs.store.index import INDEX_NAME, Index
from tests.runs.records import finished, result, spec


@pytest.fixture
def store(tmp_path) -> Store:
    made = Store(tmp_path)
    for seed in range(5):
        finished(made, spec(seed), accuracy=seed / 8)
    return made


def plain(runs: FinishedRuns) -> list[dict]:
    """Return the runs as plain data, in the order of ids."""
    whole = [run._asdict() for run in runs.load_all()]
    return [{**run, **{name: run[name].model_dump(mode="json") for name in ("manifest", "result")}} for run in whole]


def from_folders(store: Store) -> list[dict]:
    records = []
    for run_id in store.ids():
        with suppress(RecordError):
            records.append(store.load(run_id))
    return plain(FinishedRuns.of(records))


def from_index(store: Store) -> list[dict]:
    return plain(Index(store).runs()[0])


def test_it_holds_what_the_folders_hold(store: Store) -> None:
    assert from_index(store) == from_folders(store) == from_index(store)
    rows, problems = Index(store).summaries()
    assert [row.id for row in rows] == list(store.ids()) and problems == []
    assert sorted((row.seed, row.accuracy) for row in rows) == [(seed, seed / 8) for seed in range(5)]


def test_runs_are_loaded_without_their_folders(store: Store, monkeypatch) -> None:
    runs, _ = Index(store).runs()
    monkeypatch.setattr(Store, "load", lambda self, run_id: pytest.fail("read a folder"))
    assert [run.curve for run in runs.load_all()] == [((5, 0.5),)] * 5
    assert [run.losses for run in runs.load_all()] == [(1.5,)] * 5
    assert runs.load(spec(1).id) is runs.load(spec(1).id)


def test_new_removed_and_rewritten_runs_are_noticed(store: Store) -> None:
    Index(store).summaries()
    finished(store, spec(7))
    store.remove(spec(0).id)
    changed = store.path(spec(1).id) / "result.json"
    content = changed.read_bytes()
    changed.write_bytes(content[:-2])
    assert from_index(store) == from_folders(store) and len(Index(store).runs()[1]) == 1
    changed.write_bytes(content)
    assert from_index(store) == from_folders(store) and Index(store).runs()[1] == []
    assert len(Index(store).summaries()[0]) == 5


@pytest.mark.parametrize("what", ["deleted", "empty", "text", "cut", "other layout", "link"])
def test_a_missing_or_damaged_index_is_made_again(store: Store, monkeypatch, what: str, tmp_path_factory) -> None:
    Index(store).summaries()
    path = store.root / INDEX_NAME
    if what == "deleted":
        path.unlink()
    elif what == "link":
        elsewhere = tmp_path_factory.mktemp("elsewhere") / INDEX_NAME
        path.rename(elsewhere)
        path.symlink_to(elsewhere)
        before = elsewhere.read_bytes()
    elif what == "other layout":
        monkeypatch.setattr(index_module, "INDEX_VERSION", 99)
    else:
        path.write_bytes({"empty": b"", "text": b"x" * 5000, "cut": path.read_bytes()[:5000]}[what])
    finished(store, spec(9))
    assert from_index(store) == from_folders(store) and len(from_index(store)) == 6
    assert not path.is_symlink() and sqlite3.connect(path).execute("SELECT count(*) FROM runs").fetchone() == (6,)
    if what == "link":
        assert elsewhere.read_bytes() == before


def test_a_flipped_bit_in_the_index_changes_nothing(store: Store) -> None:
    Index(store).summaries()
    path = store.root / INDEX_NAME
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
    outlined = Index(store).runs()[0].outlines
    path = store.root / INDEX_NAME
    content = path.read_bytes()
    place = content.rfind(b'"exact_match"')
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    damaged, _ = Index(store).runs()
    assert sorted(run[3:] for run in damaged.outlines) == sorted(run[3:] for run in outlined)
    assert plain(damaged) == whole
    assert not path.exists() and from_index(store) == whole and path.exists()


@pytest.mark.parametrize("call", ["replace", "connect"])
def test_where_it_cannot_be_written_the_runs_are_read_all_the_same(store: Store, monkeypatch, call: str) -> None:
    def refused(*arguments, **named):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    Index(store).summaries()
    finished(store, spec(7))
    real = sqlite3.connect
    if call == "replace":
        monkeypatch.setattr(files.os, "replace", refused)
    else:
        monkeypatch.setattr(
            sqlite3, "connect", lambda path, **named: refused() if isinstance(path, Path) else real(path, **named)
        )
    index = Index(store)
    assert len(index.runs()[0].outlines) == 6 and not index.kept
    assert len(Index(store).summaries()[0]) == 6
    monkeypatch.undo()
    assert sorted(path.name for path in store.root.glob("*index*")) == [INDEX_NAME]


def test_a_damaged_index_that_cannot_be_deleted_is_passed_over(store: Store, monkeypatch) -> None:
    Index(store).summaries()
    with sqlite3.connect(store.root / INDEX_NAME) as base:
        base.execute("UPDATE runs SET check_sum = 1")

    def refused(*arguments, **named):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for name in ("unlink", "mkdir", "replace"):
        monkeypatch.setattr(files.os, name, refused)
    real = os.open
    monkeypatch.setattr(
        files.os,
        "open",
        lambda path, flags, *rest, **named: refused() if flags & os.O_CREAT else real(path, flags, *rest, **named),
    )
    index = Index(store)
    assert len(index.summaries()[0]) == 5 and not index.kept
    assert len(Index(store).runs()[0].load_all()) == 5


def test_lost_rows_are_noticed(store: Store) -> None:
    Index(store).summaries()
    with sqlite3.connect(store.root / INDEX_NAME) as base:
        base.execute("DELETE FROM outlines WHERE key = 1")
    assert from_index(store) == from_folders(store)


def test_few_loaded_runs_stay_in_memory(store: Store, monkeypatch) -> None:
    monkeypatch.setattr(index_module, "MOST_LOADED", 2)
    runs, _ = Index(store).runs()
    first = runs.load(spec(0).id)
    assert runs.load(spec(0).id) is first and len(list(runs.each())) == 5 and runs.load(spec(0).id) is not first


def test_a_reader_keeps_the_file_that_it_opened(store: Store) -> None:
    Index(store).summaries()
    base = index_module.connect(store.root / INDEX_NAME)
    finished(store, spec(8))
    Index(store).summaries()
    assert len(index_module.read_summaries(base)) == 5


def test_an_unreadable_run_does_not_rewrite_it_every_time(store: Store) -> None:
    (store.path(spec(0).id) / "result.json").write_bytes(b"{")
    Index(store).summaries()
    before = (store.root / INDEX_NAME).stat().st_ino
    assert len(Index(store).summaries()[1]) == 1 and (store.root / INDEX_NAME).stat().st_ino == before


def test_runs_without_validations_and_that_failed(tmp_path) -> None:
    store = Store(tmp_path)
    writer = store.begin(spec(0), finished(store, spec(1)) and store.load(spec(1).id).manifest)
    writer.commit(result(spec(0)).model_copy(update={"status": "error", "detail": "x\ny", "cells": ()}))
    failed = Index(store).runs()[0].load(spec(0).id)
    assert failed.curve == () and failed.result.detail == "x\ny"
