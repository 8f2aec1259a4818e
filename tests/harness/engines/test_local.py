"""Worker processes that are killed, stopped or left behind, and the commands that start them."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

from icl_bench.commands.progress import LineReporter
from icl_bench.errors import EngineError, IclBenchError, SpecError
from icl_bench.harness.engines.base import run_all
from icl_bench.harness.engines.choice import Choice
from icl_bench.harness.engines.choose import check_choice, slurm_settings
from icl_bench.harness.engines.inline import InlineEngine
from icl_bench.harness.engines.local import LocalCrew, LocalEngine
from icl_bench.harness.engines.ray import check_reachable
from icl_bench.harness.engines.slurm import SlurmEngine, Watch
from icl_bench.harness.engines.supervisor import Limits
from icl_bench.harness.resolve import Request, expand
from icl_bench.harness.training.fleet import Machine, run_fleet
from icl_bench.runs.spec import RunSpec
from icl_bench.runs.store import Store

MACHINE = Machine(torch.device("cpu"))
TASK = "assoc-recall:length=16,pairs=[2|4],vocab=64"
TINY = (
    "model.d_model=16", "train.steps=20", "train.batch=4", "evaluation.examples=8", "evaluation.validation=4",
    "evaluation.points=2",
)  # fmt: skip
STOPPED = """
import os, signal, torch

class Stopped(torch.nn.Linear):
    def __init__(self, d_model):
        super().__init__(d_model, d_model)

    def forward(self, x):
        os.kill(os.getpid(), signal.SIGSTOP)
        return super().forward(x)
"""


def runs(arch: str, count: int, *settings: str) -> list[RunSpec]:
    return expand(Request(TASK, [arch], seeds=range(count), settings=(*TINY, *settings)))


def quiet() -> LineReporter:
    return LineReporter(Console(quiet=True))


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_sweep_outlives_its_workers(tmp_path) -> None:
    specs, engine, over = runs("linear", 24), LocalEngine(MACHINE, 2), threading.Event()

    def kill_three_workers() -> None:
        killed = 0
        while killed < 3 and not over.wait(0.2):
            fresh = [post for post in engine.supervisor.posts if post.item and not post.item.losses]
            if fresh:
                fresh[-1].worker.process.kill()
                killed += 1

    killer = threading.Thread(target=kill_three_workers)
    killer.start()
    records = run_all(specs, Store(tmp_path / "store"), engine, 1, quiet())
    over.set()
    killer.join()
    alone = run_all(specs, Store(tmp_path / "alone"), InlineEngine(MACHINE), 1, quiet())
    assert [run.result.status for run in records] == ["ok"] * 24 and 1 <= engine.supervisor.usage.lost <= 3
    assert [run.result.cells for run in records] == [run.result.cells for run in alone]
    assert [run.metrics for run in records] == [run.metrics for run in alone]
    engine.close()


def test_a_stopped_worker_is_noticed(tmp_path, monkeypatch) -> None:
    (tmp_path / "halting.py").write_text(STOPPED)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    engine = LocalEngine(MACHINE, 1, Limits(silence=2.5))
    (record,) = run_all(runs("halting:Stopped", 1), Store(tmp_path / "store"), engine, 1, quiet())
    assert record.result.status == "timeout" and "no sign of life for 2.5 s" in str(record.result.detail)
    engine.close()
    sys.modules.pop("halting")


def test_gpus_are_dealt_out_evenly(monkeypatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    crew = LocalCrew(Machine(torch.device("cuda")), 1)

    class Hired:
        def __init__(self) -> None:
            self.gpu, self.connection = crew.least_used_gpu(), self
            self.closed = False

    for _ in range(5):
        crew.hired.append(Hired())
    assert [worker.gpu for worker in crew.hired] == ["2", "5", "2", "5", "2"]
    crew.hired[1].closed = True
    assert crew.least_used_gpu() == "5"


ENDLESS = [
    "--set",
    "train.steps=1000000",
    *(word for setting in TINY if "steps" not in setting for word in ("--set", setting)),
]


def started(folder: Path) -> tuple[subprocess.Popen, list[int]]:
    """A command with two workers in the middle of training, and their processes."""
    command = [sys.executable, "-m", "icl_bench", "run", TASK, "--arch", "linear", "--seeds", "0,1", *ENDLESS]
    process = subprocess.Popen(
        [*command, "--engine", "local", "--workers", "2", "--store", str(folder)],
        stderr=subprocess.PIPE,
        env=os.environ | {"ICL_BENCH_CHECKPOINT_EVERY": "0.1"},
    )
    until = time.monotonic() + 90.0
    while len(saved(folder)) < 2:
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.1)
    return process, workers(folder)


def workers(folder: Path) -> list[int]:
    """Processes that have a run in hand."""
    attempts = folder / "attempts"
    return sorted(int(path.name.split("-")[2]) for path in attempts.iterdir()) if attempts.is_dir() else []


def saved(folder: Path) -> set[Path]:
    """Fleets of which a state is kept."""
    return {path.parent for path in folder.glob("checkpoints/*/0*")}


def wait_until_gone(pids: list[int], seconds: float) -> None:
    """Wait until none of the processes is there any more."""
    until = time.monotonic() + seconds
    while any(Path(f"/proc/{pid}").exists() and "Z (" not in Path(f"/proc/{pid}/status").read_text() for pid in pids):
        assert time.monotonic() < until, "a worker was left behind"
        time.sleep(0.1)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_workers_end_with_the_command(number, status, tmp_path) -> None:
    process, pids = started(tmp_path)
    process.send_signal(number)
    _, err = process.communicate(timeout=60.0)
    assert process.returncode == status
    wait_until_gone(pids, 60.0)
    assert number == signal.SIGKILL or b"the same command continues" in err
    assert workers(tmp_path) == [] and len(saved(tmp_path)) == 2
    assert list(Store(tmp_path).ids()) == []


class Deaf:
    """Cannot be told anything."""

    def progressed(self, progress) -> None:
        raise OSError(28, "No space left on device")


def test_who_cannot_be_told_is_no_fault_of_a_run(tmp_path) -> None:
    store = Store(tmp_path)
    with pytest.raises(OSError, match="No space left on device"):
        run_fleet(runs("linear", 1), store, MACHINE, Deaf())
    assert list(store.ids()) == [] and workers(tmp_path) == []


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (Choice("lokal"), "no engine is named 'lokal'; did you mean 'local'"),
        (Choice("inline", workers=2), "--workers needs an engine that has workers"),
        (Choice("inline", timeout=2.0), "--timeout needs an engine that has workers"),
        (Choice("local", ray_address="auto"), "--ray-address belongs to --engine ray"),
        (Choice("ray", slurm=("partition=gpu",)), "--slurm belongs to --engine slurm"),
        (Choice("slurm"), "--engine slurm needs a number of jobs"),
    ],
)
def test_options_that_do_not_go_together_are_refused(choice, message) -> None:
    with pytest.raises(IclBenchError, match=message):
        check_choice(choice)


def test_parameters_of_jobs_are_key_value() -> None:
    assert slurm_settings(["partition=gpu", "time=60"]) == {"partition": "gpu", "time": 60}
    with pytest.raises(SpecError, match="--slurm takes key=value; got 'gpu'"):
        slurm_settings(["gpu"])


def test_a_cluster_that_is_not_there_is_named_at_once(monkeypatch, tmp_path) -> None:
    with pytest.raises(EngineError, match=r"names a Ray cluster that can be reached; 127\.0\.0\.1:1"):
        check_reachable("127.0.0.1:1")
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineError, match="--engine slurm needs sbatch on the path"):
        SlurmEngine(MACHINE, 2)


@pytest.mark.parametrize(("name", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_missing_extra_is_named_with_its_command(name, package, monkeypatch) -> None:
    from icl_bench.harness.engines.choose import make_engine

    monkeypatch.setattr("importlib.util.find_spec", lambda asked: None)
    with pytest.raises(EngineError, match=rf"it is not installed; pip install 'icl-bench\[{name}\]'"):
        make_engine(Choice(name, workers=1), MACHINE)


def test_jobs_are_submitted_as_one_array_with_the_parameters_asked_for(tmp_path, monkeypatch) -> None:
    pytest.importorskip("submitit")
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, line in {"sbatch": f"cp $1 {tmp_path}/batch; echo Submitted batch job 12", "srun": "true"}.items():
        (tools / name).write_text(f"#!/bin/sh\n{line}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    engine = SlurmEngine(MACHINE, 2, settings={"partition": "gpu", "time": 60, "cpus_per_task": 4})
    assert len(engine.send([[run] for run in runs("linear", 3)], Store(tmp_path / "store"))) == 2
    batch = (tmp_path / "batch").read_text()
    for option in ("--partition=gpu", "--time=60", "--cpus-per-task=4", "--array=0-1"):
        assert f"#SBATCH {option}" in batch
    with pytest.raises(EngineError, match="--slurm takes parameters of submitit"):
        SlurmEngine(MACHINE, 2, settings={"speed": 9}).send([runs("linear", 1)], Store(tmp_path / "store"))


class Job:
    """A job that ended."""

    def __init__(self, outcome) -> None:
        self.outcome = outcome

    def exception(self):
        return self.outcome if isinstance(self.outcome, RuntimeError) else None

    def result(self):
        return self.outcome


def test_what_jobs_met_is_raised_and_idle_rounds_are_counted(tmp_path) -> None:
    watch = Watch([runs("linear", 1)], Store(tmp_path), quiet())
    watch.next_round([])
    with pytest.raises(SpecError, match="change this"):
        watch.next_round([Job(None), Job(SpecError("change this"))])
    for _ in range(2):
        watch.next_round([Job(RuntimeError("the node\nvanished"))])
    with pytest.raises(EngineError, match="3 rounds of them ended without; vanished; see their logs"):
        watch.next_round([Job(RuntimeError("the node\nvanished")), Job(None)])
