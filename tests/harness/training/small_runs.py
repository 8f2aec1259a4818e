"""Small runs on the CPU, and their training from the first step to the test."""

from typing import NamedTuple

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


def trained(runs: list[RunSpec]) -> Trained:
    logged: list[tuple[int, MetricPoint]] = []
    log = lambda member, point: logged.append((member, point))  # noqa: E731
    loop = TrainingLoop(Trainer(runs, Machine(CPU)), lambda progress: None, log)
    return Trained(loop, loop.run(), logged)
