"""Small runs on the CPU, and their training from the first step to the test."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import pytest
import torch

from icl_bench.harness.resolve import Request, expand_request
from icl_bench.harness.training.loop import TrainingLoop
from icl_bench.harness.training.results import FleetScores
from icl_bench.harness.training.trainer import Machine, Trainer
from icl_bench.runs.record import MetricPoint
from icl_bench.runs.spec import RunSpec

CPU = torch.device("cpu")
SMALL = (
    "model.d_model=16",
    "train.steps=12",
    "train.batch=8",
    "evaluation.examples=16",
    "evaluation.validation=8",
    "evaluation.points=2",
)
TASK = "assoc-recall:length=16,pairs=[2|4],vocab=64"


def specs(arch: str, seeds=(0,), lrs=(), extra=(), task: str = TASK, precision="float32") -> list[RunSpec]:
    settings = (*SMALL, *extra)
    return expand_request(Request(task, [arch], lrs=lrs, seeds=seeds, precision=precision, settings=settings))


def with_rate(run: RunSpec, lr: float) -> RunSpec:
    return run.model_copy(update={"train": run.train.model_copy(update={"lr": lr})})


class Trained(NamedTuple):
    loop: TrainingLoop
    scores: FleetScores
    logged: list[tuple[int, MetricPoint]]


def trained(runs: list[RunSpec], keep: tuple[str, ...] = ()) -> Trained:
    logged: list[tuple[int, MetricPoint]] = []
    log = lambda member, point: logged.append((member, point))  # noqa: E731
    loop = TrainingLoop(Trainer(runs, Machine(CPU, keep=keep)), lambda progress: None, log)
    return Trained(loop, loop.run(), logged)


def assert_a_member_equals_its_run_alone(runs: Sequence[RunSpec], member: int, steps: int = 12) -> None:
    """A member of a fleet starts and reads as its run alone, bit for bit; its losses agree within rounding."""
    fleet, alone = Trainer(runs, Machine(CPU)), Trainer([runs[member]], Machine(CPU))
    own = slice(member, member + 1)
    for both, single in zip(fleet.model.parameters(), alone.model.parameters(), strict=True):
        assert torch.equal(both[own], single)
    index = torch.arange(8)
    for both, single in zip(fleet.queues[0].stream.batch(index), alone.queues[0].stream.batch(index), strict=True):
        assert torch.equal(both[own], single)
    for _ in range(steps):
        fleet.step()
        alone.step()
    assert fleet.take_means(steps)[0][member] == pytest.approx(alone.take_means(steps)[0][0], rel=1e-4)


def assert_a_diverging_member_harms_no_other(runs: Sequence[RunSpec]) -> None:
    """The second of three members diverges; the others end with the bits that they have without it."""
    clean, hit = Trainer(runs, Machine(CPU)), Trainer(runs, Machine(CPU))
    with torch.no_grad():
        hit.model.embedding.weight[1] = math.inf
    for _ in range(5):
        clean.step()
        hit.step()
    assert hit.diverged_at == [0, 1, 0]
    for broken, whole in zip(hit.model.parameters(), clean.model.parameters(), strict=True):
        assert torch.equal(broken[0], whole[0]) and torch.equal(broken[2], whole[2])
