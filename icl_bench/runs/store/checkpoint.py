"""Checkpoints: the state of a fleet in progress, so that hours of training survive a power cut.

    checkpoints/<fleet>/fleet.json            the runs of the fleet
    checkpoints/<fleet>/<step>/tensors.safetensors  state.json  sha256

A state appears whole, by a rename; the one before it is kept, and serves where the newest is damaged. Both go when the
fleet is committed. `fleet.json` is the first to come and the first to go: a folder without it is a removal that was cut
short, and whoever opens the store clears it away. Nothing is pickled. Nothing here needs torch: tensors are bytes.
"""

import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import icl_bench
from icl_bench.errors import RecordError, SpecError
from icl_bench.runs.record import MetricPoint
from icl_bench.runs.spec import ID_LENGTH, RunSpec
from icl_bench.runs.store.faults import reach
from icl_bench.runs.store.files import (
    move_folder,
    parse_object,
    read_bytes,
    remove_folder,
    replace_file,
    sha256,
    sync_folder,
    validate,
    write_file,
    writing,
)
from icl_bench.schema import Frozen, canonical_json, content_hash

LAYOUT = 1
"""Version of what a checkpoint holds."""
VARIABLE = "ICL_BENCH_CHECKPOINT_EVERY"
EVERY = 60.0
"""Seconds of training between checkpoints, so that shorter runs have none."""
KEPT = 2
STEP = re.compile(r"\d{9}")
NAME = "fleet.json"
TENSORS, STATE, DIGESTS = "tensors.safetensors", "state.json", "sha256"

LOG = logging.getLogger("icl_bench")


class Origin(Frozen):
    """What must be equal for a fleet to continue from a checkpoint as if it had never stopped."""

    layout: int = LAYOUT
    """Version of what a checkpoint holds."""
    runs: tuple[str, ...]
    """Digests of the specifications of the members, in order."""
    versions: dict[str, str]
    """Of icl-bench and torch."""
    device: str
    """cpu or cuda."""


class FleetState(Frozen):
    """Where a fleet is, tensors aside."""

    origin: Origin
    """What made it."""
    step: int
    """Updates made."""
    seconds: float
    """Wall time so far, over all parts of the run."""
    training: float
    """Of these, seconds of training."""
    solved_at: tuple[int | None, ...]
    """By member: the first validated step with an accuracy of at least 0.99."""
    metrics: tuple[tuple[MetricPoint, ...], ...]
    """By member: validations so far."""


class Saved(NamedTuple):
    """A checkpoint as read back."""

    state: FleetState
    tensors: bytes
    """In the safetensors format."""


class Checkpoints:
    """The checkpoints of one fleet.

    Args:
        root: The store.
        specs: The members, in order.
        torch_version: Version of torch.
        device: cpu or cuda.
        every: Seconds between checkpoints; from ICL_BENCH_CHECKPOINT_EVERY, or 60, where it is not given.
        clock: Seconds since some moment.
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
        self.every, self.clock = asked_interval() if every is None else every, clock
        self.last = clock()

    def due(self) -> bool:
        """Whether enough time has passed since the last checkpoint, or the start."""
        return self.clock() - self.last >= self.every

    def save(self, state: FleetState, tensors: bytes) -> None:
        """Make a checkpoint durable, then drop all but the newest two.

        Two processes may have the same fleet in hand. The one that ends it first removes its checkpoints; the other
        goes on without.

        Raises:
            StoreError: where the store cannot be written.
        """
        temporary = self.folder / f".new-{secrets.token_hex(4)}"
        files = {TENSORS: tensors, STATE: canonical_json(state.model_dump(mode="json")).encode()}
        files[DIGESTS] = "".join(f"{sha256(data)}  {name}\n" for name, data in files.items()).encode()
        with writing(self.folder):
            try:
                self.name_runs()
                temporary.mkdir()
                for name, data in files.items():
                    write_file(temporary / name, data)
                sync_folder(temporary)
                reach("checkpoint-written")
                move_folder(temporary, self.folder / f"{state.step:09d}")
                reach("checkpoint-published")
                self.prune()
            except FileNotFoundError:
                LOG.warning("checkpoint not kept: another process removed %s", self.folder)
            finally:
                remove_folder(temporary)
        reach("checkpoint-pruned")
        self.last = self.clock()

    def name_runs(self) -> None:
        """Make the folder, and write down which runs the fleet has."""
        self.folder.mkdir(parents=True, exist_ok=True)
        reach("checkpoint-begun")
        if not (self.folder / NAME).is_file():
            replace_file(self.folder / NAME, canonical_json({"runs": self.ids}).encode())

    def steps(self) -> list[Path]:
        """Folders of checkpoints, newest first."""
        if not self.folder.is_dir():
            return []
        return sorted((path for path in self.folder.iterdir() if STEP.fullmatch(path.name)), reverse=True)

    def prune(self) -> None:
        """Drop all but the newest two, and what killed processes left half written."""
        kept = set(self.steps()[:KEPT])
        for path in self.folder.iterdir():
            if path.is_dir() and path not in kept:
                remove_folder(path)

    def load(self) -> Saved | None:
        """The newest checkpoint that is whole and of this fleet; what is passed over is said in a line."""
        for path in self.steps():
            try:
                saved = read_checkpoint(path)
            except RecordError as error:
                LOG.warning("checkpoint passed over: %s", error)
                continue
            difference = differing(saved.state.origin, self.origin)
            if difference is None:
                return saved
            LOG.warning("checkpoint passed over: %s is of another %s; the fleet starts anew", path, difference)
        return None

    def remove(self) -> None:
        """Drop all checkpoints of the fleet.

        Raises:
            StoreError: where the store cannot be written.
        """
        with writing(self.folder):
            (self.folder / NAME).unlink(missing_ok=True)
        reach("checkpoint-unnamed")
        remove_folder(self.folder)
        reach("checkpoint-removed")


def read_checkpoint(path: Path) -> Saved:
    """Read a checkpoint and check every byte of it.

    Raises:
        RecordError: where it is damaged.
    """
    files = {name: read_bytes(path / name, most=None) for name in (TENSORS, STATE)}
    digests = "".join(f"{sha256(data)}  {name}\n" for name, data in files.items()).encode()
    if read_bytes(path / DIGESTS) != digests:
        raise RecordError(f"a checkpoint never changes; {path} did; an older one is taken, or the fleet starts anew")
    plain = parse_object(files[STATE], path / STATE)
    return Saved(validate(FleetState, plain, path / STATE), files[TENSORS])


def differing(found: Origin, wanted: Origin) -> str | None:
    """The first thing in which two origins differ."""
    for name in Origin.model_fields:
        if getattr(found, name) != getattr(wanted, name):
            return {"runs": "fleet", "versions": "version", "layout": "layout"}.get(name, name)
    return None


def asked_interval() -> float:
    """Seconds between checkpoints.

    Raises:
        SpecError: where ICL_BENCH_CHECKPOINT_EVERY is no number of seconds.
    """
    text = os.environ.get(VARIABLE)
    if text is None:
        return EVERY
    if not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text):
        raise SpecError(f"{VARIABLE} is a number of seconds; got {text!r}; write {EVERY:.0f}, or unset it")
    return float(text)


def fleets(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Folder and run ids of every fleet that has checkpoints; a folder that says nothing of its runs has none."""
    for path in sorted((root / "checkpoints").glob(f"*/{NAME}")):
        try:
            named = parse_object(read_bytes(path), path).get("runs")
        except RecordError:
            named = None  # damaged: no fleet is kept from its checkpoints, only from being listed
        yield path.parent, [str(run_id) for run_id in named] if isinstance(named, list) else []


def clear_checkpoints(root: Path, finished: Callable[[str], bool]) -> None:
    """Remove checkpoints of fleets whose runs are all finished, and folders that name no fleet.

    A process was killed before it could do so, or the runs were finished in other fleets.
    """
    for folder in (root / "checkpoints").glob("*"):
        if not (folder / NAME).exists():
            remove_folder(folder)
    for folder, run_ids in fleets(root):
        if run_ids and all(re.fullmatch(r"[0-9a-f]{16}", run_id) and finished(run_id) for run_id in run_ids):
            remove_folder(folder)
