"""Compilation before timing: shares that cover everything, seconds of first runs, and folders that are kept."""

import json
import multiprocessing
import os
import time

import torch

from icl_bench.kernels.measurement import compilation
from icl_bench.kernels.measurement.operators import timed_cases
from icl_bench.kernels.measurement.problem import Case
from icl_bench.kernels.measurement.scores import MeasuredPower

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PROBLEM = MeasuredPower(t=16, dtype=torch.float32, groups=2, key_heads=2, key=8, value=8, states=False)
CASES = [Case(title, "table", PROBLEM, ("quadratic",)) for title in ("first", "second")]


def test_shares_of_compilation_cover_everything_once():
    tasks = [(case, name) for case in timed_cases(CUDA) for name in case.contenders]
    shared = [task for i in range(7) for task in compilation._share(tasks, i, 7)]
    wanted = {x for x in tasks if x[1] in compilation.COMPILED or x[1].startswith("compiled ")}
    assert len(shared) == len(set(shared)) and set(shared) == wanted
    assert all(compilation._share(tasks, i, 7) for i in range(7))


def test_a_compiling_process_sends_the_seconds_of_each_task(monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    seconds = iter([5.0, 1.5, 1.0, 2.0])
    monkeypatch.setattr(compilation, "_seconds_of_passes", lambda *_: next(seconds))
    near, far = multiprocessing.Pipe()
    tasks = [(CASES[0], "quadratic"), (CASES[0], "auto"), (CASES[1], "auto")]
    compilation.compile_share(far, "ours", tasks, CPU, 0, 1)
    assert list(compilation._sent(near)) == [(1, 3.5), (2, 0.0)]


def test_packages_compile_for_all_sequences_with_few_tokens():
    """Their kernels may take the number of sequences as a constant; 12 processes must fit a device."""
    for case in timed_cases(CUDA, ("delta",)):
        few, all_sequences = compilation._compiled_sizes(case.problem, "fla", "fla")
        assert few == case.problem.few()
        assert all_sequences.n == case.problem.n and all_sequences.t == compilation.PEER_TOKENS
        assert compilation._compiled_sizes(case.problem, "auto", "ours") == [few]


def test_caches_of_compilers_are_new_and_come_back(monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", "mine")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    with compilation.compiler_caches(None) as folder:
        assert os.environ["TRITON_CACHE_DIR"] != "mine" and "TORCHINDUCTOR_CACHE_DIR" in os.environ
    assert os.environ["TRITON_CACHE_DIR"] == "mine" and "TORCHINDUCTOR_CACHE_DIR" not in os.environ
    assert not folder.exists()


def test_a_kept_cache_has_kernels_but_no_choices(tmp_path):
    kernel, choice = tmp_path / "TRITON_CACHE_DIR" / "k.cubin", tmp_path / "TRITON_CACHE_DIR" / "k.autotune.json"
    kernel.parent.mkdir()
    kernel.touch()
    choice.touch()
    with compilation.compiler_caches(tmp_path) as folder:
        assert os.environ["TRITON_CACHE_DIR"] == str(kernel.parent) and folder == tmp_path
        assert kernel.exists() and not choice.exists()


def send_a_second(pipe, subject, tasks, device, share, shares):
    pipe.send((0, 9.0))
    if tasks[0][0].title == "second":
        raise SystemExit(1)


def test_what_a_former_run_compiled_is_not_compiled_again(tmp_path, monkeypatch):
    monkeypatch.setattr(compilation, "compile_share", send_a_second)
    started = []
    start = compilation.start_process
    monkeypatch.setattr(compilation, "start_process", lambda *x: started.append(x) or start(*x))

    def seconds(case):
        started.clear()
        tasks = {"ours": [(case, "quadratic")]}
        return compilation.compile_tasks(tasks, CPU, time.monotonic() + 60, tmp_path)

    assert seconds(CASES[0]) == {"first: quadratic": 9.0} and started
    assert seconds(CASES[0]) == {"first: quadratic": 9.0} and not started
    assert seconds(CASES[1]) == {"first: quadratic": 9.0, "second: quadratic": 9.0} and started
    assert seconds(CASES[1]) and started  # its processes failed, so that it is not complete
    assert json.loads((tmp_path / compilation.COMPILED_FILE).read_text())["complete"] == ["first: quadratic"]
