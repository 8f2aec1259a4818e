"""Engines as a user types them, with refusals, packages and devices; the executor that fills a store by an engine."""

import inspect
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from icl_bench.errors import EngineError, IclBenchError, SpecError
from icl_bench.harness.doctor import check_engine
from icl_bench.harness.engines import ENGINES, EngineConfig, Inline, Local, Ray, Slurm, executor
from icl_bench.harness.engines.base import Agenda, device_for, engine_config, make_engine, seconds_of
from icl_bench.harness.engines.executor import Ask, Chain, Executor
from icl_bench.harness.resolve import Request, expand_request
from icl_bench.harness.training import memory
from icl_bench.harness.training.trainer import Machine
from icl_bench.runs.events import Reporter, SilentReporter
from icl_bench.runs.record import RunResult
from icl_bench.runs.spec import RunSpec
from icl_bench.runs.store import Store
from icl_bench.schema import field_descriptions
from tests.runs.records import filled, finished, spec

MACHINE = Machine(torch.device("cpu"))


def fleet(arch: str, members: int) -> list[RunSpec]:
    return expand_request(Request("assoc-recall", [arch], seeds=range(members)))


def test_the_options_of_an_engine_are_its_fields() -> None:
    assert engine_config("inline") == Inline()
    assert engine_config("local:workers=4,timeout=600") == Local(workers=4, timeout=600.0)
    assert engine_config('ray:address="10.0.0.1:6379"') == Ray(address="10.0.0.1:6379")
    slurm = engine_config('slurm:workers=8,partition=gpu,time=60,qos=long,gres="gpu:2"')
    assert slurm == Slurm(workers=8, partition="gpu", time=60, qos="long", gres="gpu:2")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lokal", "no engine is named 'lokal'; did you mean 'local'"),
        ("inline:workers=2", "--engine inline has no option 'workers'; .* an engine that has it: local, ray, slurm"),
        ("inline:timeout=2", "--engine inline has no option 'timeout'; .* an engine that has it: local, ray, slurm"),
        ("local:address=auto", "--engine local has no option 'address'; .* an engine that has it: ray"),
        ("ray:workers=2,partition=gpu", "--engine ray has no option 'partition'; .* an engine that has it: slurm"),
        ("local:worker=2", "--engine local has no parameter 'worker'; did you mean 'workers'"),
        ("local:workers=0", "--engine local: workers: must be at least 1; got 0"),
        ("ray:timeout=0.01", "--engine ray: timeout: must be at least 0.1; got 0.01"),
        ("slurm", "--engine slurm: the number of jobs must be given; got none; write slurm:workers=8"),
        ("slurm:workers=8,cluster=lokal", "--engine slurm: cluster: must be 'slurm' or 'local'; got 'lokal'"),
        ("slurm:workers=8,setup=[a|b]", "--engine slurm: setup"),
        ("slurm:partition", "a parameter is key=value; got 'partition'"),
    ],
)
def test_options_that_do_not_suit_an_engine_are_refused(text: str, message: str) -> None:
    with pytest.raises(IclBenchError, match=message):
        make_engine(text, MACHINE)
    with pytest.raises(IclBenchError, match=message):
        device_for(text, "cpu")


@pytest.mark.parametrize(("name", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_missing_package_is_named_with_the_command_that_installs_it(name, package, monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda asked: None)
    with pytest.raises(EngineError, match=rf"{name} needs {package}, .* pip install 'icl-bench\[{name}\]'"):
        make_engine(f"{name}:workers=1", MACHINE)


def test_only_an_engine_that_runs_elsewhere_may_use_a_device_that_is_not_here(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_for("ray", "cuda") == device_for("slurm:workers=2", "cuda") == torch.device("cuda")
    assert device_for("ray", "auto") == device_for("local", "cpu") == torch.device("cpu")
    with pytest.raises(SpecError, match="--device cuda needs a CUDA device"):
        device_for("local", "cuda")


def test_the_registry_loads_nothing_heavy() -> None:
    code = "import sys, icl_bench.harness.engines; print({'torch', 'ray', 'submitit'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


@pytest.mark.parametrize("name", list(ENGINES))
def test_an_engine_has_the_file_of_its_name_and_says_what_each_option_is_for(name: str) -> None:
    assert inspect.getfile(ENGINES[name]).endswith(f"engines/{name}.py")
    assert ENGINES.summary(name).endswith(".")
    assert field_descriptions(ENGINES[name]).keys() == ENGINES[name].model_fields.keys()


def test_an_engine_is_one_registered_class(monkeypatch) -> None:
    monkeypatch.setattr(ENGINES, "_entries", dict(ENGINES._entries))

    @ENGINES.register("waiting")
    class Waiting(EngineConfig):
        """Wait before each fleet."""

        seconds: float = 1.0

        def start(self, machine: Machine):
            return (machine, self.seconds)

    assert make_engine("waiting:seconds=3", MACHINE) == (MACHINE, 3.0)
    assert check_engine("waiting") == ("engine waiting", True, "Wait before each fleet.")
    with pytest.raises(SpecError, match=r"--engine local has no option 'seconds'; .* an engine that has it: waiting"):
        make_engine("local:seconds=3", MACHINE)


class FakeEngine:
    """An engine that finishes runs without training, and remembers its fleets."""

    def __init__(self) -> None:
        self.fleets: list[list[RunSpec]] = []
        self.to_come: list[float] = []  # estimated seconds of what was neither on the agenda nor under way

    def submit(self, agenda: Agenda, store: Store, reporter: Reporter) -> Iterator[RunResult]:
        while agenda:
            self.to_come.append(agenda.seconds_later)
            self.fleets.append(list(agenda.take()))
            for run in self.fleets[-1]:
                finished(store, run)
                yield store.load(run.id).result

    def close(self) -> None:
        """Do nothing."""


class Notes(SilentReporter):
    """A reporter that keeps the planned numbers, and whether it was closed."""

    plan, is_closed = (0, 0), False

    def planned(self, specs: Sequence[RunSpec], missing: Sequence[RunSpec]) -> None:
        self.plan = (len(specs), len(missing))

    def closed(self) -> None:
        self.is_closed = True


def test_the_engine_gets_the_unfinished_runs_and_all_are_returned_in_order(tmp_path: Path) -> None:
    store, engine, notes = filled(tmp_path, 2), FakeEngine(), Notes()
    records = Executor(store, engine, 2, notes).finish([spec(seed) for seed in (3, 2, 1, 0)])
    assert [record.result.seed for record in records] == [3, 2, 1, 0]
    assert sorted(len(fleet) for fleet in engine.fleets) == [1, 2]
    assert {run.seed for fleet in engine.fleets for run in fleet} == {0, 1, 3}
    assert notes.plan == (4, 3) and notes.is_closed


def test_fleets_that_take_longer_come_first_within_a_rank() -> None:
    small, wide, many = fleet("window:w=4", 2), fleet("linear:d_key=128", 2), fleet("window:w=4", 8)
    agenda = Agenda([small, wide, many])
    agenda.add([[small[0]]], rank=-1)
    assert agenda.take_all() == [[small[0]], many, wide, small]


def test_a_fleet_for_which_others_wait_comes_first(tmp_path: Path) -> None:
    def chain(*asks: Ask) -> Chain:
        yield from (ask for ask in asks)

    engine, waiting = FakeEngine(), [spec(2), spec(3)]
    chains = [chain(Ask([spec(0)])), chain(Ask([spec(1)], later=waiting), Ask(waiting))]
    Executor(Store(tmp_path), engine, 1, Notes()).follow(chains)
    assert [run.seed for (run,) in engine.fleets] == [1, 0, 2, 3]


def test_an_engine_knows_what_is_to_come_and_which_fleets_stay_whole(tmp_path: Path) -> None:
    def chain(*asks: Ask) -> Chain:
        yield from (ask for ask in asks)

    engine, waiting = FakeEngine(), [spec(2), spec(3)]
    asks = Ask([spec(1)], later=waiting), Ask(waiting), Ask([spec(4)], whole=True)
    Executor(Store(tmp_path), engine, 2, Notes()).follow([chain(*asks)])
    assert engine.to_come == [seconds_of(waiting), 0.0, float("inf")]


def test_a_layer_from_outside_is_not_called_to_order_fleets() -> None:
    foreign = spec(0).model_copy(update={"arch": (spec(0).arch[0].model_copy(update={"name": "nowhere:Layer"}),)})
    assert len(Agenda([[foreign], [spec(1)]])) == 2


def test_the_reporter_is_closed_after_a_failure(tmp_path: Path, monkeypatch) -> None:
    notes = Notes()
    monkeypatch.setattr("tests.harness.engines.test_base.finished", lambda store, run: pytest.fail("broken"))
    with pytest.raises(pytest.fail.Exception):
        Executor(Store(tmp_path), FakeEngine(), 1, notes).finish([spec(0)])
    assert notes.is_closed


def test_a_chain_goes_on_as_soon_as_its_own_runs_are_there(tmp_path: Path) -> None:
    """The first chain asks twice; the second waits for a run of higher rank, which therefore comes last."""
    store, engine, order = filled(tmp_path), FakeEngine(), []

    def chain(name: str, *asks: Ask) -> Chain:
        for ask in asks:
            records = yield ask
            assert [record.result.id for record in records] == [run.id for run in ask.runs]
            order.append(name)

    first = chain("first", Ask([spec(0)]), Ask([spec(1), spec(0)]), Ask([spec(3)], rank=1))
    second = chain("second", Ask([spec(2)], rank=1), Ask([spec(1)]))
    Executor(store, engine, 1, Notes()).follow([first, second, chain("nothing")])
    assert [run.seed for (run,) in engine.fleets] == [0, 1, 2, 3]
    assert order == ["first", "first", "second", "second", "first"]


@pytest.mark.parametrize(("long", "order"), [(executor.LONG, [1, 0]), (0.0, [0, 1])])
def test_short_work_on_a_gpu_begins_with_what_takes_longest(tmp_path: Path, monkeypatch, long, order) -> None:
    monkeypatch.setattr(executor, "LONG", long)
    monkeypatch.setattr(memory, "check_memory", lambda specs, machine: None)
    engine, large = FakeEngine(), fleet("linear:d_key=128", 1)

    def chain(runs: Sequence[RunSpec], rank: int) -> Chain:
        yield Ask(runs, rank)

    machine = Machine(torch.device("cuda"))
    Executor(Store(tmp_path), engine, 1, Notes(), machine).follow([chain([spec(0)], 0), chain(large, 1)])
    assert engine.fleets == [([spec(0)], large)[i] for i in order]


def test_runs_that_two_chains_ask_for_are_trained_once(tmp_path: Path) -> None:
    store, engine, ended = filled(tmp_path), FakeEngine(), []

    def chain(*runs: RunSpec) -> Chain:
        ended.append([record.result.seed for record in (yield Ask(runs))])

    Executor(store, engine, 4, Notes()).follow([chain(spec(0), spec(1)), chain(spec(1), spec(2)), chain(spec(1))])
    assert sorted(run.seed for fleet in engine.fleets for run in fleet) == [0, 1, 2]
    assert sorted(ended) == [[0, 1], [1], [1, 2]]


def test_an_agenda_gives_low_ranks_first_and_then_large_fleets() -> None:
    agenda = Agenda([[spec(0)], [spec(1), spec(2)]])
    agenda.add([[spec(3)]], rank=-1)
    agenda.add([[spec(4)]])
    assert [[run.seed for run in fleet] for fleet in agenda.fleets()] == [[3], [1, 2], [0], [4]]
    assert len(agenda) == 4 and [run.seed for run in agenda.take()] == [3]
    assert len(agenda.take_all()) == 3 and not agenda


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (None, "--engine faulty failed: TypeError: Can't instantiate abstract class Faulty"),
        (lambda self, machine: 1 / 0, "--engine faulty failed: ZeroDivisionError: division by zero"),
    ],
)
def test_an_engine_of_a_plugin_that_does_not_start_is_one_line(monkeypatch, start, message: str) -> None:
    monkeypatch.setattr(ENGINES, "_entries", dict(ENGINES._entries))
    members = {"__doc__": "Start wrongly.", "__module__": "elsewhere"} | ({"start": start} if start else {})
    ENGINES.register("faulty")(type("Faulty", (EngineConfig,), members))
    with pytest.raises(IclBenchError, match=message):
        make_engine("faulty", MACHINE)
