"""Muon's update against a plain form for one matrix, and the singular values that it leaves."""

import pytest
import torch

from icl_bench.harness.training.muon import muon_step, orthogonalise


def plain_update(weights, gradients, lr: float, decay: float):
    """Apply Muon to one matrix in float64, step by step, transposed where it is tall; return the last weights."""
    momentum = torch.zeros_like(weights)
    for gradient in gradients:
        momentum = 0.95 * momentum + 0.05 * gradient
        x = 0.05 * gradient + 0.95 * momentum
        tall = x.shape[0] > x.shape[1]
        x = (x.T if tall else x) / (x.square().sum().sqrt() + 1e-7)
        for _ in range(5):
            a = x @ x.T
            x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
        x = x.T if tall else x
        weights = weights - lr * (0.2 * max(weights.shape) ** 0.5 * x + decay * weights)
    return weights


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6)])
def test_each_member_follows_the_plain_form(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(3, *shape, generator=generator)
    gradients = torch.randn(4, 3, *shape, generator=generator) * torch.tensor([1e-4, 1.0, 30.0])[:, None, None]
    rates, decay = torch.tensor([1e-2, 1e-1, 0.0]), torch.tensor([0.1, 0.0, 0.1])
    parameter, mean = weights.clone(), torch.zeros_like(weights)
    for gradient in gradients:
        muon_step(parameter, gradient, mean, rates, decay, torch.float32)
    for m in range(3):
        own = plain_update(weights[m].double(), gradients[:, m].double(), float(rates[m]), float(decay[m]))
        # float32 products of at most nine terms; the iteration multiplies an error by at most 3.4445 each time
        torch.testing.assert_close(parameter[m].double(), own, rtol=1e-4, atol=1e-4)
    assert torch.equal(parameter[2], weights[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_singular_values_come_near_one(dtype: torch.dtype) -> None:
    matrices = (
        torch.randn(2, 16, 40, generator=torch.Generator().manual_seed(1)) * torch.tensor([1e-3, 50.0])[:, None, None]
    )
    values = torch.linalg.svdvals(orthogonalise(matrices, dtype))
    assert float(values.min()) > 0.6 and float(values.max()) < 1.3
