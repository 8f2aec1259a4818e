"""The door of the store: nothing outside its root is reached, and what is written is whole and durable."""

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icl_bench.errors import RecordError, StoreError
from icl_bench.runs.store import Store, files, processes
from icl_bench.runs.store.checkpoint import Checkpoints, FleetState
from icl_bench.runs.store.files import Folder, replace_file
from icl_bench.runs.store.index import Index
from icl_bench.runs.store.merge import merge_stores
from icl_bench.runs.store.verify import verify_store
from tests.runs.records import MANIFEST, NO_TENSORS, filled, finished, result, spec

NAMES = ("a", "b", "c")


@pytest.fixture
def outside(tmp_path) -> Path:
    """Make a folder outside of the store, with a folder and a file that somebody needs."""
    folder = tmp_path / "outside"
    (folder / "photos").mkdir(parents=True)
    (folder / "photos" / "one").write_text("x")
    (folder / "letter").write_text("y")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    """Return the content of every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def saved_fleet(store: Store) -> Checkpoints:
    """Save a checkpoint of a fleet of one run."""
    checkpoints = Checkpoints(store.root, [spec(0)], "2", "cpu", 0.0)
    state = FleetState(
        origin=checkpoints.origin, step=3, seconds=1.0, training=1.0, solved_at=(None,), metrics=((),)
    )  # fmt: skip
    checkpoints.save(state, NO_TENSORS)
    return checkpoints


def act(store: Store) -> None:
    """Do all that commands do to a store: train, save, commit, merge, remove, verify, list."""
    store.check_writable()
    checkpoints = saved_fleet(store)
    finished(store, spec(0))
    checkpoints.remove()
    merge_stores([filled(store.root.parent / f"source-{secrets.token_hex(4)}", 1).root], store)
    store.remove(spec(1).id)
    verify_store(store)
    Index(store).summaries()


@pytest.mark.parametrize("place", ["runs", "attempts", "checkpoints", "trash", "leases", "logs"])
@pytest.mark.parametrize("below", [False, True])
def test_a_linked_folder_is_refused_and_nothing_behind_it_changes(tmp_path, outside: Path, place, below) -> None:
    store = Store(tmp_path / "store")
    linked = store.root / place
    if below:
        names = {
            "runs": spec(0).id[:2],
            "checkpoints": Checkpoints(store.root, [spec(0)], "2", "cpu").place.names[-1],
        }
        if place not in names:
            pytest.skip("nothing foreseeable lies there")
        linked /= names[place]
    linked.parent.mkdir(parents=True)
    linked.symlink_to(outside)
    before = content(outside)
    with pytest.raises(StoreError, match=r"the folders of a store are no links; .* is one; move what it"):
        act(store)
    assert content(outside) == before


def test_a_linked_folder_of_checkpoints_is_refused_by_itself(tmp_path, outside: Path) -> None:
    store = filled(tmp_path / "store")
    checkpoints = Checkpoints(store.root, [spec(0)], "2", "cpu", 0.0)
    checkpoints.folder.parent.mkdir(parents=True)
    checkpoints.folder.symlink_to(outside)
    before = content(outside)
    for use in (lambda: saved_fleet(store), checkpoints.remove, lambda: list(checkpoints.saved())):
        with contextlib.suppress(StoreError):
            use()
        assert content(outside) == before
    assert not (outside / "fleet.json").exists()


@pytest.mark.parametrize("place", [("runs",), ("runs", "2d"), ("attempts",), ("checkpoints",), ("trash",), ("leases",)])
def test_a_swap_between_any_two_calls_changes_nothing_outside(tmp_path, outside: Path, monkeypatch, place) -> None:
    """Exchange a folder for a link just before each opening of it in turn."""
    assert spec(0).id.startswith("2d") or spec(1).id.startswith("2d")
    before = content(outside)
    real, swaps = os.open, [0]

    def swapping(at: int) -> Callable:
        left = [at]

        def opened(path, flags, mode=0o777, *, dir_fd=None):
            if path == place[-1] and dir_fd is not None:
                left[0] -= 1
                if left[0] == 0:
                    swaps[0] += 1
                    folder = root.joinpath(*place)
                    if folder.is_dir() and not folder.is_symlink():
                        folder.rename(folder.with_name("moved-away"))
                    folder.symlink_to(outside)
            return real(path, flags, mode, dir_fd=dir_fd)

        return opened

    for at in (1, 2, 4, 7):
        root = tmp_path / f"store-{at}"
        store = filled(root)
        store.check_writable()
        with monkeypatch.context() as patched:
            patched.setattr(files.os, "open", swapping(at))
            with contextlib.suppress(StoreError, FileNotFoundError, FileExistsError):
                act(store)
        assert content(outside) == before
    assert swaps[0] >= 1 or place in (("leases",), ("trash",))


def test_a_file_named_like_a_folder_is_refused(tmp_path) -> None:
    (tmp_path / "attempts").write_text("")
    with pytest.raises(StoreError, match=r"the folders of a store are folders; .*attempts is none; move it elsewhere"):
        finished(Store(tmp_path), spec(0))


def test_a_root_that_is_a_link_is_what_the_user_typed(tmp_path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    store = Store(tmp_path / "link")
    act(store)
    assert [path.name for path in (tmp_path / "real" / "runs").glob("*/*")] == [spec(0).id]


KINDS: dict[str, Callable[[Path], object]] = {
    "folder": Path.mkdir,
    "pipe": os.mkfifo,
    "link": lambda path: path.symlink_to("/etc/hostname"),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "giant": lambda path: (path.touch(), os.truncate(path, 1 << 40)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["spec.json", "manifest.json", "metrics.jsonl", "result.json"])
def test_what_is_no_file_is_named_and_the_other_runs_are_read(tmp_path, kind: str, name: str) -> None:
    store = filled(tmp_path / "store", 0, 1)
    path = store.path(spec(0).id) / name
    path.unlink()
    KINDS[kind](path)
    with pytest.raises(RecordError, match=name):
        store.load(spec(0).id)
    rows, _ = Index(store).summaries()
    assert [row.id for row in rows] == [spec(1).id]
    found = verify_store(store)
    assert found.runs == 1 and len(found.problems) == 1 and name in found.problems[0]
    done = merge_stores([store.root], Store(tmp_path / "target"))
    assert done.copied == 1 and all(name in str(problem) for problem in done.problems)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "sha256"])
def test_what_is_no_file_of_a_checkpoint_is_skipped(tmp_path, kind: str, name: str) -> None:
    store = Store(tmp_path)
    checkpoints = saved_fleet(store)
    path = checkpoints.folder / "000000003" / name
    path.unlink()
    KINDS[kind](path)
    assert list(checkpoints.saved(1 << 20)) == []
    assert len(verify_store(store).problems) == 1


def as_header(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "start",
    [
        b"",
        (1 << 40).to_bytes(8, "little"),
        NO_TENSORS,
        as_header(b"[]"),
        as_header(b'{"w":{"data_offsets":[0,1e999]}}'),
        as_header(b'{"w":{"data_offsets":[0,-5]}}'),
        as_header(b'{"w":{"data_offsets":[0,999]},"__metadata__":{"a":"b"}}'),
    ],
    ids=["nothing", "endless", "empty", "no object", "infinite", "negative", "short"],
)
def test_tensors_that_are_longer_than_their_header_says_are_refused_unread(tmp_path, monkeypatch, start) -> None:
    store, taken = Store(tmp_path / "store"), [0]
    writer = store.begin(spec(0), MANIFEST)
    writer.keep("model.safetensors", NO_TENSORS)
    writer.commit(result(spec(0)))
    places = (store.path(spec(0).id) / "model.safetensors", saved_fleet(store).folder / "000000003/tensors.safetensors")
    for path in places:
        path.write_bytes(start)
        os.truncate(path, 1 << 33)

    def read(handle: int, count: int) -> bytes:
        taken[0] += len(block := real(handle, count))
        return block

    real = os.read
    monkeypatch.setattr(files.os, "read", read)
    found = verify_store(store)
    assert found.runs == found.checkpoints == 0
    assert all(str(path) in problem for path, problem in zip(places, found.problems, strict=True))
    done = merge_stores([store.root], Store(tmp_path / "target"))
    assert done.copied == 0 and str(places[0]) in str(done.problems[0])
    with pytest.raises(RecordError, match=r"model\.safetensors: it "):
        store.read_kept(spec(0).id, "model.safetensors")
    assert taken[0] < files.LARGEST_RECORD


def test_a_store_survives_a_loss_of_every_name_that_was_not_synced(tmp_path, monkeypatch) -> None:
    """Record which folders are synced after a name appears in them; a name without a later sync counts as lost."""
    synced: set[tuple[int, int]] = set()
    real = os.fsync

    def fsync(handle: int) -> None:
        about = os.fstat(handle)
        synced.add((about.st_dev, about.st_ino))
        real(handle)

    monkeypatch.setattr(files.os, "fsync", fsync)
    root = tmp_path / "new" / "store"
    store = Store(root)
    store.check_writable()
    finished(store, spec(0))
    source = filled(tmp_path / "source", 1)
    merge_stores([source.root], store)
    for seed in (0, 1):
        folder = store.path(spec(seed).id)
        for path in [*folder.iterdir(), folder, *list(folder.parents)[: len(folder.relative_to(tmp_path).parts)]]:
            about = path.stat()
            assert (about.st_dev, about.st_ino) in synced, path


@pytest.fixture
def dead(monkeypatch) -> Callable[[], None]:
    """Return a function after which no process runs."""
    return lambda: monkeypatch.setattr(processes, "start_of", lambda process: None)


def leave_drafts(store: Store, report: Path) -> list[Path]:
    """Leave what a process leaves that is killed while it writes."""
    with store.folder.opened(make=True) as root:
        root.create(f".probe-{processes.writer_mark()}", b"")
        root.create(f".index.sqlite-{processes.writer_mark()}", b"half")
        with root.below("attempts", make=True) as attempts:
            attempts.create(f".fleet-1.json-{processes.writer_mark()}", b"half")
    with files.opened_root(report.parent) as folder:
        folder.create(f".{report.name}-{processes.writer_mark()}", b"half")
    return [path for path in report.parent.rglob(".*") if path.is_file()]


def test_drafts_of_the_dead_are_cleared_and_those_of_the_living_stay(tmp_path, dead) -> None:
    store, report = Store(tmp_path / "store"), tmp_path / "report.md"
    left = leave_drafts(store, report)
    (tmp_path / ".other.md-00000000-1-0000000000000000").touch()
    assert len(left) == 4
    store.check_writable()
    replace_file(report, b"text")
    assert all(path.exists() for path in left)
    dead()
    store.check_writable()
    replace_file(report, b"text")
    assert not any(path.exists() for path in left) and report.read_bytes() == b"text"
    assert (tmp_path / ".other.md-00000000-1-0000000000000000").exists()


def test_drafts_of_older_versions_go_once_they_are_silent(tmp_path, monkeypatch) -> None:
    (tmp_path / ".index.sqlite-0123abcd").touch()
    (tmp_path / ".probe-77").touch()
    Store(tmp_path).check_writable()
    assert (tmp_path / ".probe-77").exists()
    monkeypatch.setattr(processes, "SILENT_AFTER", -1.0)
    Store(tmp_path).check_writable()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("name", ["listdir", "scandir", "stat", "open", "mkdir", "rename"])
def test_a_look_up_that_fails_is_one_line(tmp_path, monkeypatch, name: str) -> None:
    real = getattr(os, name)
    for at, number in zip(range(1, 40, 13), (errno.EIO, errno.ESTALE, errno.EACCES), strict=True):
        store, left = filled(tmp_path / str(at), 0), [at]

        def failing(*arguments, left=left, number=number, **named):
            left[0] -= 1
            if left[0] == 0:
                raise OSError(number, os.strerror(number))
            return real(*arguments, **named)

        with monkeypatch.context() as patched:
            patched.setattr(files.os, name, failing)
            try:
                act(store)
            except StoreError as error:
                assert "\n" not in str(error)
        act(store)
        assert list(store.ids()) == [spec(0).id] and verify_store(store).problems == []


@given(st.lists(st.tuples(st.sampled_from(["make", "file", "link", "remove", "move"]), *[st.sampled_from(NAMES)] * 2)))
def test_no_order_of_operations_leaves_the_root(tmp_path_factory, steps) -> None:
    base = tmp_path_factory.mktemp("door")
    outside = base / "outside"
    (outside / "a" / "b").mkdir(parents=True)
    (outside / "a" / "x").write_text("x")
    (base / "root").mkdir()
    before = content(outside)
    for what, one, other in steps:
        with contextlib.suppress(OSError, StoreError), Folder(base / "root", (one,)).opened(make=what == "make") as at:
            if what == "file":
                at.replace(other, b"data")
            elif what == "link":
                os.symlink(outside, other, dir_fd=at.number)
            elif what == "remove":
                at.remove(other)
            elif what == "move":
                at.move(other, at, one)
            else:
                at.clear_drafts(lambda name: True)
                assert all(isinstance(at.kind(name), str) for name in at.names())
        assert content(outside) == before
    shutil.rmtree(base)
