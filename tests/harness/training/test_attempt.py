"""Kinds of failures, and layers from outside the package that break their contract."""

import json

import pytest
import torch

from icl_bench.harness.training.attempt import failure_kind

SOURCE = """
from torch import nn

class Causal(nn.Linear):
    def __init__(self, d_model):
        super().__init__(d_model, d_model)

class Future(Causal):
    def forward(self, x):
        return super().forward(x.roll(-1, 1))

class Wide(Causal):
    def forward(self, x):
        return super().forward(x).repeat(1, 1, 2)
"""
TINY = [
    *("--set", "train.steps=4", "--set", "train.batch=2", "--set", "evaluation.examples=2"),
    *("--set", "evaluation.validation=2", "--set", "evaluation.points=2", "--set", "model.d_model=8"),
]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_layer_that_breaks_its_contract_is_the_result_of_its_own_runs(tmp_path, monkeypatch, command, precision):
    (tmp_path / "outside_layers.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    archs = ["outside_layers:Future", "linear+outside_layers:Future", "outside_layers:Wide", "outside_layers:Causal"]
    given = [part for arch in archs for part in ("--arch", arch)]
    outcome = command("run", "copy", *given, *TINY, "--precision", precision, "--device", "cpu", "--json")
    runs = {run["arch"]: run for run in json.loads(outcome.out)["runs"]}
    assert outcome.status == 3
    assert [runs[arch]["status"] for arch in archs] == ["error"] * 3 + ["ok"]
    for arch in archs[:2]:
        assert runs[arch]["steps"] == 0
        assert "outside_layers:Future: an output depends on no later token; the output at pos" in runs[arch]["detail"]
        assert runs[arch]["detail"].endswith("with the help of `icl-bench check-arch outside_layers:Future`")
    assert "return one tensor of the shape of the input" in runs[archs[2]]["detail"]
    assert "make the layer causal, with the help of" in outcome.err and "Traceback" not in outcome.err


def test_memory_and_faults_are_told_from_other_errors():
    lacking = ["can't allocate memory: 4 bytes", "Triton Error [CUDA]: out of memory"]
    lacking += ["CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"]
    errors = [torch.OutOfMemoryError("x"), *map(RuntimeError, lacking)]
    assert {failure_kind(error) for error in errors} == {"memory"}
    assert failure_kind(RuntimeError("Triton Error [CUDA]: misaligned address")) == "fault"
    assert failure_kind(RuntimeError("sizes do not match")) is None and failure_kind(ValueError("CUDA error")) is None
    try:
        try:
            raise torch.OutOfMemoryError("first")
        finally:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
    except RuntimeError as error:
        assert failure_kind(error) == "memory"
