"""Attempts: a run in progress has a folder of its own, which moves to its place in the store when the run ends.

    attempts/<id>-<host>-<process>-<token>/       files of the run so far
    attempts/fleet-<host>-<process>-<token>.json  names of the complete attempts of a fleet, while they are moved

A fleet is committed as a unit: all its results are written and durable, and a file names its attempts, before the first
attempt moves. If the process is killed in between, the next process that opens the store finishes the moves.
"""

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

from icl_bench.errors import RecordError, StoreError
from icl_bench.runs.kept import KEPT_FILES
from icl_bench.runs.record import Manifest, MetricPoint, RunResult
from icl_bench.runs.spec import ID_LENGTH, RunSpec
from icl_bench.runs.store import files
from icl_bench.runs.store.faults import reach
from icl_bench.runs.store.files import Folder, Handle
from icl_bench.runs.store.parsing import parse_object, tensors_length, text_of
from icl_bench.runs.store.processes import MARK, Writer, writer_mark
from icl_bench.schema import canonical_json

COMPANIONS = ("spec.json", "manifest.json", "metrics.jsonl")
"""Files of a run beside its result."""
RESULT = "result.json"
KEPT: Mapping[str, int] = {
    KEPT_FILES["model"]: 1 << 34,
    KEPT_FILES["samples"]: files.LARGEST_RECORD,
    KEPT_FILES["probes"]: files.LARGEST_RECORD,
}
"""Largest size in bytes of each further file that a run may keep; only `runs verify` and `merge` read them unasked."""
ATTEMPT = re.compile(rf"([0-9a-f]{{{ID_LENGTH}}})-{MARK}")
MARKER = re.compile(r"fleet-.*\.json", re.DOTALL)
"""Name of the file that names the complete attempts of a fleet."""


class RunWriter:
    """The files of one attempt at a run, until `commit_fleet` moves them to the place of the run."""

    def __init__(self, root: Path, spec: RunSpec, manifest: Manifest) -> None:
        self.run_id = spec.id
        self.folder = Folder(root, ("attempts", f"{spec.id}-{writer_mark()}"))
        self.kept: list[str] = []
        with files.writing(self.attempt), self.folder.opened(make=True) as folder:
            reach("attempt-made")
            folder.create("spec.json", text_of(spec))
            folder.create("manifest.json", text_of(manifest))
            self.metrics = os.open("metrics.jsonl", files.NEW, 0o644, dir_fd=folder.number)
        reach("attempt-begun")

    @property
    def attempt(self) -> Path:
        """Path of the attempt."""
        return self.folder.path

    def log(self, point: MetricPoint) -> None:
        """Append a validation to metrics.jsonl; the commit waits until it is on the disk."""
        line = text_of(point)
        with files.writing(self.attempt):
            files.write_all(self.metrics, line[:9])
            reach("metrics-torn")
            files.write_all(self.metrics, line[9:])
        reach("metrics-logged")

    def keep(self, name: str, data: bytes) -> None:
        """Add one of the files `KEPT` to the run; raise StoreError if it is too large or cannot be written."""
        if len(data) > KEPT[name]:
            raise StoreError(f"a run keeps {name} of at most {KEPT[name]:,} bytes; got {len(data):,}; keep fewer")
        with files.writing(self.attempt), self.folder.opened() as folder:
            folder.create(name, data)
        self.kept.append(name)

    def commit(self, result: RunResult) -> RunResult:
        """Commit a fleet that consists of this run; see `commit_fleet`."""
        return commit_fleet([self], [result])[0]

    def seal(self, result: RunResult) -> RunResult:
        """Complete the attempt by writing the result with the digests of the other files; return that result."""
        names = (*COMPANIONS, *self.kept)
        os.close(self.metrics)
        with self.folder.opened() as folder:
            digests = {name: folder.digest(name, KEPT.get(name, files.LARGEST_RECORD)) for name in names}
            blank = text_of(result.model_copy(update={"files": digests, "check": ""}))
            result = result.model_copy(update={"files": digests, "check": files.sha256(blank)})
            folder.create(RESULT, text_of(result))
            folder.sync([*names, RESULT])
        reach("result-written")
        return result

    def abandon(self) -> None:
        """Delete the attempt."""
        os.close(self.metrics)
        with suppress(OSError, StoreError), Folder(self.folder.root, ("attempts",)).opened() as attempts:
            attempts.remove(self.folder.names[-1])


def commit_fleet(writers: Sequence[RunWriter], results: Sequence[RunResult]) -> list[RunResult]:
    """Move the attempts of a fleet to the places of their runs: all of them, or none if this process is killed before.

    If two processes finish the same run, the first one wins. A StoreError leaves no run of the fleet committed, or the
    next process that opens the store commits all of them.
    """
    root = writers[0].folder.root
    with files.writing(root), Folder(root, ("attempts",)).opened(make=True) as attempts:
        sealed = [seal_once(writer, result) for writer, result in zip(writers, results, strict=True)]
        names = [writer.folder.names[-1] for writer in writers]
        marker = f"fleet-{writer_mark()}.json"
        if len(names) > 1:
            attempts.replace(marker, (canonical_json({"attempts": names}) + "\n").encode())
        reach("fleet-sealed")
        publish_all(root, attempts, names)
        if len(names) > 1:
            attempts.remove(marker)
        reach("fleet-published")
    clear_attempts(root, {result.id for result in sealed})
    reach("attempts-cleared")
    return sealed


def seal_once(writer: RunWriter, result: RunResult) -> RunResult:
    """Write a result, unless another process finished the run and deleted this attempt."""
    try:
        return writer.seal(result)
    except (FileNotFoundError, RecordError):
        if not is_finished(writer.folder.root, writer.run_id):
            raise
        return result


def publish_all(root: Path, attempts: Handle, names: Sequence[str]) -> None:
    """Move complete attempts to the places of their runs, durably; delete attempts at runs that are finished."""
    with Folder(root, ("runs",)).opened(make=True) as runs, ExitStack() as opened:
        targets: dict[str, Handle] = {}
        for name in names:
            if name[:2] not in targets:
                targets[name[:2]] = opened.enter_context(runs.below(name[:2], make=True))
            publish(attempts, name, targets[name[:2]], root)
            reach("run-published")
        files.sync_folders((folder, ()) for folder in (*targets.values(), runs))


def publish(attempts: Handle, name: str, target: Handle, root: Path) -> None:
    """Move a complete attempt to the place of its run, unless that holds a finished run; then delete the attempt.

    The caller waits for the disk.
    """
    run_id = name[:ID_LENGTH]
    if target.kind(run_id) == "folder":
        with target.below(run_id) as there:
            blocked = there.kind(RESULT) != "file" and bool(there.names())
        if blocked:
            set_aside(target, run_id, root)  # an incomplete copy made by other means would block this run for ever
    if not attempts.move(name, target, run_id):
        attempts.remove(name)


def set_aside(folder: Handle, name: str, root: Path) -> Path:
    """Move a folder to the trash of the store, durably, and return its new path."""
    new_name = f"{name}-{time.time_ns()}"
    with Folder(root).opened() as top, top.below("trash", make=True) as trash:
        top.sync()  # the new place is on the disk before the old one is given up
        folder.move(name, trash, new_name)
        trash.sync()
        folder.sync()
        return trash.path / new_name


def run_folder(root: Path, run_id: str) -> Folder:
    """Return the folder of a finished run."""
    return Folder(root, ("runs", run_id[:2], run_id))


def is_finished(root: Path, run_id: str) -> bool:
    """Return whether the store under this root holds a finished run; raise StoreError if a link is in its way."""
    try:
        with run_folder(root, run_id).opened() as folder:
            return folder.kind(RESULT) == "file"
    except FileNotFoundError:
        return False


def finish_moves(root: Path) -> None:
    """Finish the moves that killed processes began; several processes may do so at the same time."""
    with suppress(FileNotFoundError), Folder(root, ("attempts",)).opened() as attempts:
        for marker in filter(MARKER.fullmatch, attempts.names()):
            try:
                named = parse_object(attempts.read(marker), attempts.path / marker).get("attempts")
            except RecordError:
                named = None  # a marker appears whole, so this one is damaged; its runs are trained again
            names = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
            complete = [name for name in names if ATTEMPT.fullmatch(name) and is_complete(attempts, name)]
            publish_all(root, attempts, complete)
            attempts.remove(marker)


def is_complete(attempts: Handle, name: str) -> bool:
    """Return whether an attempt has a result."""
    try:
        with attempts.below(name) as folder:
            return folder.kind(RESULT) == "file"
    except (FileNotFoundError, StoreError):
        return False


def clear_attempts(root: Path, run_ids: set[str]) -> None:
    """Delete attempts at finished runs; a process that still works on one finds the finished run when it commits."""
    with suppress(FileNotFoundError), Folder(root, ("attempts",)).opened() as folder:
        for name in folder.names():
            found = ATTEMPT.fullmatch(name)
            if found and found[1] in run_ids:
                folder.remove(name)


class Attempt(NamedTuple):
    """An attempt found in a store."""

    run_id: str
    folder: Folder
    writer: Writer
    changed: float
    """Time of the last change, in seconds."""

    @property
    def active(self) -> bool:
        """Return whether its process runs or, where that cannot be looked up, whether its files changed recently."""
        return self.writer.is_alive(self.changed)


def attempts(root: Path) -> Iterator[Attempt]:
    """Yield the attempts in a store, sorted by name."""
    place = Folder(root, ("attempts",))
    with suppress(FileNotFoundError), place.opened() as folder:
        for name in folder.folders():
            found = ATTEMPT.fullmatch(name)
            if found:
                yield Attempt(found[1], place.at(name), Writer.of(found, 2), folder.changed(name))


def kept_length(folder: Handle, name: str) -> int:
    """Return the largest length in bytes of a file that a run kept; raise RecordError for a file of another name."""
    if name not in KEPT:
        raise RecordError(f"a run keeps {', '.join(KEPT)}; {folder.path} names {name!r:.60}; delete it")
    return tensors_length(folder, name, KEPT[name]) if name == KEPT_FILES["model"] else KEPT[name]


def check_field(digest: str) -> bytes:
    """Return the bytes by which a result holds its own digest; the digest itself is computed with an empty one."""
    return f'"check":"{digest}"'.encode()
