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
from icl_bench.harness.engines import ENGINES, EngineConfig, Inline, Local, Ray, Slurm
from icl_bench.harness.engines.base import Executor, device_for, engine_config, make_engine
from icl_bench.harness.training.trainer import Machine
from icl_bench.runs.events import Reporter, SilentReporter
from icl_bench.runs.record import RunResult
from icl_bench.runs.spec import RunSpec
from icl_bench.runs.store import Store
from tests.runs.records import filled, finished, spec

MACHINE = Machine(torch.device("cpu"))


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
    assert all(field.description for field in ENGINES[name].model_fields.values())


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

    def submit(self, fleets: Sequence[Sequence[RunSpec]], store: Store, reporter: Reporter) -> Iterator[RunResult]:
        self.fleets += [list(fleet) for fleet in fleets]
        for run in [run for fleet in fleets for run in fleet]:
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


def test_the_reporter_is_closed_after_a_failure(tmp_path: Path, monkeypatch) -> None:
    notes = Notes()
    monkeypatch.setattr("tests.harness.engines.test_base.finished", lambda store, run: pytest.fail("broken"))
    with pytest.raises(pytest.fail.Exception):
        Executor(Store(tmp_path), FakeEngine(), 1, notes).finish([spec(0)])
    assert notes.is_closed
