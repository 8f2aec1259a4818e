"""The choice between this process and workers, and the number of threads of a process."""

import os

import pytest
import torch

from icl_bench import isolation
from icl_bench.harness.engines import auto
from icl_bench.harness.engines.auto import AutoEngine
from icl_bench.harness.engines.base import Agenda
from icl_bench.harness.engines.inline import InlineEngine
from icl_bench.harness.environment import one_thread
from icl_bench.harness.resolve import Request, expand_request
from icl_bench.harness.training.fleet import pack
from icl_bench.harness.training.trainer import Machine
from icl_bench.runs.events import SilentReporter
from icl_bench.runs.store import Store
from tests.harness.training.small_runs import CPU, specs

LONG = pack(expand_request(Request("assoc-recall", ["linear"], seeds=range(4), preset="quick")), 1)


@pytest.fixture
def idle(monkeypatch) -> None:
    """Four cores, and nothing that the user says of threads."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(auto, "usable_cores", lambda: 4)


@pytest.fixture
def engine() -> AutoEngine:
    return AutoEngine(Machine(CPU))


def test_workers_are_worth_it_for_several_long_fleets_on_several_cores(idle, engine, monkeypatch) -> None:
    assert engine.are_worth_workers(Agenda(LONG))
    assert not engine.are_worth_workers(Agenda(LONG[:1]))
    assert not engine.are_worth_workers(Agenda(pack(specs("linear", seeds=range(4)), 1)))
    assert not AutoEngine(Machine(torch.device("cuda"))).are_worth_workers(Agenda(LONG))
    local = [[spec.model_copy(update={"arch": (spec.arch[0].model_copy(update={"name": "__main__:Own"}),)})]
             for (spec,) in LONG]  # fmt: skip
    assert not engine.are_worth_workers(Agenda(local))
    monkeypatch.setattr(auto, "usable_cores", lambda: 1)
    assert not engine.are_worth_workers(Agenda(LONG))


def test_threads_that_the_user_sets_keep_everything_in_this_process(idle, engine, monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert not engine.are_worth_workers(Agenda(LONG))


def test_workers_once_started_take_what_follows_and_end_with_the_engine(idle, engine, monkeypatch, tmp_path) -> None:
    class Workers(InlineEngine):
        closed = False

        def close(self) -> None:
            Workers.closed = True

    monkeypatch.setattr(auto.Local, "start", lambda self, machine: Workers(machine))
    monkeypatch.setattr(AutoEngine, "are_worth_workers", lambda self, fleets: len(fleets) > 1)
    fleets = pack(specs("linear", seeds=range(3)), 1)
    for part in (fleets[:2], fleets[2:]):
        assert len(list(engine.submit(Agenda(part), Store(tmp_path), SilentReporter()))) == len(part)
        assert isinstance(engine.local, Workers)
    engine.close()
    assert Workers.closed and engine.local is None


def test_a_run_on_a_cpu_takes_one_thread_unless_the_user_sets_another_number(idle, tmp_path, monkeypatch) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        runs, records = specs("linear", seeds=(0, 1)), []
        for run in runs:
            store = Store(tmp_path)
            list(InlineEngine(Machine(CPU)).submit(Agenda([[run]]), store, SilentReporter()))
            records.append(store.load(run.id))
            assert torch.get_num_threads() == 2
            monkeypatch.setenv("OMP_NUM_THREADS", "2")
        assert [record.manifest.threads for record in records] == [1, 2]
        monkeypatch.delenv("OMP_NUM_THREADS")
        with one_thread(torch.device("cuda")):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("text", "cores"), [("max 100000\n", 8), ("200000 100000\n", 2), ("50000 100000\n", 1)])
def test_the_quota_of_a_container_limits_the_cores(text: str, cores: int, tmp_path, monkeypatch) -> None:
    (tmp_path / "cpu.max").write_text(text)
    monkeypatch.setattr(isolation, "CPU_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(8), raising=False)
    monkeypatch.setattr(isolation.sys, "platform", "linux")
    assert isolation.usable_cores() == cores
