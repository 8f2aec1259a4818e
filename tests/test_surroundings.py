"""Commands in odd surroundings: absurd sizes, signals at any moment, no docstrings, no home, odd permissions."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from icl_bench.harness import interruption
from icl_bench.registry import PLUGIN_MODULES
from tests.runs.records import filled, spec

NINES = "9" * 5000
STUDY = {"name": "s", "question": "q", "tasks": "copy", "archs": "linear", "lr": "1e-3"}
ABSURD_SETTINGS = [
    "model.d_model=1000000000", "model.layers=1000000000", "model.mlp=1e300", "train.steps=" + "1" + "0" * 30,
    "train.batch=" + "9" * 30, "train.examples=" + NINES, "evaluation.examples=" + "9" * 20, "data_seed=" + NINES,
]  # fmt: skip
ABSURD = [
    ["compare", "copy", "--arch", "linear", "--state", "²"],
    ["compare", "copy", "--arch", "linear", "--state", NINES],
    ["--plugin", "..", "tasks"],
    ["--plugin", "./x.py", "tasks"],
    ["state", "linear", "--d-model", "9" * 18],
    ["state", "linear", "--layers", "9" * 9],
    ["state", "linear", "--length", "9" * 400],
    ["state", f"linear:heads={NINES}"],
    ["state", 'linear:heads="' + "9" * 4000 + '"'],
    ["show", "assoc-recall:length=" + "9" * 18],
    ["show", "assoc-recall:vocab=" + "9" * 18],
    ["show", "copy:symbols=" + "9" * 18],
    ["show", "haystack-recall:length=" + "/".join(map(str, range(64, 664))) + ",pairs=1/2"],
    ["run", "copy", "--arch", "linear", "--seeds", NINES],
    ["run", "copy", "--arch", "linear", "--lr", "x" + NINES],
    *(["run", "copy", "--arch", "linear", "--set", setting] for setting in ABSURD_SETTINGS),
]
DONE = ["run", "assoc-recall", "--arch", "linear", "--store", "store"]
"""A command of which the store of `filled` holds every run."""
ENDING = """
import atexit, sys
from icl_bench import __main__, cli
class Loud:
    def __del__(self): print("taken apart")
loud, run_command = Loud(), cli.run_command
def run():
    atexit.register(print, "called")
    return run_command()
cli.run_command = run
__main__.launch()
"""
"""A program that runs the command of its arguments, and says what happens at its end."""
STARTED = 'import sys; sys.argv = ["icl-bench", "tasks"]; from icl_bench.__main__ import launch; launch()'


@pytest.mark.parametrize("arguments", ABSURD, ids=lambda words: " ".join(words)[:60])
def test_absurd_values_are_one_line_at_once(command, tmp_path, monkeypatch, arguments: list[str]) -> None:
    monkeypatch.setenv(PLUGIN_MODULES, "")  # which --plugin sets
    started = time.process_time()
    outcome = command(*arguments)
    assert (outcome.status, outcome.out, outcome.err.count("\n")) == (2, "", 1), outcome.err
    assert outcome.err.startswith("Error: ") and time.process_time() - started < 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change",
    [
        *({"settings": [setting]} for setting in ABSURD_SETTINGS),
        {"tasks": "assoc-recall:length=" + "9" * 18},
        {"archs": f"linear:heads={NINES}"},
        {"axes": {"model.d_model": [10**30]}},
        {"axes": {"model.d_model": list(range(8, 808, 8)), "train.batch": list(range(1, 101))}},
        {"bimodal_seeds": 10**12},
        {"ladder": [1, 10**30]},
        {"seeds": "0..99999999999"},
    ],
    ids=lambda change: str(change)[:60],
)
def test_an_absurd_study_is_one_line_at_once(command, tmp_path, change: dict) -> None:
    (tmp_path / "s.yaml").write_text(json.dumps({**STUDY, **change}))
    started = time.process_time()
    outcome = command("sweep", "s.yaml", "--dry-run")
    assert (outcome.status, outcome.out, outcome.err.count("\n")) == (2, "", 1), outcome.err
    assert time.process_time() - started < 2


@pytest.mark.parametrize("count", [NINES, "0", "²", "-1"])
def test_a_count_of_crash_points_that_is_none_is_one_line(command, monkeypatch, count: str) -> None:
    monkeypatch.setenv("ICL_BENCH_CRASH_AT", f"trained:{count}")
    outcome = command("run", "copy", "--arch", "linear", "--set", "train.steps=1", "--set", "train.batch=1")
    assert outcome.status == 2 and outcome.err.splitlines()[-1].startswith("Error: ICL_BENCH_CRASH_AT is name or")


@pytest.mark.parametrize(("level", "arguments"), [pytest.param("-O", DONE, marks=pytest.mark.slow), ("-OO", ["archs"])])
def test_commands_need_no_docstrings(tmp_path, level: str, arguments: list[str]) -> None:
    filled(tmp_path / "store", 0)
    words = [sys.executable, level, "-m", "icl_bench", *arguments]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "linear" in done.stdout, done.stderr


@pytest.mark.parametrize(("words", "status"), [(["--version"], 0), (["archs", "--wrong"], 2)])
def test_a_command_calls_what_asked_for_it_at_its_end_and_takes_nothing_apart(words: list[str], status: int) -> None:
    done = subprocess.run([sys.executable, "-c", ENDING, *words], capture_output=True, text=True)
    assert done.returncode == status and "called" in done.stdout and "taken apart" not in done.stdout, done.stderr


def test_a_command_needs_no_home_and_no_variables(tmp_path) -> None:
    filled(tmp_path / "store", 0)
    variables = {"PATH": os.environ["PATH"], "PYTHONPATH": os.environ.get("PYTHONPATH", ""), "HOME": "/nonexistent"}
    words = [sys.executable, "-m", "icl_bench", "report", "store", "-o", "r.md"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=variables)
    assert (done.returncode, done.stdout) == (0, "r.md\n") and "Traceback" not in done.stderr
    assert (tmp_path / "r.md").exists()


@pytest.mark.parametrize("mask", [0o077, 0o000, 0o177])
def test_a_store_made_under_an_odd_umask_can_be_used(command, tmp_path, mask: int) -> None:
    tiny = ["--set", "train.steps=1", "--set", "train.batch=1", "--set", "model.layers=1", "--set", "model.d_model=8"]
    former = os.umask(mask)
    try:
        outcomes = [command("run", "copy:symbols=4", "--arch", "linear", *tiny, "--report", "r.md") for _ in range(2)]
    finally:
        os.umask(former)
    assert [outcome.status for outcome in outcomes] in ([0, 0], [2, 2]), outcomes
    assert "Traceback" not in str(outcomes)


def test_a_damaged_index_in_a_store_that_cannot_be_written_is_read_anew(command, tmp_path, monkeypatch) -> None:
    store = filled(tmp_path / "store", 0, 1)
    command("runs", "list", "--store", "store")
    (store.root / "index.sqlite").write_bytes(b"damaged")

    def refuse(*arguments: object, **named: object) -> None:
        raise OSError(30, "Read-only file system", "store")

    for name in ("unlink", "replace", "rename", "mkdir", "link", "rmdir", "remove"):
        monkeypatch.setattr(os, name, refuse)
    opened = os.open

    def open_to_read(path: object, flags: int, *more: int, **named: int) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            refuse()
        return opened(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", open_to_read)
    for arguments in (["list"], ["list", "--json"], ["verify"], ["show", spec(0).id]):
        outcome = command("runs", *arguments, "--store", "store")
        assert outcome.status == 0 and "Traceback" not in outcome.err, outcome.err


@pytest.mark.parametrize(
    ("number", "seconds"), [*((signal.SIGINT, 0.05 * 1.6**i) for i in range(7)), (signal.SIGTERM, 0.4)]
)
def test_a_signal_while_the_program_loads_ends_it_without_a_traceback(tmp_path, number: int, seconds: float) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STARTED], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        time.sleep(seconds)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert "Traceback" not in err or "icl_bench/" not in err, err  # before Python has loaded itself, it is its own
    assert process.returncode in (0, 128 + number, -number)


DROPPED = """
import signal, weakref
from icl_bench.harness import interruption
class Held: pass
interruption.listen()
held = Held()
callback = weakref.ref(held, lambda _: signal.raise_signal(signal.SIGINT))
del held
assert interruption.is_interrupted()
callback = weakref.ref(Held(), lambda _: 1 / 0)
"""


def test_a_signal_whose_exception_python_drops_is_kept_without_a_word(tmp_path) -> None:
    outcome = subprocess.run([sys.executable, "-c", DROPPED], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert outcome.returncode == 0
    assert "Interrupted" not in outcome.stderr and "ZeroDivisionError" in outcome.stderr


def test_a_signal_after_the_work_ends_a_process_at_once(monkeypatch) -> None:
    monkeypatch.setattr(interruption.os, "_exit", sys.exit)
    own = interruption.Interruption()
    own.concluded = True
    with pytest.raises(SystemExit, match="130"):
        own.receive(signal.SIGINT, None)


def interrupted(folder: Path, number: int, *, ignored: bool = False) -> tuple[int, str]:
    """Send a signal to a process that trains; return its status and what it printed on standard error."""
    words = [sys.executable, "-m", "icl_bench", "run", "copy:symbols=4", "--arch", "linear"]
    words += ["--set", "train.batch=1", "--set", "model.d_model=8", "--set", f"train.steps={500 if ignored else 10**6}"]
    start = "trap '' HUP; " if ignored else ""
    with subprocess.Popen(
        ["bash", "-c", start + 'exec "$@"', "bash", *words], cwd=folder, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        while "started" not in process.stderr.readline():
            assert process.poll() is None
        time.sleep(0.5)
        process.send_signal(number)
        _, err = process.communicate(timeout=120)
    return process.returncode, err


def test_a_lost_connection_saves_and_ends_a_run(tmp_path) -> None:
    status, err = interrupted(tmp_path, signal.SIGHUP)
    assert status == 128 + signal.SIGHUP and err.endswith("interrupted by SIGHUP; the same command continues\n")
    assert list(tmp_path.glob("icl-runs/checkpoints/*/*/state.json"))


@pytest.mark.slow
def test_a_run_under_nohup_goes_on(tmp_path) -> None:
    status, err = interrupted(tmp_path, signal.SIGHUP, ignored=True)
    assert status == 0 and "accuracy" in err and list(tmp_path.glob("icl-runs/runs/*/*/result.json"))
