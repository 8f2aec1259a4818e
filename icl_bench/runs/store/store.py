"""The store: one folder per run, which appears completely when the run ends.

    runs/<id[:2]>/<id>/spec.json  manifest.json  metrics.jsonl  result.json
    attempts/                     runs in progress, and remains of interrupted ones
    checkpoints/                  saved states of fleets that train for more than a minute
    trash/                        removed runs
    leases/  slurm/               claims of SLURM workers on fleets, and files of SLURM jobs
    index.sqlite                  a cache of the runs; deleting it changes nothing

To finish a run, a process writes `result.json` into its attempt, waits until every file is on the disk, and renames the
attempt to its place; that single step either happened or did not. A finished run is never overwritten: a rename onto
it fails, so the first of two processes that finish the same run wins. No file is locked, so that the store works on
network file systems.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from icl_bench.errors import RecordError, StoreError
from icl_bench.runs.record import Manifest, MetricPoint, RunRecord, RunResult
from icl_bench.runs.spec import ID_LENGTH, RUN_DOMAIN, RunSpec
from icl_bench.runs.store import attempt, files
from icl_bench.runs.store.checkpoint import clear_checkpoints
from icl_bench.runs.store.faults import reach

RUN_ID = re.compile(rf"[0-9a-f]{{{ID_LENGTH}}}")
FOLDERS = ("runs", "attempts", "checkpoints", "trash", "leases", "slurm")


class Store:
    """The runs under a root folder, which is created at the first write."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, run_id: str) -> Path:
        """Return the folder of a run; raise StoreError unless its id is 16 hexadecimal digits."""
        if not RUN_ID.fullmatch(run_id):
            raise StoreError(
                f"a run id is {ID_LENGTH} hexadecimal digits; got {run_id!r}; list ids with `icl-bench runs list`"
            )
        return attempt.run_folder(self.root, run_id)

    def has(self, run_id: str) -> bool:
        """Return whether the run is finished."""
        return (self.path(run_id) / "result.json").is_file()

    def check_writable(self) -> None:
        """Create the root folder and clean up after killed processes; raise StoreError if the store cannot be used."""
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
        """Finish the moves that killed processes began, and delete attempts and checkpoints of finished runs."""
        with files.writing(self.root):
            attempt.finish_moves(self.root)
            attempt.clear_drafts(self.root)
            tried = {found.run_id for found in attempt.attempts(self.root)}
            attempt.clear_attempts(self.root, {run_id for run_id in tried if self.has(run_id)})
            clear_checkpoints(self.root, self.has)

    def check_folders(self) -> None:
        """Raise StoreError if one of the folders of the store is a symbolic link, which could lead elsewhere."""
        for name in FOLDERS:
            if (self.root / name).is_symlink():
                raise StoreError(
                    f"the folders of a store are no links; {self.root / name} is one; move what it points to here"
                )

    def begin(self, spec: RunSpec, manifest: Manifest) -> attempt.RunWriter:
        """Start an attempt at a run; raise StoreError if the store cannot be written."""
        return attempt.RunWriter(self.root, self.path(spec.id), spec, manifest)

    def load(self, run_id: str) -> RunRecord:
        """Read a finished run, and compare every byte with its digest; raise RecordError if a file is damaged."""
        folder = self.path(run_id)
        for part in (folder.parent.parent, folder.parent, folder):
            if part.is_symlink():
                raise files.unreadable(folder / "result.json", f"{part.name} is a link")
        result = read_result(folder / "result.json")
        contents = {name: files.read_bytes(folder / name) for name in attempt.COMPANIONS}
        for name, content in contents.items():
            if files.sha256(content) != result.files.get(name):
                raise RecordError(f"a stored file never changes; {folder / name} did; restore it or delete {folder}")
        check_identity(contents["spec.json"], result, folder)
        spec = parse_spec_file(contents["spec.json"], folder / "spec.json")
        if (result.seed, result.lr) != (spec["seed"], spec["train"]["lr"]):
            raise RecordError(
                f"a result has the seed and learning rate of its specification; that of {folder} differs; delete it"
            )
        lines = contents["metrics.jsonl"].splitlines()
        return RunRecord(
            spec=spec,
            manifest=files.parse_model(Manifest, contents["manifest.json"], folder / "manifest.json"),
            result=result,
            metrics=tuple(files.parse_model(MetricPoint, line, folder / "metrics.jsonl") for line in lines),
        )

    def ids(self) -> Iterator[str]:
        """Yield the ids of all finished runs, in order; links are not followed."""
        return (run_id for run_id, _ in self.folders() if self.has(run_id))

    def folders(self) -> Iterator[tuple[str, str]]:
        """Yield the id and the path of every folder named like a run, in the order of ids."""
        root = self.root / "runs"
        for prefix in sorted(entry.name for entry in scan(root) if len(entry.name) == 2):
            entries = [(entry.name, entry.path) for entry in scan(root / prefix) if RUN_ID.fullmatch(entry.name)]
            yield from sorted(entry for entry in entries if entry[0].startswith(prefix))

    def find(self, prefix: str) -> str:
        """Return the only id that begins with `prefix`; raise StoreError if there is none, or more than one."""
        if not re.fullmatch(rf"[0-9a-f]{{1,{ID_LENGTH}}}", prefix):
            raise StoreError(
                f"a run id begins with hexadecimal digits; got {prefix!r:.60}; list ids with `icl-bench runs list`"
            )
        found = [run_id for run_id, _ in self.folders() if run_id.startswith(prefix)]
        if len(found) != 1:
            named = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
            many = f"{len(found)} do: {named}; give more digits" if found else "none does"
            raise StoreError(
                f"the id of one run of {self.root} must begin with {prefix!r}; {many}; list ids with "
                "`icl-bench runs list`"
            )
        return found[0]

    def remove(self, run_id: str) -> Path:
        """Move a finished run to the trash of the store, and return its new path."""
        self.check_folders()
        with files.writing(self.root):
            place = attempt.set_aside(self.path(run_id), self.root)
        reach("run-removed")
        return place


def read_result(path: Path) -> RunResult:
    """Read a result and compare it with its own digest; raise RecordError if they differ."""
    data = files.read_bytes(path)
    result = files.parse_model(RunResult, data, path)
    if files.sha256(data.replace(attempt.check_field(result.check), attempt.check_field(""), 1)) != result.check:
        raise RecordError(f"a stored file never changes; {path} did; restore it or delete {path.parent}")
    return result


def check_identity(spec: bytes, result: RunResult, folder: Path) -> None:
    """Raise RecordError unless a result belongs to its specification, and both belong to their folder."""
    digest = files.sha256(RUN_DOMAIN.encode() + b"\0" + spec.removesuffix(b"\n"))
    if digest != result.digest or digest[:ID_LENGTH] != folder.name or result.id != folder.name:
        raise RecordError(
            f"a record's id is the hash of its specification; that of {folder} is not; restore it or delete {folder}"
        )


def parse_spec_file(data: bytes, path: Path) -> dict[str, Any]:
    """Return a stored specification with every field; raise RecordError if it is invalid. Labels are not stored."""
    spec = files.parse_object(data, path)
    components = [spec.get("task"), *(spec["arch"] if isinstance(spec.get("arch"), list) else [])]
    labelled = [{"label": "", **part} if isinstance(part, dict) else part for part in components]
    return files.validate(RunSpec, {**spec, "task": labelled[0], "arch": labelled[1:]}, path).model_dump(mode="json")


def scan(folder: Path) -> list["os.DirEntry[str]"]:
    """Return the subfolders of a folder that are no links; an empty list if the folder does not exist."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise StoreError(
            f"the store is a folder that can be read; {folder}: {error.strerror}; correct that, or choose another store"
        ) from None
