"""Which fleets have their kernels compiled in processes, and what such fleets are known by."""

import importlib.util
import logging
import multiprocessing
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from icl_bench.errors import KernelsUnlistedError, OutsideCodeError
from icl_bench.harness import compiled
from icl_bench.harness.resolve import Request, expand_request
from icl_bench.harness.training import ahead
from icl_bench.harness.training.trainer import Machine
from icl_bench.isolation import isolating
from tests.kernels.absent_gpu import run_for_hopper

GPU = Machine(torch.device("cuda"))
WHOLE_RUN = """
import sys
from icl_bench.kernels import backends

backends.has_triton, backends.check_triton = lambda x: True, lambda x: None  # before a module takes them
from icl_bench.harness.training import ahead, validator
from icl_bench.harness.training.attempt import train_members
from icl_bench.harness.training.trainer import Machine, Trainer
from icl_bench.kernels.ahead import can_list, unlaunched
from tests.harness.training.small_runs import CPU, specs

class Writer:
    def log(self, point): ...
    def keep(self, name, data): ...

class Sender(list):
    def __enter__(self): return self
    def __exit__(self, *error): ...
    send = list.append

def test_cell(trainer, cell, members, model):
    tested.append(cell.label)
    return whole(trainer, cell, members, model)

tested, whole, Trainer.test_cell = [], Trainer.test_cell, test_cell
validator.usable_cores = lambda: 1  # only this thread lists
assert can_list()
runs = specs(sys.argv[1], extra=("evaluation.validation=16",))  # a batch, of 8, is no multiple of 16, evaluations are
machine, listed, met = Machine(CPU, keep=tuple(sys.argv[2:])), Sender(), []
ahead.send_kernels(runs, machine, listed)
with unlaunched(met.append):
    train_members(runs, machine, lambda progress: None, [Writer()], None, True)
assert tested == ["pairs=2", "pairs=4"], tested
known = set(map(str, listed))
print(json.dumps([len(known), [str(source) for source in met if str(source) not in known]]))
"""
"""A program that lists a fleet's kernels, and then those of its training, for a GPU that is not there."""


def runs(arch: str = "power:p=2", *settings: str, **options):
    return expand_request(Request("assoc-recall", [arch], settings=settings, **options))


class Compilers:
    """Processes that compile nothing."""

    def __init__(self, calls: list[str]) -> None:
        self.calls = calls

    def compile(self, sources):
        self.calls += ["compile" for source in sources if source == "kernel"]
        return []

    def close(self) -> None: ...


@pytest.fixture
def asked(monkeypatch, tmp_path) -> list[str]:
    """List the calls that would start processes, on a machine with an idle GPU and a cold cache."""
    calls: list[str] = []

    def listed(action, function, specs, machine, connection):
        calls.append("list")
        connection.send("kernel")

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(ahead, "usable_cores", lambda: 8)
    monkeypatch.setattr(ahead, "is_installed", lambda: True)
    monkeypatch.setattr(ahead, "can_list", lambda: True)
    monkeypatch.setattr(ahead, "isolated", listed)
    monkeypatch.setattr(ahead, "load_kernels", lambda: None)
    monkeypatch.setattr(ahead, "Compilers", lambda cores, context: Compilers(calls))
    return calls


def test_a_kind_of_fleet_is_compiled_ahead_until_one_was_trained(asked) -> None:
    with isolating():
        ahead.compile_kernels(runs(), GPU)
        assert asked == ["list", "compile"]
        ahead.remember_kernels(runs(), GPU)
        ahead.compile_kernels(runs(seeds=(3,), lrs=(0.5,)), GPU)  # of the same kind
        assert asked == ["list", "compile"]
        ahead.compile_kernels(runs("linear"), GPU)
    assert len(asked) == 4


def test_programs_processors_and_layers_from_outside_compile_as_they_go(asked, monkeypatch) -> None:
    ahead.compile_kernels(runs(), GPU)
    with isolating():
        ahead.compile_kernels(runs(), Machine(torch.device("cpu")))
        monkeypatch.setattr(ahead, "calls_outside_code", lambda spec: True)
        ahead.compile_kernels(runs(), GPU)
    assert not asked


def test_a_list_that_fails_is_told_and_leaves_the_fleet_alone(asked, monkeypatch, caplog) -> None:
    def fail(*arguments):
        raise OutsideCodeError("kernels are compiled one by one: ended by SIGKILL; mend it")

    monkeypatch.setattr(ahead, "isolated", fail)
    with isolating(), caplog.at_level(logging.WARNING, "icl_bench"):
        ahead.compile_kernels(runs(), GPU)
    assert "one by one" in caplog.text and not asked


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (torch.OutOfMemoryError("all is\nused"), KernelsUnlistedError),
        (RuntimeError("CUDA error: out of memory"), KernelsUnlistedError),
        (MemoryError(), KernelsUnlistedError),
        (RuntimeError("CUDA error: an illegal memory access"), RuntimeError),
    ],
)
def test_a_list_for_which_memory_is_lacking_is_an_error_of_one_line(monkeypatch, error, raised) -> None:
    def fail(specs, machine):
        raise error

    monkeypatch.setattr(ahead, "meet_kernels", fail)
    ours, theirs = multiprocessing.Pipe(duplex=False)
    with ours, pytest.raises(raised) as found:
        ahead.send_kernels(runs(), GPU, theirs)
    assert type(found.value) is raised and len(str(found.value).splitlines()) == 1 and theirs.closed


def test_a_fault_of_the_list_is_raised(asked, monkeypatch) -> None:
    def fail(*arguments):
        raise ZeroDivisionError

    monkeypatch.setattr(ahead, "isolated", fail)
    with isolating(), pytest.raises(ZeroDivisionError):
        ahead.compile_kernels(runs(), GPU)


def fail_after_a_kernel(specs, machine, connection) -> None:
    connection.send("kernel")
    os._exit(3)


def test_kernels_arrive_from_a_process_until_it_ends(monkeypatch) -> None:
    monkeypatch.setattr(ahead, "send_kernels", fail_after_a_kernel)
    ours, theirs = multiprocessing.Pipe(duplex=False)
    with isolating(), ThreadPoolExecutor(1) as threads:
        listing = threads.submit(ahead.list_kernels, runs(), GPU, theirs)
        assert list(ahead.received(ours)) == ["kernel"]
        with pytest.raises(OutsideCodeError, match="ended with exit status 3"):
            listing.result()


def test_fleets_differ_by_what_kernels_depend_on(asked) -> None:
    known = ahead.known_fleet(runs(), GPU)
    same = [runs("power:p=2", "train.steps=7"), runs(lrs=(0.1,)), runs(seeds=(5,))]
    others = [runs(seeds=(0, 1)), runs("linear"), runs(precision="bfloat16"), runs("power:p=2", "train.batch=8")]
    assert all(ahead.known_fleet(specs, GPU) == known for specs in same)
    assert len({ahead.known_fleet(specs, GPU) for specs in (*others, runs())}) == 5


def test_a_machine_is_cold_until_a_fleet_was_trained(monkeypatch, tmp_path, asked) -> None:
    monkeypatch.setattr(compiled, "GPU_DRIVER", tmp_path)
    assert compiled.is_cold()
    ahead.remember_kernels(runs(), GPU)
    assert not compiled.is_cold()
    monkeypatch.setattr(compiled, "GPU_DRIVER", tmp_path / "none")
    assert not compiled.is_cold()


def test_a_cache_that_cannot_be_written_ends_no_run(monkeypatch, tmp_path, asked, caplog) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING, "icl_bench"):
        ahead.remember_kernels(runs(), GPU)
    assert "cannot be noted" in caplog.text


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
@pytest.mark.parametrize("words", [("power:p=2",), ("gated-delta-net", "probes")])
def test_the_list_has_every_kernel_that_a_whole_run_would_launch(words: tuple[str, ...], tmp_path) -> None:
    listed, missed = run_for_hopper(WHOLE_RUN, tmp_path, *words)
    assert listed > 30 and missed == []
