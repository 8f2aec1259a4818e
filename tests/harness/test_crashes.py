"""A command hit by any fault and given again ends with the store of a command that was never hit.

The ordinary tests hit some file operations of each kind, the slow ones hundreds, and `benchmarks/faults.py` every one.
"""

import random
import shutil
import signal
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from icl_bench.runs.store import Store
from icl_bench.runs.store.faults import CRASH_POINTS, CRASH_VARIABLE
from icl_bench.runs.store.merge import first_difference
from tests.harness.disk import Disk, left, read_record
from tests.harness.fork_server import FAULTS, PRINTED, Ended, Fault, ForkServer, compile_library
from tests.harness.scenes import EVERY_STEP, SCENES, SWEEP, TASK, TINY, Stage

COMMANDS = {
    "index-written": ["runs", "list"],
    "index-published": ["runs", "list"],
    "merge-copied": ["merge", "icl-runs", "--store", "merged"],
    "merge-published": ["merge", "icl-runs", "--store", "merged"],
    "run-removed": ["runs", "rm", "{id}"],
}
"""Commands that reach the crash points which a sweep does not reach."""
COUNTS = {"file-written": ":2", "step-done": ":3", "metrics-torn": ":2", "metrics-logged": ":3", "run-published": ":3"}
"""Crash points at which a later time is harder than the first."""


NEEDS_GCC = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[ForkServer]:
    started = ForkServer(compile_library(tmp_path_factory.mktemp("library")) if shutil.which("gcc") else None)
    yield started
    started.close()


@pytest.fixture(scope="module")
def stage(server: ForkServer, tmp_path_factory) -> Callable[[str], Stage]:
    """Return the stage of a scene, which is set once."""
    return cache(lambda scene: Stage(server, SCENES[scene], tmp_path_factory.mktemp(scene)))


@pytest.fixture(scope="module")
def whole(server: ForkServer, tmp_path_factory) -> Path:
    """The folder of a sweep that was never killed."""
    folder = tmp_path_factory.mktemp("whole")
    ended = server.run(folder, SWEEP)
    assert ended.status == 0, ended.err
    return folder


def sweep(server: ForkServer, folder: Path, crash: str | None = None) -> Ended:
    return server.run(folder, SWEEP, EVERY_STEP | ({CRASH_VARIABLE: crash} if crash else {}))


def assert_equal(found: Path, wanted: Path) -> None:
    """Equal records without times and host; nothing lost, doubled or left over."""
    ours, theirs = Store(found), Store(wanted)
    assert list(ours.ids()) == list(theirs.ids())
    for run_id in theirs.ids():
        assert first_difference(ours.load(run_id), theirs.load(run_id)) is None
    left = [path for name in ("attempts", "checkpoints") for path in (found / name).glob("*")]
    assert left == []


def test_the_suite_knows_every_crash_point() -> None:
    names = {path.stem: path.read_text() for path in Path("icl_bench").rglob("*.py")}
    used = {name for name in CRASH_POINTS if any(f'reach("{name}")' in text for text in names.values())}
    assert used == set(CRASH_POINTS) and set(COMMANDS) <= used


@pytest.mark.parametrize("point", [name for name in CRASH_POINTS if name not in COMMANDS])
def test_a_sweep_killed_at_a_named_point_is_completed(server: ForkServer, whole: Path, tmp_path, point: str) -> None:
    killed = sweep(server, tmp_path, point + COUNTS.get(point, ""))
    assert killed.status == -signal.SIGKILL
    done = sweep(server, tmp_path)
    assert done.status == 0, done.err
    assert_equal(tmp_path / "icl-runs", whole / "icl-runs")


def test_a_curriculum_killed_in_its_rise_ends_as_one_that_was_not(server: ForkServer, tmp_path) -> None:
    stores, command = [], ("run", TASK, "--arch", "power:p=3", "--set", "train.curriculum=0.9", *TINY)
    for crash in (None, "step-done:2"):
        folder = tmp_path / str(crash)
        folder.mkdir()
        ended = server.run(folder, command, EVERY_STEP | ({CRASH_VARIABLE: crash} if crash else {}))
        assert ended.status == (-signal.SIGKILL if crash else 0)
        assert server.run(folder, command).status == 0
        stores.append(folder / "icl-runs")
    assert_equal(*stores)


@pytest.mark.parametrize("point", list(COMMANDS))
def test_a_command_killed_at_a_named_point_can_be_given_again(
    server: ForkServer, whole: Path, tmp_path, point: str
) -> None:
    shutil.copytree(whole / "icl-runs", tmp_path / "icl-runs")
    first = next(Store(tmp_path / "icl-runs").ids())
    command = [part.format(id=first) for part in COMMANDS[point]]
    killed = server.run(tmp_path, command, {CRASH_VARIABLE: point})
    assert killed.status == -signal.SIGKILL
    again = server.run(tmp_path, command)
    if point == "run-removed":
        assert again.status == 2 and "none does" in again.err
        assert not Store(tmp_path / "icl-runs").has(first) and sweep(server, tmp_path).status == 0
        # Alone, the run differs in rounding from what it was as a member of a fleet.
        assert list(Store(tmp_path / "icl-runs").ids()) == list(Store(whole / "icl-runs").ids())
        return
    assert again.status == 0, again.err
    assert_equal(tmp_path / ("merged" if "merge" in point else "icl-runs"), whole / "icl-runs")


@pytest.mark.parametrize("moment", range(5))
def test_a_sweep_killed_at_a_random_moment_is_completed(server: ForkServer, whole: Path, tmp_path, moment: int) -> None:
    wait = random.Random(moment).uniform(0.01, 0.6)
    killed = server.run(tmp_path, SWEEP, EVERY_STEP, after=wait)
    assert killed.status in (-signal.SIGKILL, 0)
    done = sweep(server, tmp_path)
    assert done.status == 0, done.err
    assert_equal(tmp_path / "icl-runs", whole / "icl-runs")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_the_command_continues(
    server: ForkServer, tmp_path, number: signal.Signals, status: int
) -> None:
    long = ["run", TASK, "--arch", "linear", *TINY, "--set", "train.steps=500", "--set", "evaluation.points=2"]
    checkpoint = "icl-runs/checkpoints/*/0*"
    cut = server.run(tmp_path, long, {"ICL_BENCH_CHECKPOINT_EVERY": "0.02"}, after=checkpoint, number=number)
    assert cut.status == status and cut.err.strip().endswith("the same command continues"), cut.err
    assert len(list((tmp_path / "icl-runs" / "checkpoints").glob("*/0*/sha256"))) in (1, 2)
    listed = server.run(tmp_path, ["runs", "list"])
    assert "interrupted" in listed.out and "1 of them interrupted" in listed.err
    done = server.run(tmp_path, long)
    assert done.status == 0 and "continues at step" in done.err, done.err
    shutil.move(tmp_path / "icl-runs", tmp_path / "paused")
    assert server.run(tmp_path, long).status == 0
    assert_equal(tmp_path / "paused", tmp_path / "icl-runs")


def test_an_unknown_crash_point_is_an_error(server: ForkServer, tmp_path) -> None:
    ended = sweep(server, tmp_path, "step-dome")
    assert ended.status == 2 and "did you mean 'step-done'?" in ended.err and "Traceback" not in ended.err


@NEEDS_GCC
def test_recorded_operations_make_the_folder_that_the_command_made(stage, tmp_path) -> None:
    folder, record = tmp_path / "folder", tmp_path / "record"
    stage("checkpoints").reset(folder)
    disk = Disk(folder)
    assert stage("checkpoints").give(folder, Fault(0, record=str(record))).status == 0
    for operation in read_record(record):
        disk.carry_out(operation)
    made = {name: bytes(node.data) if hasattr(node, "data") else None for name, node in left(disk.root, False)}
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    assert made == {
        name: path.read_bytes() if path.is_file() else None for name, path in paths.items() if name not in PRINTED
    }


@NEEDS_GCC
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("scene", "count"), [("merge", 3), ("rm", 2), ("sweep", 1)])
def test_a_fault_is_survived(stage, scene: str, count: int, fault: str) -> None:
    drawn, operations = random.Random(f"{scene} {fault}"), stage(scene).attack(FAULTS[fault])[0].operations
    for at in drawn.sample(range(1, operations + 1), min(count, operations)):
        ended, wrong = stage(scene).attack(FAULTS[fault]._replace(at=at))
        assert wrong == [], (at, ended)


@NEEDS_GCC
@pytest.mark.parametrize("lose_names", [False, True])
def test_a_loss_of_power_is_survived(stage, lose_names: bool) -> None:
    assert [cut for cut in stage("merge").power_cuts(lose_names, every=7) if cut[1]] == []


@NEEDS_GCC
@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("scene", SCENES)
def test_faults_at_many_operations_are_survived(stage, scene: str, fault: str) -> None:
    for at in range(1, stage(scene).attack(FAULTS[fault])[0].operations + 1, 5):
        ended, wrong = stage(scene).attack(FAULTS[fault]._replace(at=at))
        assert wrong == [], (at, ended)


@NEEDS_GCC
@pytest.mark.slow
@pytest.mark.parametrize("lose_names", [False, True])
@pytest.mark.parametrize("scene", SCENES)
def test_losses_of_power_at_every_moment_are_survived(stage, scene: str, lose_names: bool) -> None:
    assert [cut for cut in stage(scene).power_cuts(lose_names) if cut[1]] == []
