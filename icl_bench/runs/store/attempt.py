"""Attempts: a run in progress has a folder of its own, which moves to its place in the store when the run ends.

    attempts/<id>-<host>-<process>-<token>/       files of the run so far
    attempts/fleet-<host>-<process>-<token>.json  names of the complete attempts of a fleet, while they are moved

A fleet is committed as a unit: all its results are written, and a file names its attempts, before the first attempt
moves. If the process is killed in between, the next process that opens the store finishes the moves.
"""

import hashlib
import os
import platform
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from icl_bench.errors import RecordError
from icl_bench.runs.record import Manifest, MetricPoint, RunResult
from icl_bench.runs.spec import ID_LENGTH, RunSpec
from icl_bench.runs.store import files
from icl_bench.runs.store.faults import reach
from icl_bench.schema import Frozen, canonical_json

COMPANIONS = ("spec.json", "manifest.json", "metrics.jsonl")
"""Files of a run beside its result."""
HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
"""Hash of the name of this host."""
ATTEMPT = re.compile(rf"([0-9a-f]{{{ID_LENGTH}}})-([0-9a-f]{{8}})-(\d+)-[0-9a-f]{{8}}")
DRAFT = re.compile(r"\.fleet-([0-9a-f]{8})-(\d+)-.*")
"""Name of a file that names the attempts of a fleet, while it is being written."""
SILENT_AFTER = 600.0
"""Seconds without a change after which an attempt of another host counts as interrupted."""


class RunWriter:
    """The files of one attempt at a run, until `commit_fleet` moves them to the place of the run."""

    def __init__(self, root: Path, folder: Path, spec: RunSpec, manifest: Manifest) -> None:
        self.root, self.folder = root, folder
        self.attempt = root / "attempts" / f"{spec.id}-{HOST}-{os.getpid()}-{secrets.token_hex(4)}"
        with files.writing(self.attempt):
            self.attempt.mkdir(parents=True)
            reach("attempt-made")
            files.write_file(self.attempt / "spec.json", text_of(spec))
            files.write_file(self.attempt / "manifest.json", text_of(manifest))
            self.metrics = os.open(self.attempt / "metrics.jsonl", files.NEW, 0o644)
        reach("attempt-begun")

    def log(self, point: MetricPoint) -> None:
        """Append a validation to metrics.jsonl and wait until it is on the disk."""
        line = text_of(point)
        with files.writing(self.attempt):
            files.write_all(self.metrics, line[:9])
            reach("metrics-torn")
            files.write_all(self.metrics, line[9:])
            os.fsync(self.metrics)
        reach("metrics-logged")

    def commit(self, result: RunResult) -> RunResult:
        """Commit a fleet that consists of this run; see `commit_fleet`."""
        return commit_fleet([self], [result])[0]

    def seal(self, result: RunResult) -> RunResult:
        """Complete the attempt by writing the result with the digests of the other files; return that result."""
        os.close(self.metrics)
        digests = {name: files.sha256(files.read_bytes(self.attempt / name)) for name in COMPANIONS}
        blank = text_of(result.model_copy(update={"files": digests, "check": ""}))
        result = result.model_copy(update={"files": digests, "check": files.sha256(blank)})
        files.write_file(self.attempt / "result.json", text_of(result))
        files.sync_folder(self.attempt)
        reach("result-written")
        return result

    def abandon(self) -> None:
        """Delete the attempt."""
        os.close(self.metrics)
        files.remove_folder(self.attempt)


def commit_fleet(writers: Sequence[RunWriter], results: Sequence[RunResult]) -> list[RunResult]:
    """Move the attempts of a fleet to the places of their runs: all of them, or none if this process is killed before.

    If two processes finish the same run, the first one wins. A StoreError leaves no run of the fleet committed, or the
    next process that opens the store commits all of them.
    """
    root = writers[0].root
    with files.writing(root):
        sealed = [seal_once(writer, result) for writer, result in zip(writers, results, strict=True)]
        names = [writer.attempt.name for writer in writers]
        marker = root / "attempts" / f"fleet-{HOST}-{os.getpid()}-{secrets.token_hex(8)}.json"
        if len(names) > 1:
            files.replace_file(marker, (canonical_json({"attempts": names}) + "\n").encode())
        reach("fleet-sealed")
        publish_all(root, names)
        marker.unlink(missing_ok=True)
        reach("fleet-published")
    clear_attempts(root, {result.id for result in sealed})
    reach("attempts-cleared")
    return sealed


def seal_once(writer: RunWriter, result: RunResult) -> RunResult:
    """Write a result, unless another process finished the run and deleted this attempt."""
    try:
        return writer.seal(result)
    except (FileNotFoundError, RecordError):
        if not (writer.folder / "result.json").is_file():
            raise
        return result


def publish_all(root: Path, names: Iterable[str]) -> None:
    """Move complete attempts to the places of their runs; delete attempts at runs that are finished already."""
    for name in names:
        publish(root / "attempts" / name, run_folder(root, name[:ID_LENGTH]), root)
        reach("run-published")


def publish(source: Path, target: Path, root: Path) -> None:
    """Move a complete folder to its place, unless that place holds a finished run; then delete the folder."""
    if target.is_dir() and not (target / "result.json").exists() and any(target.iterdir()):
        set_aside(target, root)  # an incomplete copy made by other means would block this run for ever
    if not files.move_folder(source, target):
        files.remove_folder(source)


def set_aside(folder: Path, root: Path) -> Path:
    """Move a folder to the trash of the store and return its new path."""
    target = root / "trash" / f"{folder.name}-{time.time_ns()}"
    files.move_folder(folder, target)
    return target


def run_folder(root: Path, run_id: str) -> Path:
    """Return the folder of a finished run."""
    return root / "runs" / run_id[:2] / run_id


def finish_moves(root: Path) -> None:
    """Finish the moves that killed processes began; several processes may do so at the same time."""
    for marker in sorted((root / "attempts").glob("fleet-*.json")):
        try:
            names = files.parse_object(files.read_bytes(marker), marker).get("attempts", [])
        except RecordError:
            names = []  # a marker appears whole, so this one is damaged; its runs are trained again
        complete = [name for name in names if isinstance(name, str) and ATTEMPT.fullmatch(name)]
        publish_all(root, (name for name in complete if (root / "attempts" / name / "result.json").is_file()))
        marker.unlink(missing_ok=True)


def clear_attempts(root: Path, run_ids: set[str]) -> None:
    """Delete attempts at finished runs; a process that still works on one finds the finished run when it commits."""
    for attempt in attempts(root):
        if attempt.run_id in run_ids:
            files.remove_folder(attempt.folder)


def clear_drafts(root: Path) -> None:
    """Delete files that a killed process was writing to name the attempts of a fleet."""
    for path in (root / "attempts").glob(".fleet-*"):
        found = DRAFT.fullmatch(path.name)
        if found and not is_active(found[1], int(found[2]), path):
            path.unlink(missing_ok=True)


class Attempt(NamedTuple):
    """An attempt found in a store."""

    run_id: str
    folder: Path
    host: str
    process: int

    @property
    def active(self) -> bool:
        """Return whether its process runs or, for another host, whether its files changed recently."""
        return is_active(self.host, self.process, self.folder)


def is_active(host: str, process: int, path: Path) -> bool:
    """Return whether the process that made a path runs or, for another host, whether the path changed recently."""
    try:
        if host != HOST:
            return time.time() - max(part.stat().st_mtime for part in (path, *path.glob("*"))) < SILENT_AFTER
        os.kill(process, 0)
    except (FileNotFoundError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


def attempts(root: Path) -> Iterator[Attempt]:
    """Yield the attempts in a store, sorted by name."""
    folder = root / "attempts"
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        found = ATTEMPT.fullmatch(path.name)
        if found:
            yield Attempt(found[1], path, found[2], int(found[3]))


def text_of(record: Frozen) -> bytes:
    """Return a record as a line of canonical JSON."""
    return (canonical_json(record.model_dump(mode="json")) + "\n").encode()


def check_field(digest: str) -> bytes:
    """Return the bytes by which a result holds its own digest; the digest itself is computed with an empty one."""
    return f'"check":"{digest}"'.encode()
