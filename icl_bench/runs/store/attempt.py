"""Attempts: a run in progress is a folder of its own, and its end moves that folder into the store.

    attempts/<id>-<host>-<process>-<token>/   the files of the run so far
    attempts/fleet-<host>-<process>-<token>.json  a fleet whose members are all complete, while they are being moved

A fleet is committed as one: its results are all written before the first is moved, and a file names them. Where a
process is killed in between, the next one to open the store finishes the moves, so that no fleet is cut in two.
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
from icl_bench.runs.store.faults import reach
from icl_bench.runs.store.files import (
    NEW,
    move_folder,
    parse_object,
    read_bytes,
    remove_folder,
    replace_file,
    sha256,
    sync_folder,
    write_all,
    write_file,
    writing,
)
from icl_bench.schema import Frozen, canonical_json

COMPANIONS = ("spec.json", "manifest.json", "metrics.jsonl")
HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
ATTEMPT = re.compile(rf"([0-9a-f]{{{ID_LENGTH}}})-([0-9a-f]{{8}})-(\d+)-[0-9a-f]{{8}}")
DRAFT = re.compile(r"\.fleet-([0-9a-f]{8})-(\d+)-.*")
"""What is to become the file of a fleet, before it is whole."""
SILENT_AFTER = 600.0
"""Seconds without a change after which an attempt on another host counts as cut."""


class RunWriter:
    """One attempt at a run: collects its metrics until `commit_fleet` moves it to its place."""

    def __init__(self, root: Path, folder: Path, spec: RunSpec, manifest: Manifest) -> None:
        self.root, self.folder = root, folder
        self.attempt = root / "attempts" / f"{spec.id}-{HOST}-{os.getpid()}-{secrets.token_hex(4)}"
        with writing(self.attempt):
            self.attempt.mkdir(parents=True)
            reach("attempt-made")
            write_file(self.attempt / "spec.json", text_of(spec))
            write_file(self.attempt / "manifest.json", text_of(manifest))
            self.metrics = os.open(self.attempt / "metrics.jsonl", NEW, 0o644)
        reach("attempt-begun")

    def log(self, point: MetricPoint) -> None:
        """Append a line and make it durable."""
        line = text_of(point)
        with writing(self.attempt):
            write_all(self.metrics, line[:9])
            reach("metrics-torn")
            write_all(self.metrics, line[9:])
            os.fsync(self.metrics)
        reach("metrics-logged")

    def commit(self, result: RunResult) -> RunResult:
        """Commit a fleet of this one run; see `commit_fleet`."""
        return commit_fleet([self], [result])[0]

    def seal(self, result: RunResult) -> RunResult:
        """Write the result, which makes the attempt complete; returns it with the digests of the other files."""
        os.close(self.metrics)
        digests = {name: sha256(read_bytes(self.attempt / name)) for name in COMPANIONS}
        blank = text_of(result.model_copy(update={"files": digests, "check": ""}))
        result = result.model_copy(update={"files": digests, "check": sha256(blank)})
        write_file(self.attempt / "result.json", text_of(result))
        sync_folder(self.attempt)
        reach("result-written")
        return result

    def abandon(self) -> None:
        """Drop the attempt."""
        os.close(self.metrics)
        remove_folder(self.attempt)


def commit_fleet(writers: Sequence[RunWriter], results: Sequence[RunResult]) -> list[RunResult]:
    """Move the attempts of a fleet into the store, all of them or, where this process is killed before, none.

    Of two processes that end the same run the first wins.

    Raises:
        StoreError: where the store cannot be written; nothing of the fleet is committed then, or all of it will be.
    """
    root = writers[0].root
    with writing(root):
        sealed = [seal_once(writer, result) for writer, result in zip(writers, results, strict=True)]
        names = [writer.attempt.name for writer in writers]
        marker = root / "attempts" / f"fleet-{HOST}-{os.getpid()}-{secrets.token_hex(8)}.json"
        if len(names) > 1:
            replace_file(marker, text_of_names(names))
        reach("fleet-sealed")
        publish_all(root, names)
        marker.unlink(missing_ok=True)
        reach("fleet-published")
    clear_attempts(root, {result.id for result in sealed})
    reach("attempts-cleared")
    return sealed


def seal_once(writer: RunWriter, result: RunResult) -> RunResult:
    """Write a result, unless another process has ended the run and cleared this attempt away."""
    try:
        return writer.seal(result)
    except (FileNotFoundError, RecordError):
        if not (writer.folder / "result.json").is_file():
            raise
        return result


def publish_all(root: Path, names: Iterable[str]) -> None:
    """Move complete attempts to their places; those that are there already are dropped."""
    for name in names:
        publish(root / "attempts" / name, run_folder(root, name[:ID_LENGTH]), root)
        reach("run-published")


def publish(source: Path, target: Path, root: Path) -> None:
    """Move one complete folder to its place, unless that holds a finished run."""
    if target.is_dir() and not (target / "result.json").exists() and any(target.iterdir()):
        set_aside(target, root)  # half a copy, made by other means: it would be in the way for ever
    if not move_folder(source, target):
        remove_folder(source)


def set_aside(folder: Path, root: Path) -> Path:
    """Move a folder to the trash of the store; returns its new place."""
    target = root / "trash" / f"{folder.name}-{time.time_ns()}"
    move_folder(folder, target)
    return target


def run_folder(root: Path, run_id: str) -> Path:
    """Where a finished run lies."""
    return root / "runs" / run_id[:2] / run_id


def finish_moves(root: Path) -> None:
    """Finish what killed processes had begun to move; another process may be doing the same."""
    for marker in sorted((root / "attempts").glob("fleet-*.json")):
        try:
            names = parse_object(read_bytes(marker), marker).get("attempts", [])
        except RecordError:
            names = []  # a marker appears whole: this one is damaged, and its runs are done again
        complete = [name for name in names if isinstance(name, str) and ATTEMPT.fullmatch(name)]
        publish_all(root, (name for name in complete if (root / "attempts" / name / "result.json").is_file()))
        marker.unlink(missing_ok=True)


def clear_attempts(root: Path, run_ids: set[str]) -> None:
    """Remove what is left of earlier attempts at finished runs; an attempt that still goes on will find the run."""
    for attempt in attempts(root):
        if attempt.run_id in run_ids:
            remove_folder(attempt.folder)


def clear_drafts(root: Path) -> None:
    """Remove files of fleets that a killed process did not write to the end."""
    for path in (root / "attempts").glob(".fleet-*"):
        found = DRAFT.fullmatch(path.name)
        if found and not at_work(found[1], int(found[2]), path):
            path.unlink(missing_ok=True)


class Attempt(NamedTuple):
    """An attempt that is there."""

    run_id: str
    folder: Path
    host: str
    process: int

    @property
    def alive(self) -> bool:
        """Whether its process is there, or, on another host, whether it changed of late."""
        return at_work(self.host, self.process, self.folder)


def at_work(host: str, process: int, path: Path) -> bool:
    """Whether the process that made a folder or file is there, or, on another host, whether it changed of late."""
    if host != HOST:
        return changed_of_late(path)
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def attempts(root: Path) -> Iterator[Attempt]:
    """Attempts that are there, in order."""
    folder = root / "attempts"
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        found = ATTEMPT.fullmatch(path.name)
        if found:
            yield Attempt(found[1], path, found[2], int(found[3]))


def changed_of_late(path: Path) -> bool:
    """Whether a file, or a folder or a file in it, changed within ten minutes."""
    try:
        return time.time() - max(part.stat().st_mtime for part in (path, *path.glob("*"))) < SILENT_AFTER
    except FileNotFoundError:
        return False


def text_of(record: Frozen) -> bytes:
    """A record as a line of canonical JSON."""
    return (canonical_json(record.model_dump(mode="json")) + "\n").encode()


def check_field(digest: str) -> bytes:
    """How a result holds its own digest, which is taken with none in its place."""
    return f'"check":"{digest}"'.encode()


def text_of_names(names: Sequence[str]) -> bytes:
    """What names the attempts of a fleet."""
    return (canonical_json({"attempts": list(names)}) + "\n").encode()
