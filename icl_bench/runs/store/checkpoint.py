"""Checkpoints: the saved state of a fleet in progress, from which training continues after an interruption.

    checkpoints/<fleet>/fleet.json            ids of the runs of the fleet
    checkpoints/<fleet>/<step>/tensors.safetensors  state.json  sha256

A checkpoint appears whole, by a rename. The previous one is kept and replaces a damaged newest one. Both are deleted
when the fleet is committed. `fleet.json` is written first and deleted first: a folder without it is an interrupted
removal, which the next process that opens the store completes. Nothing is pickled; tensors are bytes in this module.
"""

import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import icl_bench
from icl_bench.errors import RecordError, SpecError
from icl_bench.runs.record import MetricPoint
from icl_bench.runs.spec import ID_LENGTH, RunSpec
from icl_bench.runs.store import files
from icl_bench.runs.store.faults import reach
from icl_bench.schema import Frozen, canonical_json, content_hash

CHECKPOINT_LAYOUT = 1
"""Version of the layout of checkpoints."""
INTERVAL_VARIABLE = "ICL_BENCH_CHECKPOINT_EVERY"
DEFAULT_INTERVAL = 60.0
"""Seconds of training between checkpoints; shorter runs have no checkpoint."""
CHECKPOINTS_KEPT = 2
"""Number of checkpoints kept for each fleet."""
STEP_FOLDER = re.compile(r"\d{9}")
FLEET_FILE = "fleet.json"
TENSORS, STATE, DIGESTS = "tensors.safetensors", "state.json", "sha256"

LOG = logging.getLogger("icl_bench")


class Origin(Frozen):
    """The conditions that must be equal for a fleet to continue from a checkpoint with unchanged numbers."""

    layout: int = CHECKPOINT_LAYOUT
    """Version of the layout of checkpoints."""
    runs: tuple[str, ...]
    """Digests of the specifications of the members, in order."""
    versions: dict[str, str]
    """Versions of icl-bench and torch."""
    device: str
    """Type of the device, `cpu` or `cuda`."""


class FleetState(Frozen):
    """The state of a fleet in training, except for its tensors."""

    origin: Origin
    """Conditions under which the checkpoint was made."""
    step: int
    """Number of updates done."""
    seconds: float
    """Wall time so far in seconds, including the time before interruptions."""
    training: float
    """Share of that time spent on training, in seconds."""
    solved_at: tuple[int | None, ...]
    """First validated step with an accuracy of at least 0.99, by member."""
    metrics: tuple[tuple[MetricPoint, ...], ...]
    """Validations so far, by member."""


class Saved(NamedTuple):
    """A checkpoint, as read back."""

    state: FleetState
    tensors: bytes
    """Tensors in the safetensors format."""


class Checkpoints:
    """The checkpoints of one fleet, whose members are `specs`, in order.

    `every` is the number of seconds between checkpoints, by default that of `checkpoint_interval`; `clock` returns
    seconds from a fixed moment.
    """

    def __init__(
        self,
        root: Path,
        specs: Sequence[RunSpec],
        torch_version: str,
        device: str,
        every: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.ids = [spec.id for spec in specs]
        versions = {"icl-bench": icl_bench.__version__, "torch": torch_version}
        self.origin = Origin(runs=tuple(spec.digest for spec in specs), versions=versions, device=device)
        self.folder = root / "checkpoints" / content_hash(list(self.origin.runs), "icl-bench/checkpoint/v1")[:ID_LENGTH]
        self.every, self.clock = checkpoint_interval() if every is None else every, clock
        self.last = clock()

    def due(self) -> bool:
        """Return whether enough time has passed since the last checkpoint or the start."""
        return self.clock() - self.last >= self.every

    def save(self, state: FleetState, tensors: bytes) -> None:
        """Write a checkpoint and delete all but the newest two; raise StoreError if the store cannot be written.

        Two processes may train the same fleet. The first to finish deletes the checkpoints; the other one continues
        without checkpoints.
        """
        temporary = self.folder / f".new-{secrets.token_hex(4)}"
        contents = {TENSORS: tensors, STATE: canonical_json(state.model_dump(mode="json")).encode()}
        contents[DIGESTS] = digests_of(contents)
        with files.writing(self.folder):
            try:
                self.name_runs()
                temporary.mkdir()
                for name, data in contents.items():
                    files.write_file(temporary / name, data)
                files.sync_folder(temporary)
                reach("checkpoint-written")
                files.move_folder(temporary, self.folder / f"{state.step:09d}")
                reach("checkpoint-published")
                self.prune()
            except FileNotFoundError:
                LOG.warning("checkpoint not kept: another process removed %s", self.folder)
            finally:
                files.remove_folder(temporary)
        reach("checkpoint-pruned")
        self.last = self.clock()

    def name_runs(self) -> None:
        """Create the folder of the fleet, and the file that names its runs."""
        self.folder.mkdir(parents=True, exist_ok=True)
        reach("checkpoint-begun")
        if not (self.folder / FLEET_FILE).is_file():
            files.replace_file(self.folder / FLEET_FILE, canonical_json({"runs": self.ids}).encode())

    def steps(self) -> list[Path]:
        """Return the folders of the checkpoints, newest first."""
        if not self.folder.is_dir():
            return []
        return sorted((path for path in self.folder.iterdir() if STEP_FOLDER.fullmatch(path.name)), reverse=True)

    def prune(self) -> None:
        """Delete all but the newest two checkpoints, and incomplete ones that killed processes left."""
        kept = set(self.steps()[:CHECKPOINTS_KEPT])
        for path in self.folder.iterdir():
            if path.is_dir() and path not in kept:
                files.remove_folder(path)

    def load(self) -> Saved | None:
        """Return the newest checkpoint that is undamaged and fits this fleet; log a warning for each one skipped."""
        for path in self.steps():
            try:
                saved = read_checkpoint(path)
            except RecordError as error:
                LOG.warning("checkpoint skipped: %s", error)
                continue
            found = saved.state.origin
            if found == self.origin:
                return saved
            field = next(name for name in Origin.model_fields if getattr(found, name) != getattr(self.origin, name))
            difference = {"runs": "fleet", "versions": "version"}.get(field, field)
            LOG.warning("checkpoint skipped: %s has another %s; the fleet starts from the beginning", path, difference)
        return None

    def remove(self) -> None:
        """Delete all checkpoints of the fleet; raise StoreError if the store cannot be written."""
        with files.writing(self.folder):
            (self.folder / FLEET_FILE).unlink(missing_ok=True)
        reach("checkpoint-unnamed")
        files.remove_folder(self.folder)
        reach("checkpoint-removed")


def read_checkpoint(path: Path) -> Saved:
    """Read a checkpoint and compare every byte with its digest; raise RecordError if the checkpoint is damaged."""
    contents = {name: files.read_bytes(path / name, most=None) for name in (TENSORS, STATE)}
    if files.read_bytes(path / DIGESTS) != digests_of(contents):
        raise RecordError(
            f"a checkpoint never changes; {path} did; an older one is used, or the fleet starts from the beginning"
        )
    plain = files.parse_object(contents[STATE], path / STATE)
    return Saved(files.validate(FleetState, plain, path / STATE), contents[TENSORS])


def digests_of(contents: Mapping[str, bytes]) -> bytes:
    """Return the text of the file of digests, one line per file, as `sha256sum` writes it."""
    return "".join(f"{files.sha256(data)}  {name}\n" for name, data in contents.items()).encode()


def checkpoint_interval() -> float:
    """Return the seconds between checkpoints: ICL_BENCH_CHECKPOINT_EVERY, or the default."""
    text = os.environ.get(INTERVAL_VARIABLE)
    if text is None:
        return DEFAULT_INTERVAL
    if not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text):
        raise SpecError(
            f"{INTERVAL_VARIABLE} is a number of seconds; got {text!r}; write {DEFAULT_INTERVAL:.0f}, or unset it"
        )
    return float(text)


def fleets(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield the folder and the run ids of every fleet with checkpoints; damaged files name no runs."""
    for path in sorted((root / "checkpoints").glob(f"*/{FLEET_FILE}")):
        try:
            named = files.parse_object(files.read_bytes(path), path).get("runs")
        except RecordError:
            named = None  # damaged: the fleet still finds its checkpoints, it is only not listed
        yield path.parent, [str(run_id) for run_id in named] if isinstance(named, list) else []


def clear_checkpoints(root: Path, finished: Callable[[str], bool]) -> None:
    """Delete checkpoints of fleets whose runs are all finished, and folders that name no fleet.

    They remain if a process was killed before it deleted them, or if other fleets finished the runs.
    """
    for folder in (root / "checkpoints").glob("*"):
        if not (folder / FLEET_FILE).exists():
            files.remove_folder(folder)
    for folder, run_ids in fleets(root):
        if run_ids and all(re.fullmatch(r"[0-9a-f]{16}", run_id) and finished(run_id) for run_id in run_ids):
            files.remove_folder(folder)
