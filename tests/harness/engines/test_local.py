"""Worker processes that are killed, stopped or orphaned, and the commands that start them."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from icl_bench.errors import EngineError
from icl_bench.harness.engines import Local, places
from icl_bench.harness.engines.base import Agenda, Engine
from icl_bench.harness.engines.executor import Executor
from icl_bench.harness.engines.inline import InlineEngine
from icl_bench.harness.engines.local import ProcessPool, SharedGpus
from icl_bench.harness.engines.messages import Limits, Ready
from icl_bench.harness.engines.places import WorkerSlot
from icl_bench.harness.engines.supervisor import Supervisor
from icl_bench.harness.resolve import Request, expand_request
from icl_bench.harness.training import outside_layers
from icl_bench.harness.training.fleet import run_fleet
from icl_bench.harness.training.trainer import Machine
from icl_bench.runs.events import Reporter, SilentReporter
from icl_bench.runs.record import RunResult
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
    return expand_request(Request(TASK, [arch], seeds=range(count), settings=(*TINY, *settings)))


def quiet() -> SilentReporter:
    return SilentReporter()


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_sweep_outlives_its_workers(at_once: int, tmp_path) -> None:
    specs, engine, over = runs("linear", 24), Local(workers=2, at_once=at_once).start(MACHINE), threading.Event()

    def kill_three_workers() -> None:
        killed = 0
        while killed < 3 and not over.wait(0.2):
            fresh = [slot for slot in engine.slots if slot.item and not slot.item.losses]
            if fresh:
                fresh[-1].worker.process.kill()
                killed += 1

    killer = threading.Thread(target=kill_three_workers)
    killer.start()
    records = Executor(Store(tmp_path / "store"), engine, 1, quiet()).finish(specs)
    over.set()
    killer.join()
    alone = Executor(Store(tmp_path / "alone"), InlineEngine(MACHINE), 1, quiet()).finish(specs)
    assert [run.result.status for run in records] == ["ok"] * 24 and 1 <= engine.usage.lost <= 3 * at_once
    assert [run.result.cells for run in records] == [run.result.cells for run in alone]
    assert [run.metrics for run in records] == [run.metrics for run in alone]
    engine.close()


def test_a_fleet_that_is_cut_between_processes_has_the_results_of_its_parts(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(places, "WORTH_CUTTING", 0.0)
    specs, engine = runs("linear", 6), Local(workers=2, at_once=2).start(MACHINE)
    engine.slots += [WorkerSlot(engine.pool.start(), 0.0) for _ in range(engine.size)]
    while not all(slot.ready for slot in engine.slots):
        for worker, message in engine.pool.listen([slot.worker for slot in engine.slots], 1.0):
            next(slot for slot in engine.slots if slot.worker is worker).ready |= isinstance(message, Ready)
    records = Executor(Store(tmp_path / "store"), engine, 6, quiet()).finish(specs)
    engine.close()
    halves = Executor(Store(tmp_path / "halves"), InlineEngine(MACHINE), 3, quiet()).finish(specs)
    assert [run.manifest.fleet_size for run in records] == [3] * 6
    assert [run.result.cells for run in records] == [run.result.cells for run in halves]
    assert [run.metrics for run in records] == [run.metrics for run in halves]


def test_processes_come_before_further_workers_of_a_process(tmp_path) -> None:
    pool = ProcessPool(MACHINE, 1, most=2, at_once=2)
    workers = [pool.start() for _ in range(4)]
    first, second = dict.fromkeys(worker.process for worker in workers)
    assert [worker.process for worker in workers] == [first, second, first, second] and not pool.spare
    workers[2].kill()
    workers[0].kill()
    assert pool.start().process not in (first, second) and len(pool.spare) == 1
    for worker in [*workers, *pool.started]:
        worker.kill()


def test_layers_from_outside_are_refused_beside_other_fleets(tmp_path, monkeypatch) -> None:
    (tmp_path / "halting.py").write_text(STOPPED)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    engine = Local(workers=1, at_once=2).start(MACHINE)
    with pytest.raises(EngineError, match="at_once=2 and more train layers of the package; got halting:Stopped; leave"):
        Executor(Store(tmp_path / "store"), engine, 1, quiet()).finish(runs("halting:Stopped", 1))
    engine.close()
    sys.modules.pop("halting")


def test_a_stopped_worker_is_noticed(tmp_path, monkeypatch) -> None:
    (tmp_path / "halting.py").write_text(STOPPED)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    engine = Supervisor(ProcessPool(MACHINE, 1, 1), 1, MACHINE, Limits(silence=2.5))
    (record,) = Executor(Store(tmp_path / "store"), engine, 1, quiet()).finish(runs("halting:Stopped", 1))
    assert record.result.status == "timeout" and "no sign of life for 2.5 s" in str(record.result.detail)
    engine.close()
    sys.modules.pop("halting")


def test_workers_are_spread_evenly_over_gpus(monkeypatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    pool = ProcessPool(Machine(torch.device("cuda")), 1, 5)

    class StartedWorker:
        def __init__(self) -> None:
            self.gpu, self.connection = pool.least_used_gpu(), self
            self.closed = False

    for _ in range(5):
        pool.started.append(StartedWorker())
    assert [worker.gpu for worker in pool.started] == ["2", "5", "2", "5", "2"]
    pool.started[1].closed = True
    assert pool.least_used_gpu() == "5"


ENDLESS = [
    "--set",
    "train.steps=1000000",
    *(word for setting in TINY if "steps" not in setting for word in ("--set", setting)),
]


def started(folder: Path, engine: str) -> tuple[subprocess.Popen, list[int]]:
    """A command with two workers in the middle of training, and their processes."""
    command = [sys.executable, "-m", "icl_bench", "run", TASK, "--arch", "linear", "--seeds", "0,1", *ENDLESS]
    process = subprocess.Popen(
        [*command, "--engine", engine, "--store", str(folder)],
        stderr=subprocess.PIPE,
        env=os.environ | {"ICL_BENCH_CHECKPOINT_EVERY": "0.1"},
    )
    until = time.monotonic() + 90.0
    while len(saved(folder)) < 2:
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.1)
    return process, workers(folder)


def workers(folder: Path) -> list[int]:
    """Processes with an attempt at a run."""
    attempts = folder / "attempts"
    return sorted(int(path.name.split("-")[2]) for path in attempts.iterdir()) if attempts.is_dir() else []


def saved(folder: Path) -> set[Path]:
    """Folders of fleets that have a checkpoint."""
    return {path.parent for path in folder.glob("checkpoints/*/0*")}


def wait_until_gone(pids: list[int], seconds: float) -> None:
    """Wait until all processes have ended."""
    until = time.monotonic() + seconds
    while any(Path(f"/proc/{pid}").exists() and "Z (" not in Path(f"/proc/{pid}/status").read_text() for pid in pids):
        assert time.monotonic() < until, "a worker was left behind"
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("number", "status", "engine"),
    [
        (signal.SIGTERM, 143, "local:workers=2"),
        (signal.SIGKILL, -9, "local:workers=2"),
        (signal.SIGTERM, 143, "local:workers=1,at_once=2"),
    ],
)
def test_workers_end_with_the_command(number, status, engine, tmp_path) -> None:
    process, pids = started(tmp_path, engine)
    process.send_signal(number)
    _, err = process.communicate(timeout=60.0)
    assert process.returncode == status
    wait_until_gone(pids, 60.0)
    assert number == signal.SIGKILL or b"the same command continues" in err
    assert workers(tmp_path) == [] and len(saved(tmp_path)) == 2
    assert list(Store(tmp_path).ids()) == []


def test_a_reporter_that_fails_is_not_a_fault_of_a_run(tmp_path) -> None:
    def fail(progress) -> None:
        raise OSError(28, "No space left on device")

    store = Store(tmp_path)
    with pytest.raises(OSError, match="No space left on device"):
        run_fleet(runs("linear", 1), store, MACHINE, fail)
    assert list(store.ids()) == [] and workers(tmp_path) == []


class Started(Engine):
    """A stand-in for workers that train so many fleets at once."""

    def __init__(self, at_once: int) -> None:
        self.at_once, self.closed = at_once, False

    def submit(self, agenda: Agenda, store: Store, reporter: Reporter) -> Iterator[RunResult]:
        while agenda:
            agenda.take()
        return iter(())

    def close(self) -> None:
        self.closed = True


def test_workers_with_gpus_train_several_fleets_until_a_layer_comes_from_outside(tmp_path, monkeypatch) -> None:
    made: list[Started] = []

    def start(at_once: int) -> Engine:
        made.append(Started(at_once))
        return made[-1]

    gpu = Machine(torch.device("cuda"))
    assert isinstance(Local().start(gpu), SharedGpus)
    assert not isinstance(Local(workers=2).start(gpu), SharedGpus)  # which may share a GPU already
    engine, started = SharedGpus(start), list[int]()
    outside = {"softmax": True, "linear": False}
    monkeypatch.setattr(outside_layers, "calls_outside_code", lambda spec: outside[spec.arch[0].name])
    for names in (["linear"], ["linear"], ["linear", "softmax"], ["linear"]):
        agenda = Agenda([runs(name, 1) for name in names])
        list(engine.submit(agenda, Store(tmp_path), quiet()))
        started.append(engine.at_once)
    assert started == [6, 6, 1, 1] and [one.closed for one in made] == [True, False]
    engine.close()
    assert made[-1].closed
