"""The estimate of a study's time adds up what it measures."""

import pytest

from icl_bench.harness import estimate
from icl_bench.harness.training.trainer import Machine
from tests.harness.training.small_runs import CPU, specs


def test_steps_and_examples_are_multiplied_out(monkeypatch):
    costs = {"refill": 12.0, "update": 3.0, "optimiser": 1.0, "evaluate": 64.0}
    order = iter(["refill", "update", "optimiser"] * 2 + ["evaluate"] * 2)
    monkeypatch.setattr(estimate, "measured_seconds", lambda work, device, captured: costs[next(order)])
    run = specs("softmax", extra=("train.batch=32",))[0]
    found = estimate.fleet_seconds([run], Machine(CPU))
    # 12 steps, six a cell, made six at once; a batch of 32 measured by 16. Two validations of 8 examples and a test of
    # 16, of two cells, at a second each.
    assert found == pytest.approx(12 * (2 * 12 / 6 + 1 + 2 * (3 - 1)) + (2 * 8 + 16) * 2, rel=0.05)


def test_a_kind_of_fleet_is_measured_once(monkeypatch):
    asked = []
    monkeypatch.setattr(estimate, "fleet_seconds", lambda fleet, machine: asked.append(len(fleet)) or len(fleet))
    runs = [specs(arch, seeds=[seed])[0] for arch in ("softmax", "linear") for seed in range(5)]
    assert estimate.seconds_for(runs, Machine(CPU), 2) == 10
    assert asked == [2, 1, 2, 1]


def test_a_measurement_is_of_real_steps():
    assert 0 < estimate.seconds_for(specs("softmax", seeds=(0, 1)), Machine(CPU), 2) < 60
