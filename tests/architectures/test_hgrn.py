"""HGRN equals its published recurrence, in the first layer and with a lower bound in later ones."""

import pytest
import torch
from torch.nn import functional

from tests.architectures.test_contract import inputs, mixer, varied
from tests.architectures.test_recurrences import rms


@pytest.mark.parametrize("index", [0, 1])
def test_the_mixer_is_its_published_recurrence(index: int) -> None:
    made, x = varied(mixer("hgrn:d_inner=7", index=index)), inputs(length=6)
    got = made(x)
    for m in range(2):
        p = {name: parameter[m].detach() for name, parameter in made.named_parameters()}
        low = torch.sigmoid(p["bound.weight"]) if index else 0.0
        h, rows = torch.zeros(7, dtype=torch.float64), []
        for token in x[m, 1]:
            f = low + (1 - low) * torch.sigmoid(token @ p["gate.weight"])
            h = f * h + (1 - f) * functional.silu(token @ p["candidate.weight"])
            y = rms(h) * p["norm.weight"] * torch.sigmoid(token @ p["output_gate.weight"])
            rows.append(y @ p["output.weight"])
        torch.testing.assert_close(got[m, 1], torch.stack(rows), rtol=1e-9, atol=1e-9)
