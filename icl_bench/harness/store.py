"""The store: one directory a run, which appears whole when the run ends.

    runs/<id[:2]>/<id>/spec.json  manifest.json  metrics.jsonl  result.json
    attempts/<id>-<process>-<n>/  the same while the run is in progress

Ending a run writes `result.json` into its attempt, makes everything durable, and renames the attempt to its place: one
step, which either happened or did not. A run that was cut short leaves an attempt that nobody reads. Nothing finished
is overwritten: a rename onto a finished run fails, so of two processes that end the same run the first wins.
"""

import errno
import hashlib
import itertools
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from icl_bench.errors import RecordError, StoreError
from icl_bench.harness.record import SCHEMA, Manifest, MetricPoint, RunRecord, RunResult
from icl_bench.harness.spec import ID_LENGTH, RunSpec
from icl_bench.schema import Frozen, canonical_json

COMPANIONS = ("spec.json", "manifest.json", "metrics.jsonl")
RUN_ID = re.compile(rf"[0-9a-f]{{{ID_LENGTH}}}")
ATTEMPT_NUMBERS = itertools.count()

FrozenT = TypeVar("FrozenT", bound=Frozen)


class Store:
    """Runs under a root folder, which is made when first written to."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, run_id: str) -> Path:
        """Directory of a run.

        Raises:
            StoreError: where the id is not 16 hexadecimal digits, so that no name can leave the store.
        """
        if not RUN_ID.fullmatch(run_id):
            raise StoreError(
                f"a run id is {ID_LENGTH} hexadecimal digits; got {run_id!r}; list ids with `icl-bench report`"
            )
        return self.root / "runs" / run_id[:2] / run_id

    def has(self, run_id: str) -> bool:
        """Whether the run is finished."""
        return (self.path(run_id) / "result.json").is_file()

    def check_writable(self) -> None:
        """Make the root folder.

        Raises:
            StoreError: where it cannot be written.
        """
        try:
            (self.root / "runs").mkdir(parents=True, exist_ok=True)
            probe = self.root / f".probe-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise StoreError(
                f"the store is a folder that can be written; {self.root}: {error.strerror}; choose another with --store"
            ) from None

    def begin(self, spec: RunSpec, manifest: Manifest) -> "RunWriter":
        """Start an attempt at a run."""
        return RunWriter(self.root, self.path(spec.id), spec, manifest)

    def load(self, run_id: str) -> RunRecord:
        """Read a finished run back.

        Raises:
            RecordError: where a file is missing, damaged or of another version.
        """
        folder = self.path(run_id)
        result = read_model(RunResult, folder / "result.json")
        for name, digest in result.files.items():
            if sha256(read_bytes(folder / name)) != digest:
                raise RecordError(f"a stored file never changes; {folder / name} did; restore it or delete {folder}")
        lines = read_bytes(folder / "metrics.jsonl").splitlines()
        metrics = tuple(parse_model(MetricPoint, line, folder / "metrics.jsonl") for line in lines)
        spec = parse_object(read_bytes(folder / "spec.json"), folder / "spec.json")
        return RunRecord(
            spec=spec, manifest=read_model(Manifest, folder / "manifest.json"), result=result, metrics=metrics
        )

    def ids(self) -> Iterator[str]:
        """Ids of all finished runs, in order."""
        for result in sorted((self.root / "runs").glob("[0-9a-f][0-9a-f]/*/result.json")):
            if RUN_ID.fullmatch(result.parent.name):
                yield result.parent.name

    def read_all(self) -> tuple[list[RunRecord], list[RecordError]]:
        """Every finished run that can be read, and the errors that keep others from it."""
        records, problems = [], []
        for run_id in self.ids():
            try:
                records.append(self.load(run_id))
            except RecordError as error:
                problems.append(error)
        return records, problems


class RunWriter:
    """One attempt at a run: collects its metrics and commits its result."""

    def __init__(self, root: Path, folder: Path, spec: RunSpec, manifest: Manifest) -> None:
        self.folder = folder
        self.attempt = root / "attempts" / f"{spec.id}-{os.getpid()}-{next(ATTEMPT_NUMBERS)}"
        self.attempt.mkdir(parents=True)
        write_file(self.attempt / "spec.json", canonical_json(spec.model_dump(mode="json")))
        write_file(self.attempt / "manifest.json", canonical_json(manifest.model_dump(mode="json")))
        self.metrics = os.open(self.attempt / "metrics.jsonl", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)

    def log(self, point: MetricPoint) -> None:
        """Append a line and make it durable."""
        write_all(self.metrics, (canonical_json(point.model_dump(mode="json")) + "\n").encode())
        os.fsync(self.metrics)

    def commit(self, result: RunResult) -> RunResult:
        """Write the result and move the attempt to its place; returns the result with the digests of the files."""
        os.close(self.metrics)
        digests = {name: sha256(read_bytes(self.attempt / name)) for name in COMPANIONS}
        result = result.model_copy(update={"files": digests})
        write_file(self.attempt / "result.json", canonical_json(result.model_dump(mode="json")))
        sync_folder(self.attempt)
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.attempt.rename(self.folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            shutil.rmtree(self.attempt)
        sync_folder(self.folder.parent)
        return result

    def abandon(self) -> None:
        """Drop the attempt."""
        os.close(self.metrics)
        shutil.rmtree(self.attempt, ignore_errors=True)


def write_file(path: Path, text: str) -> None:
    """Write a new file and make it durable."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        write_all(handle, (text + "\n").encode())
        os.fsync(handle)
    finally:
        os.close(handle)


def write_all(handle: int, data: bytes) -> None:
    """Write all of it: one call may write a part."""
    while data:
        data = data[os.write(handle, data) :]


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(data: bytes) -> str:
    """SHA-256 in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def read_bytes(path: Path) -> bytes:
    """The content of a stored file.

    Raises:
        RecordError: where it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise RecordError(
            f"a record must be readable; {path}: {error.strerror}; restore it or delete {path.parent}"
        ) from None


def read_model(model: type[FrozenT], path: Path) -> FrozenT:
    """Read a stored record; raises RecordError."""
    return parse_model(model, read_bytes(path), path)


def parse_model(model: type[FrozenT], data: bytes, path: Path) -> FrozenT:
    """Read a record from its text; raises RecordError."""
    plain = parse_object(data, path)
    version = plain.get("schema_version", SCHEMA)
    if version != SCHEMA:
        raise RecordError(
            f"records are read in version {SCHEMA}; {path} has version {version!r}; use the icl-bench that wrote it"
        )
    try:
        return model.model_validate(plain)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RecordError(
            f"a record must have the fields of {model.__name__}; {path}: {where}: {first['msg']}; delete {path.parent}"
        ) from None


def parse_object(data: bytes, path: Path) -> dict[str, Any]:
    """Read a JSON object; raises RecordError."""
    try:
        plain = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"a record must be JSON; {path}: {error}; restore it or delete {path.parent}") from None
    if not isinstance(plain, dict):
        raise RecordError(f"a record must be a JSON object; {path} is not; restore it or delete {path.parent}")
    return plain
