"""The listing of runs: filters, times, interrupted and running runs."""

from datetime import UTC, datetime

import pytest

from icl_bench.errors import SpecError
from icl_bench.runs.store import Store, processes
from icl_bench.runs.store.checkpoint import Checkpoints
from icl_bench.runs.store.index import Summary
from icl_bench.runs.store.listing import Filters, parse_since, sort_rows, unfinished
from tests.runs.records import MANIFEST, filled, finished, spec

NOW = datetime(2026, 3, 1, tzinfo=UTC)


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


def test_runs_without_a_value_are_listed_last() -> None:
    rows = [row(seconds=None, seed=1), row(seconds=2.0, seed=2), row(seconds=3.0, seed=3)]
    assert [one.seed for one in sort_rows(rows, "seconds")] == [3, 2, 1]
    assert [one.seed for one in sort_rows(rows, "seed")] == [1, 2, 3]
    assert sort_rows(rows, None) == rows


def test_what_no_run_has_is_said() -> None:
    assert list(Filters().unknown([row()])) == []
    assert list(Filters(task="assoc-recall", arch="power:p=2").unknown([row()])) == []
    (line,) = Filters(task="assoc").unknown([row()])
    assert line.startswith("no run has the task 'assoc'; did you mean 'assoc-recall'")


def test_a_run_without_a_start_is_before_all() -> None:
    assert not Filters(since=NOW).admit(row(started=""))
    assert Filters().admit(row())


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
    with pytest.raises(SpecError, match="--since is a date, a time or a duration before now; got"):
        parse_since(text, NOW)


def test_cut_and_running_runs_are_listed_until_they_are_finished(tmp_path, monkeypatch) -> None:
    store = filled(tmp_path, 0)
    store.begin(spec(1), MANIFEST)
    Checkpoints(tmp_path, [spec(2)], "2", "cpu", 0.0).folder.mkdir(parents=True)
    checkpoints = Checkpoints(tmp_path, [spec(2), spec(0)], "2", "cpu", 0.0)
    with checkpoints.place.opened(make=True) as folder:
        checkpoints.name_runs(folder)
    (tmp_path / "attempts" / "not-an-attempt").mkdir()
    assert {found.id: found.status for found in unfinished(store)} == {
        spec(1).id: "running",
        spec(2).id: "interrupted",
    }
    monkeypatch.setattr(processes, "start_of", lambda process: None)
    cut = next(found for found in unfinished(store) if found.id == spec(1).id)
    assert (cut.status, cut.task, cut.arch, cut.seed) == ("interrupted", "assoc-recall", "linear", 1)
    finished(store, spec(1))
    (saved,) = unfinished(store)
    assert (saved.id, saved.task, saved.arch, saved.seed) == (spec(2).id, "assoc-recall", "linear", 2)


def test_an_attempt_of_another_host_counts_as_cut_after_a_while(tmp_path, monkeypatch) -> None:
    store = Store(tmp_path)
    store.begin(spec(1), MANIFEST)
    monkeypatch.setattr(processes, "HOST", "00000000")
    assert [found.status for found in unfinished(store)] == ["running"]
    monkeypatch.setattr(processes, "SILENT_AFTER", -1.0)
    assert [found.status for found in unfinished(store)] == ["interrupted"]
