"""Arithmetic of the forward and backward pass; parameters, optimiser and scores stay in float32."""

from contextlib import AbstractContextManager, nullcontext

import torch

from icl_bench.harness.spec import Precision


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Run matrix products in this precision."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False)
