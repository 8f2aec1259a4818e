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
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError
from pydantic_core import from_json, to_json

from icl_bench.errors import RecordError, StoreError
from icl_bench.runs.record import Manifest, MetricPoint, RunRecord, RunResult
from icl_bench.runs.spec import ID_LENGTH, RUN_DOMAIN, RunSpec
from icl_bench.runs.store import attempt, files
from icl_bench.runs.store.agreement import disagreements
from icl_bench.runs.store.checkpoint import clear_checkpoints
from icl_bench.runs.store.faults import reach
from icl_bench.runs.store.files import Folder, Handle
from icl_bench.runs.store.parsing import parse_lines, parse_model, parse_object, text_of, wrong_field
from icl_bench.runs.store.processes import writer_mark
from icl_bench.schema import LARGEST_COUNT

RUN_ID = re.compile(rf"[0-9a-f]{{{ID_LENGTH}}}")
PREFIX = re.compile(r"[0-9a-f]{2}")
UNREADABLE = "unreadable"
"""Stamp of a run that cannot be looked up; reading it tells why."""
FOLDERS = ("runs", "attempts", "checkpoints", "trash", "leases", "slurm", "logs")


CHECKED: set[bytes] = set()
"""Settings that were found valid and canonical: many thousand runs have few."""
MOST_CHECKED = 10_000


class StoredRun(NamedTuple):
    """A finished run, and the bytes from which it was read."""

    record: RunRecord
    contents: Mapping[str, bytes]
    """Content of each of the four files, by name."""


class Store:
    """The runs under a root folder, which is created at the first write."""

    def __init__(self, root: Path) -> None:
        self.root, self.folder = root, Folder(root)

    def path(self, run_id: str) -> Path:
        """Return the folder of a run; raise StoreError unless its id is 16 hexadecimal digits."""
        return self.run_folder(run_id).path

    def run_folder(self, run_id: str) -> Folder:
        """Return the folder of a run; raise StoreError unless its id is 16 hexadecimal digits."""
        if not RUN_ID.fullmatch(run_id):
            raise StoreError(
                f"a run id is {ID_LENGTH} hexadecimal digits; got {run_id!r}; list ids with `icl-bench runs list`"
            )
        return attempt.run_folder(self.root, run_id)

    def has(self, run_id: str) -> bool:
        """Return whether the run is finished; raise StoreError if a link is in the way."""
        return attempt.is_finished(self.root, self.run_folder(run_id).names[-1])

    def check_writable(self) -> None:
        """Create the root folder and clean up after killed processes; raise StoreError if the store cannot be used."""
        try:
            files.make_root(self.root)
            with files.opened_root(self.root) as root:
                probe = f".probe-{writer_mark()}"
                root.create(probe, b"")
                root.remove(probe)
                root.clear_drafts(lambda name: True)
                for name in ("runs", "attempts"):
                    with root.below(name, make=True):
                        pass
                root.sync()
        except OSError as error:
            raise StoreError(
                f"the store is a folder that can be written; {self.root}: {error.strerror}; choose another with --store"
            ) from None
        self.check_folders()
        self.check_links()
        self.clear_up()

    def clear_up(self) -> None:
        """Finish the moves that killed processes began, and delete what they left behind and what is out of use."""
        with files.writing(self.root):
            attempt.finish_moves(self.root)
            with self.folder.at("attempts").opened(make=True) as folder:
                folder.clear_drafts(lambda name: True)
            tried = {found.run_id for found in attempt.attempts(self.root)}
            attempt.clear_attempts(self.root, {run_id for run_id in tried if self.has(run_id)})
            clear_checkpoints(self.root, self.has)

    def check_folders(self) -> None:
        """Raise StoreError if one of the folders of the store is a symbolic link, which could lead elsewhere."""
        with suppress(FileNotFoundError), self.folder.opened() as root:
            refuse_links(root, FOLDERS)

    def check_links(self) -> None:
        """Raise StoreError if a folder of runs or of checkpoints is a symbolic link, before anything is trained."""
        for name in ("runs", "checkpoints"):
            with suppress(FileNotFoundError), self.folder.at(name).opened() as folder:
                refuse_links(folder, set(folder.names()) - set(folder.folders()))

    def begin(self, spec: RunSpec, manifest: Manifest) -> attempt.RunWriter:
        """Start an attempt at a run; raise StoreError if the store cannot be written."""
        return attempt.RunWriter(self.root, spec, manifest)

    def load(self, run_id: str) -> RunRecord:
        """Read a finished run, and compare every byte with its digest; raise RecordError if a file is damaged."""
        return self.read(run_id).record

    def read(self, run_id: str) -> StoredRun:
        """Read a finished run and the bytes of its files, compared with their digests; raise RecordError."""
        with self.opened_run(run_id) as folder:
            data = folder.read(attempt.RESULT)
            result = parse_result(data, folder.path / attempt.RESULT)
            contents = {name: folder.read(name) for name in attempt.COMPANIONS}
        for name, content in contents.items():
            if files.sha256(content) != result.files.get(name):
                raise changed(folder.path / name)
        record = parse_record(result, contents, folder.path)
        return StoredRun(record, {**contents, attempt.RESULT: data})

    def read_kept(self, run_id: str, name: str) -> bytes:
        """Return a further file that a run kept; raise RecordError if it kept none, or if the file is damaged."""
        with self.opened_run(run_id) as folder:
            result = parse_result(folder.read(attempt.RESULT), folder.path / attempt.RESULT)
            if name not in result.files:
                raise files.unreadable(folder.path / name, "the run did not keep it")
            data = folder.read(name, attempt.kept_length(folder, name))
        if files.sha256(data) != result.files[name]:
            raise changed(folder.path / name)
        return data

    @contextmanager
    def opened_run(self, run_id: str) -> Iterator[Handle]:
        """Open the folder of a run; raise RecordError if it cannot be opened, as where a link is in the way."""
        place = self.run_folder(run_id)
        try:
            with place.opened() as folder:
                yield folder
        except FileNotFoundError as error:
            raise files.unreadable(place.path / attempt.RESULT, str(error.strerror)) from None
        except RecordError:
            raise
        except StoreError as error:
            raise RecordError(str(error)) from None

    def ids(self) -> Iterator[str]:
        """Yield the ids of all finished runs, in order; links are not followed."""
        return (run_id for run_id, _ in self.stamps())

    def stamps(self) -> Iterator[tuple[str, str]]:
        """Yield the id of each finished run and a stamp, which changes when its result is written anew."""
        for prefix, folder in self.prefixes():
            for run_id in run_ids(folder, prefix):
                try:
                    about = os.stat(f"{run_id}/{attempt.RESULT}", dir_fd=folder.number, follow_symlinks=False)
                except (FileNotFoundError, NotADirectoryError):
                    continue
                except OSError:
                    yield run_id, UNREADABLE
                    continue
                if stat.S_ISREG(about.st_mode):
                    yield run_id, f"{about.st_mtime_ns}-{about.st_size}-{about.st_ino}"

    def prefixes(self) -> Iterator[tuple[str, Handle]]:
        """Yield each folder of runs by the first digits of its ids, in order; raise StoreError if one is unreadable."""
        with suppress(FileNotFoundError), self.folder.at("runs").opened() as runs:
            for prefix in filter(PREFIX.fullmatch, runs.folders()):
                with suppress(FileNotFoundError), runs.below(prefix) as folder:
                    yield prefix, folder

    def folder_ids(self) -> list[str]:
        """Return the id of every folder named like a run, in order."""
        return [run_id for prefix, folder in self.prefixes() for run_id in run_ids(folder, prefix)]

    def find(self, prefix: str) -> str:
        """Return the only id that begins with `prefix`; raise StoreError if there is none, or more than one."""
        if not re.fullmatch(rf"[0-9a-f]{{1,{ID_LENGTH}}}", prefix):
            raise StoreError(
                f"a run id begins with hexadecimal digits; got {prefix!r:.60}; list ids with `icl-bench runs list`"
            )
        found = [run_id for run_id in self.folder_ids() if run_id.startswith(prefix)]
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
        with files.writing(self.root), self.folder.at("runs", run_id[:2]).opened() as folder:
            place = attempt.set_aside(folder, self.run_folder(run_id).names[-1], self.root)
        reach("run-removed")
        return place


def refuse_links(folder: Handle, names: Iterable[str]) -> None:
    """Raise StoreError if one of these names in a folder is a link."""
    for name in names:
        if folder.kind(name) == "link":
            raise files.refused(folder.path / name, "link")


def run_ids(folder: Handle, prefix: str) -> list[str]:
    """Return the names of folders that are ids beginning with `prefix`, in order."""
    return [name for name in folder.folders() if name.startswith(prefix) and RUN_ID.fullmatch(name)]


def parse_result(data: bytes, path: Path) -> RunResult:
    """Parse a result and compare it with its own digest; raise RecordError if they differ."""
    result = parse_model(RunResult, data, path)
    if files.sha256(data.replace(attempt.check_field(result.check), attempt.check_field(""), 1)) != result.check:
        raise changed(path)
    return result


def changed(path: Path) -> RecordError:
    """Return the error for a file that differs from its digest."""
    return RecordError(f"a stored file never changes; {path} did; restore it or delete {path.parent}")


def parse_record(result: RunResult, contents: Mapping[str, bytes], folder: Path) -> RunRecord:
    """Parse the other files of a run and compare them with the result; raise RecordError if something disagrees."""
    check_identity(contents["spec.json"], result, folder)
    spec = parse_spec_file(contents["spec.json"], folder / "spec.json")
    metrics = parse_lines(MetricPoint, contents["metrics.jsonl"], folder / "metrics.jsonl")
    manifest = parse_model(Manifest, contents["manifest.json"], folder / "manifest.json")
    for reason in disagreements(spec, result, metrics):
        raise RecordError(f"the files of a run agree with each other; those of {folder}: {reason}; delete it")
    return RunRecord.model_construct(spec=spec, manifest=manifest, result=result, metrics=metrics)


def check_identity(spec: bytes, result: RunResult, folder: Path) -> None:
    """Raise RecordError unless a result belongs to its specification, and both belong to their folder."""
    digest = files.sha256(RUN_DOMAIN.encode() + b"\0" + spec.removesuffix(b"\n"))
    if digest != result.digest or digest[:ID_LENGTH] != folder.name or result.id != folder.name:
        raise RecordError(
            f"a record's id is the hash of its specification; that of {folder} is not; restore it or delete {folder}"
        )


def parse_spec_file(data: bytes, path: Path) -> dict[str, Any]:
    """Return a stored specification with every field; raise RecordError unless it is valid and spelled canonically.

    Labels are not stored. Another spelling would give the same run a second id.
    """
    if (known := checked_spec(data)) is not None:
        return known
    plain = parse_object(data, path)
    components = [plain.get("task"), *(plain["arch"] if isinstance(plain.get("arch"), list) else [])]
    labelled = [{"label": "", **part} if isinstance(part, dict) else part for part in components]
    try:
        spec = RunSpec.model_validate({**plain, "task": labelled[0], "arch": labelled[1:]})
    except ValidationError as error:
        raise wrong_field(error, "RunSpec", path) from None
    if text_of(spec) != data:
        raise RecordError(
            f"a specification has one spelling, which gives one id; {path} has another; restore it or delete "
            f"{path.parent}"
        )
    if len(CHECKED) >= MOST_CHECKED:
        CHECKED.clear()
    CHECKED.add(setting_of(plain))
    return plain


def checked_spec(data: bytes) -> dict[str, Any] | None:
    """Return a specification that differs from a checked one in seeds and learning rate alone; None for any other."""
    try:
        plain = from_json(data)
        if to_json(plain) + b"\n" != data or setting_of(plain) not in CHECKED:
            return None
        seeds, lr = (plain["seed"], plain["data_seed"]), plain["train"]["lr"]
    except (ValueError, TypeError, KeyError):
        return None
    whole = all(type(seed) is int and 0 <= seed < LARGEST_COUNT for seed in seeds)
    return dict(plain) if whole and type(lr) is float and lr > 0 and repr(lr).encode() == to_json(lr) else None


def setting_of(plain: Mapping[str, Any]) -> bytes:
    """Return a specification without its seeds and its learning rate, in the order of its keys."""
    return to_json({**plain, "seed": 0, "data_seed": 0, "train": {**plain["train"], "lr": 0}})
