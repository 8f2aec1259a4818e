"""Checkpoints: the saved state of a fleet in progress, from which training continues after an interruption.

    checkpoints/<fleet>/fleet.json            ids and specifications of the runs of the fleet
    checkpoints/<fleet>/<step>/tensors.safetensors  state.json  sha256

A checkpoint appears whole, by a rename. The previous one is kept and replaces a damaged newest one. Both are deleted
when the fleet is committed. `fleet.json` is written first and deleted first: a folder without it is an interrupted
removal, which the next process that opens the store completes. Nothing is pickled; tensors are bytes in this module.
"""

import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import icl_bench
from icl_bench.errors import RecordError, SpecError
from icl_bench.runs.probes import ProbePoint
from icl_bench.runs.record import MetricPoint
from icl_bench.runs.spec import ID_LENGTH, RunSpec
from icl_bench.runs.store import files
from icl_bench.runs.store.faults import reach
from icl_bench.runs.store.files import Folder, Handle
from icl_bench.runs.store.parsing import parse_model, parse_object, tensors_length
from icl_bench.runs.store.processes import writer_mark
from icl_bench.schema import Frozen, canonical_json, content_hash

CHECKPOINT_LAYOUT = 2
"""Version of the layout of checkpoints; since 2 parameters of a GPU start at multiples of 16 bytes."""
INTERVAL_VARIABLE = "ICL_BENCH_CHECKPOINT_EVERY"
DEFAULT_INTERVAL = 60.0
"""Seconds of training between checkpoints; shorter runs have no checkpoint."""
CHECKPOINTS_KEPT = 2
"""Number of checkpoints kept for each fleet."""
STEP_FOLDER = re.compile(r"[0-9]{9}")
FLEET_FILE = "fleet.json"
TENSORS, STATE, DIGESTS = "tensors.safetensors", "state.json", "sha256"
LARGEST: Mapping[str, int] = {TENSORS: 1 << 34, STATE: 1 << 30, DIGESTS: 1 << 10}
"""Largest size of each file of a checkpoint, in bytes; what is larger is neither written nor read."""

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
    probes: tuple[tuple[ProbePoint, ...], ...] = ()
    """Probes so far, by member; empty where none are kept."""


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
        self.specs = specs
        versions = {"icl-bench": icl_bench.__version__, "torch": torch_version}
        self.origin = Origin(runs=tuple(spec.digest for spec in specs), versions=versions, device=device)
        name = content_hash(list(self.origin.runs), "icl-bench/checkpoint/v1")[:ID_LENGTH]
        self.place = Folder(root, ("checkpoints", name))
        self.every, self.clock = checkpoint_interval() if every is None else every, clock
        self.last = clock()

    @property
    def folder(self) -> Path:
        """Path of the checkpoints of this fleet."""
        return self.place.path

    def due(self) -> bool:
        """Return whether enough time has passed since the last checkpoint or the start."""
        return self.clock() - self.last >= self.every

    def save(self, state: FleetState, tensors: bytes) -> None:
        """Write a checkpoint and delete all but the newest two; raise StoreError if the store cannot be written.

        Two processes may train the same fleet. The first to finish deletes the checkpoints; the other one continues
        without checkpoints.
        """
        contents = {TENSORS: tensors, STATE: canonical_json(state.model_dump(mode="json")).encode()}
        contents[DIGESTS] = digests_of({name: files.sha256(data) for name, data in contents.items()})
        if any(len(data) > LARGEST[name] for name, data in contents.items()):
            LOG.warning("checkpoint not kept: it is larger than %d bytes", LARGEST[TENSORS])
            return
        with files.writing(self.folder), self.place.opened(make=True) as folder:
            try:
                self.name_runs(folder)
                self.publish(folder, f"{state.step:09d}", contents)
                self.prune(folder)
            except FileNotFoundError:
                LOG.warning("checkpoint not kept: another process removed %s", self.folder)
        reach("checkpoint-pruned")
        self.last = self.clock()

    def publish(self, folder: Handle, name: str, contents: Mapping[str, bytes]) -> None:
        """Write the files of a checkpoint to a folder of their own, and move that to its place."""
        draft = f".new-{writer_mark()}"
        try:
            with folder.below(draft, make=True) as inner:
                for file, data in contents.items():
                    inner.create(file, data)
                inner.sync(list(contents))
            reach("checkpoint-written")
            folder.move(draft, folder, name)
            folder.sync()
            reach("checkpoint-published")
        finally:
            folder.remove(draft)

    def name_runs(self, folder: Handle) -> None:
        """Write the file that names the runs of the fleet, unless it is there."""
        reach("checkpoint-begun")
        if folder.kind(FLEET_FILE) != "file":
            plain = [spec.model_dump(mode="json") for spec in self.specs]
            named = canonical_json({"runs": [spec.id for spec in self.specs], "specs": plain})
            folder.replace(FLEET_FILE, named.encode())

    def prune(self, folder: Handle) -> None:
        """Delete all but the newest checkpoints, and what killed processes left."""
        for name in steps_in(folder)[CHECKPOINTS_KEPT:]:
            folder.remove(name)
        folder.clear_drafts(lambda name: True)

    def saved(self, most: int | None = None) -> Iterator[Saved]:
        """Yield the checkpoints that are undamaged and fit this fleet, newest first; log a warning for each other one.

        Tensors of more than `most` bytes are not read.
        """
        with suppress(FileNotFoundError), self.place.opened() as folder:
            for name in steps_in(folder):
                try:
                    with folder.below(name) as inner:
                        found = read_checkpoint(inner, most)
                except (RecordError, FileNotFoundError) as error:
                    LOG.warning("checkpoint skipped: %s", error)
                    continue
                if difference := self.difference(found.state):
                    LOG.warning(
                        "checkpoint skipped: %s has another %s; the fleet starts from the beginning",
                        folder.path / name,
                        difference,
                    )
                    continue
                yield found

    def difference(self, state: FleetState) -> str | None:
        """Return the part in which a state does not fit this fleet, None if it fits."""
        named = {"runs": "fleet", "versions": "version"}
        for field in Origin.model_fields:
            if getattr(state.origin, field) != getattr(self.origin, field):
                return named.get(field, field)
        members, steps = len(self.specs), self.specs[0].train.steps
        fits = len(state.solved_at) == len(state.metrics) == members and state.step <= steps
        return None if fits else "number of members or steps"

    def remove(self) -> None:
        """Delete all checkpoints of the fleet; raise StoreError if the store cannot be written."""
        parent = Folder(self.place.root, self.place.names[:-1])
        with files.writing(self.folder), suppress(FileNotFoundError), parent.opened() as fleets_folder:
            remove_fleet(fleets_folder, self.place.names[-1])


def steps_in(folder: Handle) -> list[str]:
    """Return the names of the checkpoints in the folder of a fleet, newest first."""
    return [name for name in reversed(folder.folders()) if STEP_FOLDER.fullmatch(name)]


def remove_fleet(folder: Handle, name: str) -> None:
    """Delete the checkpoints of one fleet: first the file that names its runs."""
    with suppress(FileNotFoundError), folder.below(name) as fleet:
        fleet.remove(FLEET_FILE)
    reach("checkpoint-unnamed")
    folder.remove(name)
    reach("checkpoint-removed")


def read_checkpoint(folder: Handle, most: int | None = None) -> Saved:
    """Read a checkpoint and compare every byte with its digest; raise RecordError if the checkpoint is damaged."""
    limits = {**LARGEST, TENSORS: LARGEST[TENSORS] if most is None else most}
    contents = {name: folder.read(name, limits[name]) for name in (TENSORS, STATE)}
    check_digests(folder, {name: files.sha256(data) for name, data in contents.items()})
    state = parse_model(FleetState, contents[STATE], folder.path / STATE, canonical=False)
    return Saved(state, contents[TENSORS])


def verify_checkpoint(folder: Handle) -> None:
    """Compare every byte of a checkpoint with its digest, without keeping it in memory; raise RecordError."""
    limits = {TENSORS: tensors_length(folder, TENSORS, LARGEST[TENSORS]), STATE: LARGEST[STATE]}
    check_digests(folder, {name: folder.digest(name, most) for name, most in limits.items()})
    parse_model(FleetState, folder.read(STATE, LARGEST[STATE]), folder.path / STATE, canonical=False)


def check_digests(folder: Handle, digests: Mapping[str, str]) -> None:
    """Raise RecordError unless the files of a checkpoint have the digests that it states."""
    if folder.read(DIGESTS, LARGEST[DIGESTS]) != digests_of(digests):
        raise RecordError(
            f"a checkpoint never changes; {folder.path} did; an older one is used, or the fleet starts from the "
            "beginning"
        )


def digests_of(digests: Mapping[str, str]) -> bytes:
    """Return the text of the file of digests, one line per file, as `sha256sum` writes it."""
    return "".join(f"{digest}  {name}\n" for name, digest in digests.items()).encode()


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


class SavedFleet(NamedTuple):
    """A fleet with checkpoints."""

    name: str
    """Name of its folder."""
    runs: Mapping[str, Mapping[str, Any]]
    """Specification of each run by id; empty where it is not known. A damaged file names no runs."""


def saved_fleets(root: Path) -> list[SavedFleet]:
    """Return every fleet with checkpoints, in the order of names."""
    found = []
    with suppress(FileNotFoundError), Folder(root, ("checkpoints",)).opened() as folder:
        for name in folder.folders():
            with suppress(FileNotFoundError), folder.below(name) as fleet:
                if fleet.kind(FLEET_FILE) is not None:
                    found.append(SavedFleet(name, named_runs(fleet)))
    return found


def named_runs(fleet: Handle) -> dict[str, Mapping[str, Any]]:
    """Return the specifications of the runs of a fleet by id, as its file gives them."""
    try:
        named = parse_object(fleet.read(FLEET_FILE), fleet.path / FLEET_FILE)
    except RecordError:
        return {}  # damaged: the fleet still finds its checkpoints, it is only not listed
    runs, specs = (value if isinstance(value := named.get(key), list) else [] for key in ("runs", "specs"))
    known = [spec if isinstance(spec, dict) else {} for spec in specs]
    return {run_id: known[i] if i < len(known) else {} for i, run_id in enumerate(runs) if isinstance(run_id, str)}


def clear_checkpoints(root: Path, finished: Callable[[str], bool]) -> None:
    """Delete checkpoints of fleets whose runs are all finished, and folders that name no fleet.

    They remain if a process was killed before it deleted them, or if other fleets finished the runs.
    """
    fleets = {fleet.name: fleet.runs for fleet in saved_fleets(root)}
    with suppress(FileNotFoundError), Folder(root, ("checkpoints",)).opened() as folder:
        folder.clear_drafts(lambda name: True)
        for name in folder.folders():
            runs = fleets.get(name)
            if runs is None or (runs and all(re.fullmatch(r"[0-9a-f]{16}", one) and finished(one) for one in runs)):
                folder.remove(name)
                continue
            with suppress(FileNotFoundError), folder.below(name) as fleet:
                fleet.clear_drafts(lambda name: True)
