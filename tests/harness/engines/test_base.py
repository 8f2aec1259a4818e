"""Engines as a user types them: their options, refusals, packages and devices."""

import inspect
import subprocess
import sys

import pytest
import torch

from icl_bench.errors import EngineError, IclBenchError, SpecError
from icl_bench.harness.doctor import check_engine
from icl_bench.harness.engines import ENGINES, EngineConfig, Inline, Local, Ray, Slurm
from icl_bench.harness.engines.base import device_for, engine_config, make_engine
from icl_bench.harness.training.trainer import Machine

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
        ("local:workers=0", "--engine local: workers: input should be greater than or equal to 1; got 0"),
        ("ray:timeout=0.01", "--engine ray: timeout: input should be greater than or equal to 0.1; got 0.01"),
        ("slurm", "--engine slurm: the number of jobs must be given; got none; write slurm:workers=8"),
        ("slurm:workers=8,cluster=lokal", "--engine slurm: cluster: input should be 'slurm' or 'local'; got 'lokal'"),
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
