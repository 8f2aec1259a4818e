"""The selective scan by an associative scan: outputs and the gradients that are written by hand."""

import torch

from icl_bench.kernels.measurement import associative
from icl_bench.kernels.measurement.check import form_errors
from icl_bench.kernels.measurement.peers import contender_run
from icl_bench.kernels.measurement.scan import MeasuredSelective


def scanned_in_a_loop(decay, added):
    """The scan of PyTorch needs a GPU."""
    h, states = torch.zeros_like(added[:, 0]), []
    for t in range(added.shape[1]):
        h = decay[:, t] * h + added[:, t]
        states.append(h)
    return torch.stack(states, dim=1)


def test_outputs_and_gradients_are_exact(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda body, dynamic: body)
    monkeypatch.setattr(associative, "scanned", scanned_in_a_loop)
    problem = MeasuredSelective(n=3, t=20, channels=6, states=4, dtype=torch.float32)
    run = contender_run(problem, "compiled associative", torch.device("cpu"))
    index = torch.arange(3)
    errors = form_errors(problem, "", torch.device("cpu"), lambda problem, name, inputs: {"y": run(inputs)}, index)
    assert {error.name for error in errors} == {"y", *(f"d{name}" for name in associative.NAMES)}
    assert all(error.ok for error in errors), errors
