"""Commands on a CUDA device, in processes of their own: kernels compiled ahead, and workers beside one process."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from icl_bench.harness.training.ahead import LEAST_CORES
from icl_bench.isolation import usable_cores
from icl_bench.runs.store import Store

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
TASK = "assoc-recall:length=16,pairs=[2|4],vocab=64"
SMALL = ["train.steps=20", "train.batch=8", "model.d_model=16", "evaluation.examples=64"]
WATCHED = """
import os, sys
import triton

def note(*, src, metadata, metadata_group, times, cache_hit):
    if os.getpid() == process:
        with open("compilations", "a") as file:
            print(src.name, "found" if cache_hit else "compiled", file=file)

process = os.getpid()
triton.knobs.compilation.listener = note
from icl_bench.cli import main
main()
"""
"""The command line, which notes whether each kernel that it asks for lies in Triton's cache."""


def run(folder: Path, *arguments: str, program: tuple[str, ...], environment: Mapping[str, str] = {}) -> str:
    settings = [word for text in SMALL for word in ("--set", text)]
    command = ["run", TASK, *arguments, *settings, "--device", "cuda", "--store", "store"]
    ended = subprocess.run(
        [sys.executable, *program, *command], cwd=folder, env={**os.environ, **environment}, capture_output=True,
        text=True, timeout=240, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return ended.stderr


@pytest.mark.memory(8)
@pytest.mark.skipif(usable_cores() < LEAST_CORES, reason="kernels are compiled ahead on several cores")
def test_a_cold_run_finds_its_kernels_compiled(tmp_path) -> None:
    """Compilers are fed through a pipe while kernels are listed; the process that trains compiles one as it begins."""
    cold = {"TRITON_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": os.pathsep.join(sys.path)}
    told = run(tmp_path, "--arch", "power:p=2", program=("-c", WATCHED), environment=cold)
    assert "compiled ahead" not in told and "one by one" not in told, told
    lines = (tmp_path / "compilations").read_text().splitlines()
    compiled = [line.split()[0] for line in lines if line.endswith("compiled")]
    assert len(lines) > 10 and compiled == ["add_parts_kernel"], compiled


@pytest.mark.memory(8)
def test_workers_train_the_numbers_of_one_process(tmp_path) -> None:
    found = []
    for engine in ("inline", "local"):
        (tmp_path / engine).mkdir()
        archs = ("--arch", "power:p=2", "--arch", "rwkv-6", "--seeds", "0..2", "--engine", engine)
        run(tmp_path / engine, *archs, program=("-m", "icl_bench"))
        store = Store(tmp_path / engine / "store")
        results = {run_id: store.load(run_id).result for run_id in store.ids()}
        assert len(results) == 6 and {result.status for result in results.values()} == {"ok"}
        found.append({run_id: (result.cells, result.steps) for run_id, result in results.items()})
    assert found[0] == found[1]
