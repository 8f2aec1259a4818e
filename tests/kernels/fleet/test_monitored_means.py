"""Means that watch for losses that stay too high: both forms against float64, and the limit."""

import pytest
import torch

from icl_bench.errors import ArgumentError
from icl_bench.kernels.fleet.monitored_means import LossLimit, monitored_means
from tests.kernels.numerics import DEVICE

LIMIT = LossLimit(factor=10.0, margin=10.0, patience=5)
IMPLS = pytest.mark.parametrize("impl", ["torch", "triton"])


def empty_record(members):
    """Running sums and history before the first step."""
    history = torch.zeros(2, members, device=DEVICE)
    history[0] = -1.0
    return torch.zeros(2, members, device=DEVICE, dtype=torch.float64), history


@IMPLS
def test_means_are_counted(impl):
    generator = torch.Generator().manual_seed(0)
    losses, hits = torch.rand(2, 3, 5000, generator=generator).to(DEVICE)
    sums, history = empty_record(3)
    sums += 1
    found = monitored_means(losses, hits, sums, history, LIMIT, impl=impl)
    exact = torch.stack([losses, hits]).double().mean(2)
    # A sum of 5,000 numbers below 1 by blocks or pairs: well under a hundred roundings, each of half an eps.
    torch.testing.assert_close(found.double(), exact[0], rtol=50 * torch.finfo(torch.float32).eps, atol=0)
    torch.testing.assert_close(sums - 1, exact, rtol=50 * torch.finfo(torch.float32).eps, atol=0)


@IMPLS
def test_a_loss_that_stays_too_high_becomes_infinite(impl):
    sums, history = empty_record(3)
    found = []
    for step in range(LIMIT.patience + 3):
        # The limit is 10 x 2 + 10: the first stays below it, the second above it, the third comes back for one step.
        now = [29.0, 31.0, 29.0 if step == LIMIT.patience else 31.0] if step else [2.0, 2.0, 2.0]
        losses = torch.tensor(now, device=DEVICE)[:, None].repeat(1, 4)
        means = monitored_means(losses, torch.zeros_like(losses), sums, history, LIMIT, impl=impl)
        found.append(means.isinf().tolist())
    assert [step for step, ended in enumerate(found) if ended[1]] == [LIMIT.patience + i for i in range(3)]
    assert not any(ended[0] or ended[2] for ended in found)
    assert sums.isfinite().all()


def test_shapes_are_checked():
    sums, history = empty_record(2)
    with pytest.raises(ArgumentError, match="hits must be"):
        monitored_means(torch.zeros(2, 3), torch.zeros(2, 4), sums, history, LIMIT)
    with pytest.raises(ArgumentError, match="sums must be"):
        monitored_means(torch.zeros(2, 3), torch.zeros(2, 3), sums[:, :1], history, LIMIT)
