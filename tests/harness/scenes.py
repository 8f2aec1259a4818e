"""Scenes of attacks on a store: a command, what it needs, and what must be there after it was given again."""

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from icl_bench.errors import RecordError
from icl_bench.runs.store import Store
from icl_bench.runs.store.merge import first_difference
from icl_bench.runs.store.verify import verify_store
from tests.harness.disk import Disk, read_record
from tests.harness.fork_server import PRINTED, Ended, Fault, ForkServer

STORE = "icl-runs"
TASK = "assoc-recall:length=16,pairs=4,vocab=64"
TINY = (
    "--device", "cpu", "--set", "train.steps=3", "--set", "train.batch=2", "--set", "model.d_model=8",
    "--set", "model.layers=1", "--set", "evaluation.examples=2", "--set", "evaluation.validation=2",
    "--set", "evaluation.points=1",
)  # fmt: skip
SWEEP = ("run", TASK, "--arch", "linear", "--seeds", "0..3", "--fleet", "2", *TINY)
EVERY_STEP = {"ICL_BENCH_CHECKPOINT_EVERY": "0"}
STATUSES = (0, 2, 3)
"""Documented statuses of a command that no signal ended."""


class Scene(NamedTuple):
    """A command under attack."""

    command: Sequence[str]
    """Arguments; `{id}` is the first run of the store."""
    store: str = STORE
    """The store that the command writes."""
    after_sweep: bool = True
    """Begin with the runs of a sweep."""
    environment: Mapping[str, str] = {}
    again: tuple[int, str] = (0, "")
    """Status and message of the command when it has nothing left to do."""


SCENES = {
    "sweep": Scene(SWEEP, after_sweep=False),
    "checkpoints": Scene(SWEEP, after_sweep=False, environment=EVERY_STEP),
    "merge": Scene(("merge", STORE, "--store", "merged"), "merged"),
    "report": Scene(("report", STORE)),
    "rm": Scene(("runs", "rm", "{id}"), again=(2, "none does")),
}


class Stage:
    """A scene, the folder that it begins with, and the folder that an undisturbed command leaves."""

    def __init__(self, server: ForkServer, scene: Scene, work: Path) -> None:
        self.server, self.scene = server, scene
        self.start, self.whole, self.folder = work / "start", work / "whole", work / "attacked"
        empty(self.start)
        if scene.after_sweep:
            assert server.run(self.start, SWEEP).status == 0
            self.first = next(Store(self.start / STORE).ids())
        self.reset(self.whole)
        ended = self.give(self.whole)
        assert ended.status == 0, ended.err

    def reset(self, folder: Path) -> None:
        """Make a folder what the scene begins with."""
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.start, folder, ignore=shutil.ignore_patterns(*PRINTED))

    def give(self, folder: Path, fault: Fault | None = None) -> Ended:
        """Give the command of the scene in a folder."""
        command = [part.format(id=self.first) if "{" in part else part for part in self.scene.command]
        return self.server.run(folder, command, self.scene.environment, fault=fault)

    def attack(self, fault: Fault) -> tuple[Ended, list[str]]:
        """Give the command with a fault, then without one; return the first end, and what is wrong."""
        self.reset(self.folder)
        ended = self.give(self.folder, fault)
        wrong = list(wrong_end(ended))
        if ended.status == 0:  # an index that cannot be written is kept in memory
            lost = [text for text in self.differences() if not text.startswith("left behind")]
            wrong += [f"told, but {text}" for text in lost if not text.endswith("index.sqlite")]
        return ended, wrong + self.finish()

    def power_cuts(self, lose_names: bool, every: int = 1) -> Iterator[tuple[str, list[str]]]:
        """Cut the power after operations that change what is left, then give the command again.

        Yield the operation, and what is wrong; with `every`, for each second one, each third one, and so on. After the
        last operation, which always counts, the command has told that its runs are there.
        """
        record = self.folder.with_name("record")
        self.reset(self.folder)
        disk, seen = Disk(self.folder), set[str]()
        ended = self.give(self.folder, Fault(0, record=str(record)))
        assert ended.status == 0, ended.err
        done = list(read_record(record))
        for i, operation in enumerate(done):
            disk.carry_out(operation)
            told = i == len(done) - 1
            digest = disk.digest(lose_names)
            if not told and (digest in seen or len(seen) % every):
                seen.add(digest)
                continue
            seen.add(digest)
            disk.write(empty(self.folder), lose_names)
            found = self.differences()
            kinds = ("damaged", "different", *(("lost", f"missing: {self.scene.store}/runs") if told else ()))
            wrong = [f"after the cut: {text}" for text in found if text.startswith(kinds)]
            name = (operation.two or operation.one).decode() if operation.letter in "OMUDRH" else ""
            yield f"{i}: {operation.letter} {name}", wrong + self.finish()

    def finish(self) -> list[str]:
        """Give the command again, and return what is wrong afterwards."""
        again = self.give(self.folder)
        done = [(0, ""), self.scene.again] if self.first_is_gone() else [(0, "")]
        wrong = list(wrong_end(again))
        if not any(again.status == status and message in again.err for status, message in done):
            wrong.append(f"the same command ends with {again.status}: {again.err[-300:]}")
        return wrong + self.differences()

    def first_is_gone(self) -> bool:
        """Return whether the first run of the store was removed."""
        return self.scene.again[0] != 0

    def differences(self) -> list[str]:
        """Return each difference between the folder under attack and the undisturbed one."""
        ours, theirs = names(self.folder), names(self.whole)
        wrong = [f"missing: {name}" for name in sorted(theirs - ours)]
        wrong += [f"left behind: {name}" for name in sorted(ours - theirs)]
        return wrong + list(different_runs(Store(self.folder / self.scene.store), Store(self.whole / self.scene.store)))


def empty(folder: Path) -> Path:
    """Make the folder empty and return it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def names(folder: Path) -> set[str]:
    """Return the relative paths of all that lies below a folder, without times in the names of what was removed.

    The folders of attempts and of checkpoints themselves do not count: they may be there and empty, or not.
    """
    paths = [path for path in folder.rglob("*") if path.name not in ("attempts", "checkpoints")]
    found = {path.relative_to(folder).as_posix() for path in paths} - set(PRINTED)
    return {re.sub(r"(trash/[0-9a-f]{16})-\d+", r"\1", name) for name in found}


def wrong_end(ended: Ended) -> Iterator[str]:
    """Yield what is wrong with the end of a command."""
    if "Traceback" in ended.err + ended.out:
        yield f"traceback: {ended.err.strip().splitlines()[-1][:200]}"
    elif ended.status >= 0 and ended.status not in STATUSES:
        yield f"status {ended.status}: {ended.err[-200:]}"


def different_runs(ours: Store, theirs: Store) -> Iterator[str]:
    """Yield the runs that one store lacks or holds in another form, and files of ours that are damaged."""
    here, wanted = set(ours.ids()), set(theirs.ids())
    yield from (f"lost: {run_id}" for run_id in sorted(wanted - here))
    yield from (f"added: {run_id}" for run_id in sorted(here - wanted))
    for run_id in sorted(here & wanted):
        try:
            difference = first_difference(ours.load(run_id), theirs.load(run_id))
        except RecordError as error:
            yield f"damaged: {error}"
            continue
        if difference is not None:
            yield f"different: {run_id} in {difference}"
    yield from (f"damaged: {problem}" for problem in verify_store(ours).problems)
