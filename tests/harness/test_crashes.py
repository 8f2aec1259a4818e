"""A command killed at any moment and given again ends with the store of a command that was never killed."""

import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from icl_bench.runs.store import Store
from icl_bench.runs.store.faults import CRASH_POINTS, CRASH_VARIABLE
from icl_bench.runs.store.merge import first_difference
from tests.harness.fork_server import Ended, ForkServer

TASK = "assoc-recall:length=16,pairs=[2|4],vocab=64"
TINY = [
    "--set", "train.steps=6", "--set", "train.batch=4", "--set", "model.d_model=16", "--set", "evaluation.examples=8",
    "--set", "evaluation.validation=4", "--set", "evaluation.points=2", "--device", "cpu",
]  # fmt: skip
SWEEP = ["run", TASK, "--arch", "linear", "--seeds", "0..3", "--fleet", "2", *TINY]
RUNS = 4
EVERY_STEP = {"ICL_BENCH_CHECKPOINT_EVERY": "0"}
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


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    started = ForkServer()
    yield started
    started.close()


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
    long = ["run", TASK, "--arch", "linear", *TINY, "--set", "train.steps=500"]
    checkpoint = "icl-runs/checkpoints/*/0*"
    cut = server.run(tmp_path, long, {"ICL_BENCH_CHECKPOINT_EVERY": "0.02"}, after=checkpoint, number=number)
    assert cut.status == status and cut.err.strip().endswith("the same command continues"), cut.err
    assert len(list((tmp_path / "icl-runs" / "checkpoints").glob("*/0*/sha256"))) in (1, 2)
    listed = server.run(tmp_path, ["runs", "list"])
    assert "interrupted" in listed.out and "1 of them interrupted" in listed.err
    done = server.run(tmp_path, long)
    assert done.status == 0 and "continued from step" in done.err, done.err
    shutil.move(tmp_path / "icl-runs", tmp_path / "paused")
    assert server.run(tmp_path, long).status == 0
    assert_equal(tmp_path / "paused", tmp_path / "icl-runs")


def test_an_unknown_crash_point_is_an_error(server: ForkServer, tmp_path) -> None:
    ended = sweep(server, tmp_path, "step-dome")
    assert ended.status == 2 and "did you mean 'step-done'?" in ended.err and "Traceback" not in ended.err
