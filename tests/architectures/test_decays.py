"""Decay gates in half types, as a fleet on a GPU computes them, through the operators that read them."""

import pytest
import torch

from icl_bench.architectures import decays
from icl_bench.architectures.decays import DecayGate
from icl_bench.kernels.attention.api import attention
from icl_bench.kernels.power.api import power_attention


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_gates_of_half_types_are_float32_and_are_taken(fused, monkeypatch):
    monkeypatch.setattr(decays, "takes_triton", lambda impl, x: fused)
    gate = DecayGate(1, 8, 2).to(torch.bfloat16)
    for parameter in gate.parameters():
        torch.nn.init.normal_(parameter)
    log_g = gate(torch.randn(1, 3, 5, 8, dtype=torch.bfloat16))[0]
    assert log_g.dtype == torch.float32
    q, k, v = (torch.randn(3, 5, 2, 4, dtype=torch.bfloat16) for _ in range(3))
    assert power_attention(q, k, v, log_g, p=2)[0].isfinite().all()
    assert attention(q, k, v, log_g).isfinite().all()
