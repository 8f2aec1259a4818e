"""The store on a full or broken disk, after crashes, and with files that someone changed."""

import contextlib
import errno
import json
import os
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icl_bench.errors import RecordError, StoreError
from icl_bench.runs.store import Store, attempt, faults, files
from icl_bench.runs.store.attempt import commit_fleet, finish_moves
from icl_bench.runs.store.merge import merge_stores
from icl_bench.runs.store.verify import verify_store
from tests.runs.records import MANIFEST, POINT, filled, finished, read_all, result, spec

FILES = ["manifest.json", "metrics.jsonl", "result.json", "spec.json"]


class CutError(BaseException):
    """The end of a killed process."""


def failing(real: Callable, after: int, number: int) -> Callable:
    """Return a system call that fails after the given number of calls."""
    left = [after]

    def call(*arguments, **named):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(number, os.strerror(number))
        return real(*arguments, **named)

    return call


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT])
@pytest.mark.parametrize("name", ["open", "write", "fsync", "close", "rename"])
def test_a_disk_that_fails_is_one_line_and_leaves_what_is_finished(tmp_path, monkeypatch, name, number) -> None:
    store = Store(tmp_path)
    folder = finished(store, spec(0))
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for after in range(6):
        with monkeypatch.context() as broken:
            broken.setattr(files.os, name, failing(getattr(os, name), after, number))
            try:
                finished(store, spec(1))
            except StoreError as error:
                assert os.strerror(number) in str(error) and "\n" not in str(error)
                assert "run the same command again" in str(error) or "restore it" in str(error)
        assert {path: path.read_bytes() for path in folder.iterdir()} == before
        store.check_writable()
        if store.has(spec(1).id):
            store.load(spec(1).id)
            break
    if not store.has(spec(1).id):
        finished(store, spec(1))
    assert len(read_all(store)) == 2 and not list((tmp_path / "attempts").iterdir())


def test_a_file_that_could_not_be_written_is_not_there(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(files.os, "fsync", failing(os.fsync, 0, errno.ENOSPC))
    with pytest.raises(OSError):
        files.replace_file(tmp_path / "x", b"data")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("point", ["result-written", "fleet-sealed", "run-published", "fleet-published"])
@pytest.mark.parametrize("which", [1, 2, 3])
def test_a_fleet_is_committed_as_one(tmp_path, monkeypatch, point: str, which: int) -> None:
    """Kill before all results are written: no run is there. Kill later: the next process to open the store finishes."""
    store, runs, passed = Store(tmp_path), [spec(seed) for seed in range(3)], [0]

    def cut(name: str) -> None:
        passed[0] += name == point
        if name == point and passed[0] == which:
            raise CutError

    monkeypatch.setattr(attempt, "reach", cut)
    writers = [store.begin(run, MANIFEST) for run in runs]
    for writer in writers:
        writer.log(POINT)
    with contextlib.suppress(CutError):
        commit_fleet(writers, [result(run) for run in runs])
    monkeypatch.setattr(attempt, "reach", faults.reach)
    store.check_writable()
    there = [run.id for run in runs if store.has(run.id)]
    assert there == ([] if point == "result-written" else [run.id for run in runs])
    read_all(store)
    if there:
        assert not list((tmp_path / "attempts").iterdir())


@pytest.mark.parametrize("point", ["run-published", "fleet-published", None])
def test_a_fleet_of_two_is_committed_as_one_and_leaves_nothing(tmp_path, monkeypatch, point: str | None) -> None:
    store, runs = Store(tmp_path), [spec(0), spec(1)]

    def cut(name: str) -> None:
        if name == point:
            raise CutError

    writers = [store.begin(run, MANIFEST) for run in runs]
    for writer in writers:
        writer.log(POINT)
    with contextlib.suppress(CutError), monkeypatch.context() as patched:
        patched.setattr(attempt, "reach", cut)
        commit_fleet(writers, [result(run) for run in runs])
    if point is not None:
        store.check_writable()
    assert len(read_all(store)) == 2 and not list((tmp_path / "attempts").iterdir())


def test_two_processes_may_finish_the_same_moves(tmp_path, monkeypatch) -> None:
    store = Store(tmp_path)
    writer = store.begin(spec(0), MANIFEST)
    writer.seal(result(spec(0)))
    marker = tmp_path / "attempts" / "fleet-0.json"
    names = [writer.attempt.name, "0" * 16 + "-00000000-1-00000000", "../../x", 3]
    marker.write_text(json.dumps({"attempts": names}))
    monkeypatch.setattr(files.Handle, "names", lambda self, real=files.Handle.names: real(self) * 2)
    finish_moves(tmp_path)
    assert list(store.ids()) == [spec(0).id] and not list((tmp_path / "attempts").iterdir())


@pytest.mark.parametrize(
    "marker", [b"\x00{", b"null", b"[]", b'{"attempts":null}', b'{"attempts":5}', b'{"attempts":[null,5,"../x",["y"]]}']
)
@pytest.mark.parametrize(
    "use", [Store.check_writable, lambda store: merge_stores([filled(store.root / "from", 1).root], store)]
)
def test_a_marker_that_says_nonsense_is_dropped(tmp_path, marker: bytes, use: Callable) -> None:
    store = filled(tmp_path, 0)
    (tmp_path / "attempts" / "fleet-a.json").write_bytes(marker)
    use(store)
    finished(store, spec(2))
    assert not list((tmp_path / "attempts").iterdir()) and {spec(0).id, spec(2).id} <= set(store.ids())


def test_a_slow_attempt_at_a_run_that_another_ended_finds_it(tmp_path) -> None:
    store, run = Store(tmp_path), spec()
    slow = store.begin(run, MANIFEST)
    finished(store, run, accuracy=0.75)
    assert not slow.attempt.exists()
    slow.log(POINT)
    slow.commit(result(run, accuracy=0.25))
    assert store.load(run.id).result.accuracy == 0.75 and not list((tmp_path / "attempts").iterdir())


def test_half_a_copy_is_set_aside_for_the_run(tmp_path) -> None:
    store, run = Store(tmp_path), spec()
    store.path(run.id).mkdir(parents=True)
    (store.path(run.id) / "spec.json").write_text("half")
    assert not store.has(run.id)
    finished(store, run)
    assert store.load(run.id).result.id == run.id
    assert (next((tmp_path / "trash").iterdir()) / "spec.json").read_text() == "half"


@pytest.mark.parametrize("name", FILES)
@given(data=st.data())
def test_every_flipped_bit_is_named(tmp_path_factory, name: str, data: st.DataObject) -> None:
    store, run = Store(tmp_path_factory.mktemp("store")), spec()
    path = finished(store, run) / name
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    found = verify_store(store)
    assert found.runs == 0 and len(found.problems) == 1 and run.id in found.problems[0]
    assert "\n" not in found.problems[0]


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_cut_file_is_named(tmp_path, name: str) -> None:
    store = Store(tmp_path)
    cut, gone = finished(store, spec(0)) / name, finished(store, spec(1)) / name
    cut.write_bytes(cut.read_bytes()[:-1])
    gone.unlink()
    found = verify_store(store)
    assert found.runs == 0 and len(found.problems) == 2
    assert all(any(str(path.parent) in problem for problem in found.problems) for path in (cut, gone))


def test_a_result_of_another_run_is_refused(tmp_path) -> None:
    store = Store(tmp_path)
    one, other = finished(store, spec(0)), finished(store, spec(1))
    for path in other.iterdir():
        path.unlink()
    for path in one.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    with pytest.raises(RecordError, match="a record's id is the hash of its specification"):
        store.load(spec(1).id)


def test_links_are_refused(tmp_path) -> None:
    store, outside = Store(tmp_path / "store"), tmp_path / "outside"
    folder = finished(store, spec(0))
    folder.rename(outside)
    folder.symlink_to(outside)
    assert list(store.ids()) == [] and "is a link" in verify_store(store).problems[0]
    with pytest.raises(RecordError, match="the folders of a store are no links"):
        store.load(spec(0).id)
    folder.unlink()
    outside.rename(folder)
    (folder / "spec.json").rename(tmp_path / "spec.json")
    (folder / "spec.json").symlink_to(tmp_path / "spec.json")
    with pytest.raises(RecordError, match=r"spec\.json: it is a link"):
        store.load(spec(0).id)


@pytest.mark.parametrize("name", ["runs", "attempts", "checkpoints", "trash"])
def test_a_folder_of_the_store_that_leads_outside_is_refused(tmp_path, name: str) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / name).symlink_to(tmp_path / "outside")
    with pytest.raises(StoreError, match=f"the folders of a store are no links; .*{name} is one"):
        Store(tmp_path / "store").check_writable()
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_pipe_does_not_hang_the_reader(tmp_path) -> None:
    store = Store(tmp_path)
    path = finished(store, spec(0)) / "metrics.jsonl"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(RecordError, match="it is no file"):
        store.load(spec(0).id)


@pytest.mark.parametrize(("text", "message"), [("step-dome", "did you mean 'step-done'"), ("step-done:0", "from 1")])
def test_crash_points_are_spelled_right(monkeypatch, text: str, message: str) -> None:
    monkeypatch.setenv(faults.CRASH_VARIABLE, text)
    with pytest.raises(Exception, match=message):
        faults.reach("step-done")


def test_a_crash_point_counts(monkeypatch) -> None:
    killed = []
    monkeypatch.setattr(faults, "kill", lambda: killed.append(1))
    monkeypatch.setattr(faults, "REACHED", faults.Counter())
    monkeypatch.setenv(faults.CRASH_VARIABLE, "validated:3")
    for point in ["validated", "trained", "validated", "validated", "validated"]:
        faults.reach(point)
    assert killed == [1]
