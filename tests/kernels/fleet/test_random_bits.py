"""Random bits in Triton are those of torch's operators, bit for bit."""

import os

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    # Read when the kernels are defined: it must be set before anything imports them.
    os.environ["TRITON_INTERPRET"] = "1"

from icl_bench import random  # noqa: E402

KEYS = random.row_keys(torch.tensor([random.stream("test", name) for name in range(3)])[:, None], torch.arange(7))


def pair(monkeypatch, draw):
    """What is drawn on the CPU by torch, and by Triton."""
    plain = draw(KEYS)
    monkeypatch.setattr(random, "has_triton", lambda keys: True)
    return plain, draw(KEYS.to(DEVICE)).cpu()


@pytest.mark.parametrize("count", [1, 5, 100])
@pytest.mark.parametrize(
    "draw",
    [
        lambda keys, count: random.random_bits(keys, "x", count),
        lambda keys, count: random.integers(keys, "x", count, 1),
        lambda keys, count: random.integers(keys, "x", count, 8192),
        lambda keys, count: random.integers(keys, "x", count, 2**31 - 1),
        lambda keys, count: random.uniform(keys, "x", count),
    ],
    ids=["bits", "integers-1", "integers", "integers-most", "uniform"],
)
def test_draws_are_the_same(draw, count, monkeypatch):
    plain, fused = pair(monkeypatch, lambda keys: draw(keys, count))
    assert fused.dtype == plain.dtype and torch.equal(fused, plain)


@pytest.mark.parametrize(("count", "high"), [(64, 4095), (64, 4096), (512, 512), (40, 521), (9, 100_003)])
def test_ciphers_are_the_same(count, high, monkeypatch):
    # 521 and 100,003 are primes: their ciphers walk.
    plain, fused = pair(monkeypatch, lambda keys: random.distinct(keys, "x", count, high))
    assert torch.equal(fused, plain)


@pytest.mark.parametrize("shape", [(3, 1), (2, 70, 28), (5, 256), (9, 130)], ids=str)
@pytest.mark.parametrize("dtype", [torch.int64, torch.float64], ids=str)
def test_orders_are_the_same(shape, dtype, monkeypatch):
    values = torch.randint(-5, 40, shape, generator=torch.Generator().manual_seed(0)).to(dtype)  # with ties
    if dtype == torch.int64:
        values[..., 0] = -(2**63)
    plain = random.order(values)
    monkeypatch.setattr(random, "has_triton", lambda keys: True)
    assert torch.equal(random.order(values.to(DEVICE)).cpu(), plain)


def test_nothing_is_drawn_for_nobody(monkeypatch):
    monkeypatch.setattr(random, "has_triton", lambda keys: True)
    nobody = KEYS.to(DEVICE)[:, :0]
    assert random.integers(nobody, "x", 4, 10).shape == (3, 0, 4)
    assert random.distinct(nobody, "x", 4, 1000).shape == (3, 0, 4)
