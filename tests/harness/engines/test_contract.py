"""The contract of every registered engine: the same records, whatever happens to the workers."""

import json
import os
import signal
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest
import torch

from icl_bench.errors import ArgumentError
from icl_bench.harness.engines import ENGINES, Engine, Slurm
from icl_bench.harness.engines.base import Agenda, make_engine
from icl_bench.harness.engines.executor import Executor
from icl_bench.harness.engines.inline import InlineEngine
from icl_bench.harness.engines.messages import Limits
from icl_bench.harness.engines.slurm import SlurmEngine
from icl_bench.harness.engines.supervisor import Supervisor
from icl_bench.harness.resolve import Request, expand_request
from icl_bench.harness.training.fleet import pack
from icl_bench.harness.training.trainer import Machine
from icl_bench.runs.record import RunRecord
from icl_bench.runs.spec import RunSpec
from icl_bench.runs.store import Store

TINY = (
    "model.d_model=16", "train.steps=3", "train.batch=4", "evaluation.examples=8", "evaluation.validation=4",
    "evaluation.points=2",
)  # fmt: skip
TASK = "assoc-recall:length=16,pairs=[2|4],vocab=64"
LAYERS = """
import os, signal, time
from pathlib import Path
import torch

class Sound(torch.nn.Linear):
    def __init__(self, d_model):
        super().__init__(d_model, d_model)

class Broken(Sound):
    def forward(self, x):
        raise ValueError("this layer is broken")

class Deadly(Sound):
    def forward(self, x):
        with Path("deaths").open("a") as file:
            file.write("x")
        os.kill(os.getpid(), signal.SIGKILL)

class DeadlyOnce(Sound):
    def forward(self, x):
        if not Path("died").exists():
            Path("died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)

class Endless(Sound):
    def forward(self, x):
        time.sleep(600)

class Stopped(Sound):
    def forward(self, x):
        os.kill(os.getpid(), signal.SIGSTOP)
        return super().forward(x)

class Slow(Sound):
    def forward(self, x):
        time.sleep(0.005)
        return super().forward(x)
"""
MACHINE = Machine(torch.device("cpu"))
ALONE = [name for name in ENGINES if name != "auto"]  # which is one of the others
SUPERVISED = [name for name in ALONE if name != "inline"]


class Notes:
    """Keeps the events."""

    def __init__(self) -> None:
        self.under_way: set[str] = set()
        self.finished_runs: list[str] = []
        self.losses: list[str] = []

    def expected(self, later) -> None:
        """Do nothing."""

    def planned(self, specs, missing) -> None:
        self.plan = (len(specs), len(missing))

    def started(self, specs) -> None:
        assert specs[0].id not in self.under_way
        self.under_way.add(specs[0].id)

    def progressed(self, specs, progress) -> None:
        assert specs[0].id in self.under_way and 0 < progress.step <= progress.steps

    def lost(self, specs, reason) -> None:
        self.under_way.remove(specs[0].id)
        self.losses.append(reason)

    def finished(self, results) -> None:
        self.under_way -= {result.id for result in results}
        self.finished_runs += [result.id for result in results]

    def closed(self) -> None:
        self.is_closed = True


@pytest.fixture(scope="session")
def ray_cluster():
    """Ray on two logical cores, started once."""
    ray = pytest.importorskip("ray")
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def engine(request, monkeypatch, tmp_path):
    """An engine of that name with two workers and short limits, in a folder of its own."""
    (tmp_path / "strange.py").write_text(LAYERS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    if request.param == "ray":
        request.getfixturevalue("ray_cluster")
    if request.param == "slurm":
        pytest.importorskip("submitit")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    made = make(request.param)
    yield made
    made.close()
    torch.set_num_threads(threads)
    sys.modules.pop("strange", None)


def make(name: str) -> Engine:
    if name == "slurm":
        return SlurmEngine(Slurm(workers=2, cluster="local"), MACHINE, Limits(fleet=8.0), expiry=3.0)
    return make_engine(name if name == "inline" else f"{name}:workers=2,timeout=8", MACHINE)


def runs(*layers: str, seeds=(0,)) -> list[RunSpec]:
    return expand_request(Request(TASK, [f"strange:{layer}" for layer in layers], seeds=seeds, settings=TINY))


def comparable(record: RunRecord) -> dict[str, object]:
    """A record as JSON, without times and places; of a traceback the last line, for its places are compared apart."""
    document = record.model_dump(mode="json")
    document["result"]["detail"] = (document["result"]["detail"] or "").strip().splitlines()[-1:]
    for changing in ("seconds", "examples_per_second", "files", "check"):
        document["result"].pop(changing)
    for changing in ("command", "started", "revision"):
        document["manifest"].pop(changing)
    return document


def some_worker(store: Path) -> int | None:
    """Process of a worker that runs a fleet, or of the job that holds its lease."""
    for lease in (store / "leases").glob("*.*"):
        return int(json.loads(lease.read_text())["process"]) if lease.stat().st_size else None
    for attempt in (store / "attempts").glob("*-*-*-*"):
        return int(attempt.name.split("-")[2])
    return None


def kill_one(store: Path, over: threading.Event) -> None:
    """Kill the first worker that runs a fleet, at the start of that fleet."""
    while not over.wait(1e-3):
        if (worker := some_worker(store)) is not None:
            os.kill(worker, signal.SIGKILL)
            return


@pytest.mark.parametrize("engine", ALONE, indirect=True)
def test_records_are_those_of_one_process_though_a_worker_is_killed(engine, tmp_path) -> None:
    specs, store, notes = runs("Slow", "Broken", seeds=range(4)), Store(tmp_path / "store"), Notes()
    over = threading.Event()
    killer = threading.Thread(target=kill_one, args=(store.root, over))
    if not isinstance(engine, InlineEngine):
        killer.start()
    assert len(list(engine.submit(Agenda(pack(specs, 1)), store, notes))) == 8
    over.set()
    records = [store.load(spec.id) for spec in specs]
    assert sorted(notes.finished_runs) == sorted(store.ids()) == sorted(spec.id for spec in specs)
    assert notes.under_way == set() and [run.result.status for run in records] == ["ok"] * 4 + ["error"] * 4
    assert "this layer is broken" in str(records[4].result.detail)
    alone = Executor(Store(tmp_path / "alone"), InlineEngine(MACHINE), 1, Notes()).finish(specs)
    for run, own in zip(records, alone, strict=True):
        assert comparable(run)["result"] == comparable(own)["result"]
        assert comparable(run) == comparable(own)
    broken = alone[4:]
    if not isinstance(engine, InlineEngine):  # whole tracebacks are those of a process that did nothing before
        with closing(make("local")) as fresh:
            broken = Executor(Store(tmp_path / "fresh"), fresh, 1, Notes()).finish(specs[4:])
    assert [run.result.detail for run in records[4:]] == [run.result.detail for run in broken]
    assert some_worker(store.root) is None
    if isinstance(engine, Supervisor):
        usage = engine.usage
        assert usage.lost == len(notes.losses) == 1 and usage.fleets == 8 and 0 < usage.busy <= usage.trips


@pytest.mark.parametrize("engine", ["inline", "local"], indirect=True)
def test_the_same_again_does_what_is_left(engine, tmp_path) -> None:
    specs, store, notes = runs("Sound", seeds=range(4)), Store(tmp_path / "store"), Notes()
    first = Executor(store, engine, 1, Notes()).finish(specs[:2])
    records = Executor(store, engine, 2, notes).finish(specs)
    assert notes.plan == (4, 2) and notes.is_closed and records[:2] == first
    assert sorted(notes.finished_runs) == sorted(spec.id for spec in specs[2:])


@pytest.mark.parametrize("engine", SUPERVISED, indirect=True)
def test_every_fault_of_a_run_is_its_result_and_harms_no_other(engine, tmp_path) -> None:
    specs, notes = runs("Deadly", "DeadlyOnce", "Endless", "Sound"), Notes()
    deadly, once, endless, sound = Executor(Store(tmp_path / "store"), engine, 1, notes).finish(specs)
    assert deadly.result.status == "crashed" and str(deadly.result.detail).startswith("lost 3 workers, the last: ")
    assert (tmp_path / "deaths").read_text() == "xxx"
    assert endless.result.status == "timeout" and "not done after 8 s" in str(endless.result.detail)
    assert once.result.status == sound.result.status == "ok"
    assert sorted(notes.finished_runs) == sorted(spec.id for spec in specs) and notes.under_way == set()


@pytest.mark.parametrize("engine", ["inline", "local"], indirect=True)
def test_what_the_user_must_change_is_raised(engine, tmp_path, monkeypatch) -> None:
    holder = engine.pool if isinstance(engine, Supervisor) else engine
    monkeypatch.setattr(holder, "machine", Machine(torch.device("cpu"), impl="sdpa"))
    specs = expand_request(Request(TASK, ["power:p=2"], settings=TINY))
    with pytest.raises(ArgumentError, match="impl must be one of"):
        Executor(Store(tmp_path / "store"), engine, 1, Notes()).finish(specs)
