"""SLURM jobs: their parameters, and how their ends are judged."""

import os
from pathlib import Path

import pytest
import torch

from icl_bench.errors import EngineError, SpecError
from icl_bench.harness.engines import Slurm, slurm
from icl_bench.harness.engines.base import make_engine
from icl_bench.harness.engines.slurm import SubmissionWatcher, end_jobs, have_ended
from icl_bench.harness.resolve import Request, expand_request
from icl_bench.harness.training.trainer import Machine
from icl_bench.runs.events import SilentReporter
from icl_bench.runs.spec import RunSpec
from icl_bench.runs.store import Store

MACHINE = Machine(torch.device("cpu"))


def runs(count: int) -> list[RunSpec]:
    return expand_request(Request("assoc-recall", ["linear"], seeds=range(count)))


@pytest.fixture
def sbatch(tmp_path, monkeypatch) -> Path:
    """The batch file that was submitted last."""
    pytest.importorskip("submitit")
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, line in {"sbatch": f"cp $1 {tmp_path}/batch; echo Submitted batch job 12", "srun": "true"}.items():
        (tools / name).write_text(f"#!/bin/sh\n{line}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    return tmp_path / "batch"


def test_jobs_are_submitted_as_one_array_with_the_parameters_asked_for(tmp_path, sbatch: Path) -> None:
    engine = make_engine("slurm:workers=2,partition=gpu,time=60,cpus_per_task=4,qos=long,mem_gb=8", MACHINE)
    assert len(engine.send([[run] for run in runs(3)], Store(tmp_path / "store"))) == 2
    batch = sbatch.read_text()
    for option in ("partition=gpu", "time=60", "cpus-per-task=4", "qos=long", "mem=8GB", "array=0-1"):
        assert f"#SBATCH --{option}" in batch


def test_a_parameter_that_submitit_does_not_know_is_refused(tmp_path, sbatch: Path) -> None:
    engine = make_engine("slurm:workers=2,speed=9", MACHINE)
    with pytest.raises(EngineError, match=r"further options of --engine slurm are parameters of submitit; .*'speed'"):
        engine.send([runs(1)], Store(tmp_path / "store"))


def test_jobs_ask_for_a_gpu_where_the_device_is_one() -> None:
    assert Slurm(workers=1).job_parameters(on_gpu=True)["gpus_per_node"] == 1
    assert Slurm(workers=1).job_parameters(on_gpu=False)["gpus_per_node"] == 0
    assert Slurm(workers=1, gpus_per_node=2).job_parameters(on_gpu=True)["gpus_per_node"] == 2


def test_a_machine_that_cannot_submit_jobs_is_refused(monkeypatch, tmp_path) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineError, match="--engine slurm needs sbatch on the path; found none; use a login node"):
        make_engine("slurm:workers=2", MACHINE)


class Job:
    """A job that has ended, or that is seen to have ended after it was looked at so many times."""

    def __init__(self, outcome, looks: float = 0) -> None:
        self.outcome, self.looks, self.cancelled = outcome, looks, False

    def done(self) -> bool:
        self.looks -= 1
        return self.looks < 0

    def cancel(self, check: bool) -> None:
        self.cancelled = True

    def exception(self):
        return self.outcome if isinstance(self.outcome, RuntimeError) else None

    def result(self):
        return self.outcome


def test_what_jobs_met_is_raised_and_idle_rounds_are_counted(tmp_path) -> None:
    watcher = SubmissionWatcher([runs(1)], Store(tmp_path), SilentReporter())
    watcher.check_round([])
    with pytest.raises(SpecError, match="change this"):
        watcher.check_round([Job(None), Job(SpecError("change this"))])
    for _ in range(2):
        watcher.check_round([Job(RuntimeError("the node\nvanished"))])
    with pytest.raises(EngineError, match="3 rounds of jobs ended without; vanished; see their logs"):
        watcher.check_round([Job(RuntimeError("the node\nvanished")), Job(None)])


def test_jobs_are_waited_for_and_then_cancelled(monkeypatch) -> None:
    monkeypatch.setattr(slurm, "STORE_POLL_SECONDS", 0.01)
    assert have_ended([], 0.0) and have_ended([Job(None, 3), Job(None)], 60.0)
    quick, endless = Job(None, 2), Job(None, float("inf"))
    assert not have_ended([quick, endless], 0.05)
    end_jobs([quick, endless], 0.0, 0.0)
    assert endless.cancelled and not quick.cancelled


@pytest.mark.parametrize(("device", "workers", "threads"), [("cpu", 3, 1), ("cuda", 1, 7)])
def test_a_job_has_a_worker_for_each_core_or_one_for_its_gpu(monkeypatch, tmp_path, device, workers, threads) -> None:
    made = []

    class Recorded:
        def __init__(self, pool, size, machine, limits) -> None:
            made.append((pool, size))

        def run_queue(self, queue, store, reporter) -> list:
            return []

        def close(self) -> None: ...

    monkeypatch.setattr(slurm.interruption, "listen", lambda signals: None)
    monkeypatch.setattr(slurm, "load_plugins", list)
    monkeypatch.setattr("icl_bench.harness.engines.slurm.usable_cores", lambda: 7)
    monkeypatch.setattr("icl_bench.harness.engines.local.ProcessPool", lambda machine, own, most: own)
    monkeypatch.setattr("icl_bench.harness.engines.supervisor.Supervisor", Recorded)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fleets.json").write_text("[]")
    engine = Slurm(workers=1, cpus_per_task=3, cluster="local").start(Machine(torch.device(device)))
    assert engine.run_job(tmp_path / "fleets.json", tmp_path, tmp_path, 0) is None and made == [(threads, workers)]
