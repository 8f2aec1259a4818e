"""Fleets that go on without their diverged members."""

import pytest
import torch

from icl_bench.harness.training.roster import Roster
from icl_bench.harness.training.trainer import Machine, Trainer
from tests.harness.training.small_runs import CPU, specs, trained, with_rate


@pytest.mark.parametrize("arch", ["power:p=2", "gated-conv+softmax"])
def test_diverged_members_are_dropped_once_they_are_half(arch: str) -> None:
    runs = [specs(arch, seeds=[seed])[0] for seed in range(4)]
    broken = [with_rate(run, 1e38) if member in (0, 2) else run for member, run in enumerate(runs)]
    (_, clean, metrics), (loop, hit, broken_metrics) = trained(runs), trained(broken)
    assert loop.roster.held == [1, 3] and len(loop.trainer.model.embedding.weight) == 2
    assert [member.diverged_at > 0 for member in hit.members] == [True, False, True, False]
    assert [(m, point) for m, point in metrics if m in (1, 3)] == [(m, p) for m, p in broken_metrics if m in (1, 3)]
    assert [hit.members[member] for member in (1, 3)] == [clean.members[member] for member in (1, 3)]
    assert [hit.members[member].cells for member in (0, 2)] == [(), ()]
    points = [point for member, point in broken_metrics if member == 0]
    assert points[0].accuracy == points[1].accuracy  # no longer updated, so that the last measured holds


def test_a_fleet_without_its_diverged_members_is_saved_and_continued_whole() -> None:
    runs = [with_rate(run, 1e38 if run.seed < 2 else 1e-3) for run in specs("softmax", seeds=range(3))]
    first, roster = Trainer(runs, Machine(CPU)), Roster(3)
    for _ in range(5):
        first.step()
    first = roster.narrow(first)
    assert roster.held == [2] and roster.widen(["measured"], None) == [None, None, "measured"]
    first.step()
    state = roster.state(first)
    assert state["died_at"].tolist() == roster.diverged_at(first) and len(state["alive"]) == 3
    again = Roster(3)
    second = again.restore(Trainer(runs, Machine(CPU)), 6, state)
    assert again.held == [2] and again.diverged_at(second) == roster.diverged_at(first)
    for trainer in (first, second):
        for _ in range(4):
            trainer.step()
    continued = again.state(second)
    for name, tensor in roster.state(first).items():
        assert torch.equal(tensor, continued[name]), name


def test_a_fleet_with_few_diverged_members_or_none_active_goes_on_whole() -> None:
    for rates in ((1e-3, 1e-3, 1e38), (1e38, 1e38, 1e38)):
        runs = [with_rate(run, rate) for run, rate in zip(specs("linear", seeds=range(3)), rates, strict=True)]
        trainer, roster = Trainer(runs, Machine(CPU)), Roster(3)
        for _ in range(4):
            trainer.step()
        assert roster.narrow(trainer) is trainer and roster.held == [0, 1, 2]
        assert [step > 0 for step in roster.diverged_at(trainer)] == [rate > 1 for rate in rates]
