"""Workers of GPUs that are begun before their command imports torch; here without a GPU."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from icl_bench.harness import early_workers
from icl_bench.harness.early_workers import BEGUN, begin_workers, end_others
from icl_bench.harness.engines.executor import Executor
from icl_bench.harness.engines.local import ProcessPool
from icl_bench.harness.engines.messages import Limits, Ready
from icl_bench.harness.engines.supervisor import Supervisor
from icl_bench.harness.resolve import Request, expand_request
from icl_bench.harness.training.trainer import Machine
from icl_bench.runs.events import SilentReporter
from icl_bench.runs.store import Store

MACHINE = Machine(torch.device("cpu"))
RUNS = expand_request(
    Request(
        "assoc-recall:length=16,pairs=[2|4],vocab=64",
        ["linear"],
        seeds=range(4),
        settings=("model.d_model=16", "train.steps=4", "train.batch=4", "evaluation.examples=4"),
    )
)


@pytest.fixture
def two_gpus(tmp_path, monkeypatch) -> Iterator[None]:
    """The driver shows two GPUs; whatever was begun has ended afterwards."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(early_workers, "GPU_FOLDERS", tmp_path / "gpus")
    for name in ("a", "b"):
        (tmp_path / "gpus" / name).mkdir(parents=True)
    yield
    end_others(())


def pool_of(gpus: list[str]) -> ProcessPool:
    pool = ProcessPool(MACHINE, 1, most=len(gpus), at_once=2)
    pool.gpus = gpus
    return pool


def test_a_process_begun_early_is_the_worker_of_its_gpu(two_gpus, tmp_path: Path) -> None:
    pool = pool_of(["0", "1"])
    begin_workers()
    begun = {gpu: early.process for gpu, early in BEGUN.items()}
    assert list(begun) == ["0", "1"]
    engine = Supervisor(pool, 4, MACHINE, Limits())
    try:
        records = Executor(Store(tmp_path / "store"), engine, 1, SilentReporter()).finish(RUNS)
        assert [record.result.status for record in records] == ["ok"] * 4 and not BEGUN
        assert {worker.gpu: worker.process for worker in pool.started} == begun
    finally:
        engine.close()


def test_a_process_ends_where_its_supervisor_is_gone(two_gpus, monkeypatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    begin_workers()
    early = BEGUN["0"]
    early.line.close()
    early.process.join(60.0)
    assert early.process.exitcode == 128 + signal.SIGTERM


def test_processes_of_other_gpus_end(two_gpus, monkeypatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-7")
    begin_workers()
    other = BEGUN["GPU-7"].process
    assert list(BEGUN) == ["2", "GPU-7"]
    end_others(["2"])
    assert list(BEGUN) == ["2"] and not other.is_alive()


@pytest.mark.parametrize(("named", "folders"), [("", "gpus"), (None, "none")])
def test_none_is_begun_without_a_gpu(two_gpus, tmp_path, monkeypatch, named, folders: str) -> None:
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    monkeypatch.setattr(early_workers, "GPU_FOLDERS", tmp_path / folders)
    begin_workers()
    assert not BEGUN


def test_a_process_that_has_ended_is_replaced(two_gpus, monkeypatch) -> None:
    pool = pool_of(["0"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    begin_workers()
    early = BEGUN["0"].process
    early.kill()
    early.join()
    worker = pool.start()
    assert worker.process is not early and isinstance(next(pool.listen([worker], 60.0))[1], Ready)
    worker.kill()
