"""The store: one directory a run, which appears whole when the run ends.

    runs/<id[:2]>/<id>/spec.json  manifest.json  metrics.jsonl  result.json
    attempts/                     runs in progress, and what is left of those that were cut
    checkpoints/                  fleets in progress that take longer than a minute
    trash/                        runs that were removed
    leases/  slurm/               who has a fleet in hand, and files of jobs, where SLURM carries runs out
    index.sqlite                  a cache of the runs; deleting it changes nothing

Ending a run writes `result.json` into its attempt, makes everything durable, and renames the attempt to its place: one
step, which either happened or did not. Nothing finished is overwritten: a rename onto a finished run fails, so of two
processes that end the same run the first wins. No file is locked, so that a network file system will do.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from icl_bench.errors import RecordError, StoreError
from icl_bench.runs.record import Manifest, MetricPoint, RunRecord, RunResult
from icl_bench.runs.spec import ID_LENGTH, RUN_DOMAIN, RunSpec
from icl_bench.runs.store.attempt import (
    RunWriter,
    attempts,
    check_field,
    clear_attempts,
    clear_drafts,
    finish_moves,
    run_folder,
    set_aside,
)
from icl_bench.runs.store.checkpoint import clear_checkpoints
from icl_bench.runs.store.faults import reach
from icl_bench.runs.store.files import (
    parse_model,
    parse_object,
    read_bytes,
    sha256,
    unreadable,
    validate,
    writing,
)

RUN_ID = re.compile(rf"[0-9a-f]{{{ID_LENGTH}}}")
FOLDERS = ("runs", "attempts", "checkpoints", "trash", "leases", "slurm")
FILES = frozenset({"spec.json", "manifest.json", "metrics.jsonl"})


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
                f"a run id is {ID_LENGTH} hexadecimal digits; got {run_id!r}; list ids with `icl-bench runs list`"
            )
        return run_folder(self.root, run_id)

    def has(self, run_id: str) -> bool:
        """Whether the run is finished."""
        return (self.path(run_id) / "result.json").is_file()

    def check_writable(self) -> None:
        """Make the root folder, and clear up after killed processes.

        Raises:
            StoreError: where it cannot be written, or one of its folders is a link, which could lead elsewhere.
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
        self.check_folders()
        self.clear_up()

    def clear_up(self) -> None:
        """Finish what killed processes had begun to move, and remove what is left of them beside finished runs.

        Raises:
            StoreError: where the store cannot be written.
        """
        with writing(self.root):
            finish_moves(self.root)
            clear_drafts(self.root)
            clear_attempts(self.root, {attempt.run_id for attempt in attempts(self.root) if self.has(attempt.run_id)})
            clear_checkpoints(self.root, self.has)

    def check_folders(self) -> None:
        """Refuse links among the folders of the store.

        Raises:
            StoreError: naming the link.
        """
        for name in FOLDERS:
            if (self.root / name).is_symlink():
                raise StoreError(
                    f"the folders of a store are no links; {self.root / name} is one; move what it points to here"
                )

    def begin(self, spec: RunSpec, manifest: Manifest) -> RunWriter:
        """Start an attempt at a run.

        Raises:
            StoreError: where the store cannot be written.
        """
        return RunWriter(self.root, self.path(spec.id), spec, manifest)

    def load(self, run_id: str) -> RunRecord:
        """Read a finished run back, and check every byte of it.

        Raises:
            RecordError: where a file is missing, damaged, a link or of another version.
        """
        folder = self.path(run_id)
        for part in (folder.parent.parent, folder.parent, folder):
            if part.is_symlink():
                raise unreadable(folder / "result.json", f"{part.name} is a link")
        result = read_result(folder / "result.json")
        contents = {name: read_bytes(folder / name) for name in sorted(FILES)}
        for name, content in contents.items():
            if sha256(content) != result.files.get(name):
                raise RecordError(f"a stored file never changes; {folder / name} did; restore it or delete {folder}")
        check_identity(contents["spec.json"], result, folder)
        spec = parse_spec_file(contents["spec.json"], folder / "spec.json")
        if (result.seed, result.lr) != (spec["seed"], spec["train"]["lr"]):
            raise RecordError(
                f"a result has the seed and rate of its specification; that of {folder} has not; delete it"
            )
        lines = contents["metrics.jsonl"].splitlines()
        return RunRecord(
            spec=spec,
            manifest=parse_model(Manifest, contents["manifest.json"], folder / "manifest.json"),
            result=result,
            metrics=tuple(parse_model(MetricPoint, line, folder / "metrics.jsonl") for line in lines),
        )

    def ids(self) -> Iterator[str]:
        """Ids of all finished runs, in order; links are not followed."""
        for run_id, _ in self.folders():
            if (self.path(run_id) / "result.json").is_file():
                yield run_id

    def folders(self) -> Iterator[tuple[str, str]]:
        """Id and path of every run that is there, finished as far as its name tells, in order."""
        root = self.root / "runs"
        for prefix in sorted(entry.name for entry in scan(root) if len(entry.name) == 2):
            entries = [(entry.name, entry.path) for entry in scan(root / prefix) if RUN_ID.fullmatch(entry.name)]
            yield from sorted(entry for entry in entries if entry[0].startswith(prefix))

    def read_all(self) -> tuple[list[RunRecord], list[RecordError]]:
        """Every finished run that can be read, and the errors that keep others from it."""
        records, problems = [], []
        for run_id in self.ids():
            try:
                records.append(self.load(run_id))
            except RecordError as error:
                problems.append(error)
        return records, problems

    def find(self, prefix: str) -> str:
        """The id of the one finished run that begins so.

        Raises:
            StoreError: where there is none, or more than one.
        """
        if not re.fullmatch(rf"[0-9a-f]{{1,{ID_LENGTH}}}", prefix):
            raise StoreError(
                f"a run id begins with hexadecimal digits; got {prefix!r:.60}; list ids with `icl-bench runs list`"
            )
        found = [run_id for run_id, _ in self.folders() if run_id.startswith(prefix)]
        if len(found) != 1:
            named = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
            many = f"{len(found)} begin so: {named}; give more digits" if found else "none does"
            raise StoreError(
                f"one run of {self.root} begins with {prefix!r}; {many}; list ids with `icl-bench runs list`"
            )
        return found[0]

    def remove(self, run_id: str) -> Path:
        """Move a finished run to the trash of the store; returns where it is now.

        Raises:
            StoreError: where the store cannot be written.
        """
        self.check_folders()
        with writing(self.root):
            place = set_aside(self.path(run_id), self.root)
        reach("run-removed")
        return place


def read_result(path: Path) -> RunResult:
    """Read a result and check its own digest; raises RecordError."""
    data = read_bytes(path)
    result = parse_model(RunResult, data, path)
    if sha256(data.replace(check_field(result.check), check_field(""), 1)) != result.check:
        raise RecordError(f"a stored file never changes; {path} did; restore it or delete {path.parent}")
    return result


def check_identity(spec: bytes, result: RunResult, folder: Path) -> None:
    """See that a result belongs to its specification and both to their folder; raises RecordError."""
    digest = sha256(RUN_DOMAIN.encode() + b"\0" + spec.removesuffix(b"\n"))
    if digest != result.digest or digest[:ID_LENGTH] != folder.name or result.id != folder.name:
        raise RecordError(
            f"a record's id is the hash of its specification; that of {folder} is not; restore it or delete {folder}"
        )


def parse_spec_file(data: bytes, path: Path) -> dict[str, Any]:
    """A stored specification, checked and with every field there is; labels are no part of it. Raises RecordError."""
    spec = parse_object(data, path)
    components = [spec.get("task"), *(spec["arch"] if isinstance(spec.get("arch"), list) else [])]
    labelled = [{"label": "", **part} if isinstance(part, dict) else part for part in components]
    return validate(RunSpec, {**spec, "task": labelled[0], "arch": labelled[1:]}, path).model_dump(mode="json")


def scan(folder: Path) -> list["os.DirEntry[str]"]:
    """The folders in a folder that are no links; none where it is not there."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise StoreError(
            f"the store is a folder that can be read; {folder}: {error.strerror}; mend it, or choose another"
        ) from None
