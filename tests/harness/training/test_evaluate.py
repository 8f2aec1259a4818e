"""Evaluation: controls, and divergences from exact distributions."""

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from icl_bench.architectures.interface import Scores
from icl_bench.harness.resolve import make_task, task_component
from icl_bench.harness.training.batches import ExampleStream
from icl_bench.harness.training.evaluate import evaluate, evaluate_controls
from icl_bench.tasks import Batch, Cell, DistributionTask
from icl_bench.tasks.assoc_recall import AssocRecall


class Reader:
    """A model that answers as the oracle of associative recall does, from the inputs alone."""

    evaluating = nullcontext

    def __init__(self, task: AssocRecall, cell: Cell) -> None:
        self.task, self.cell = task, cell

    def scores(self, inputs: Tensor, positions: Tensor, targets: Tensor) -> Scores:
        flat = self.task.oracle(inputs.flatten(0, 1), positions.flatten(0, 1), self.cell)
        hits = (flat.view(targets.shape) == targets).double()
        return Scores(torch.zeros_like(hits), hits)


@pytest.mark.parametrize("text", ["assoc-recall:length=64,pairs=16", "assoc-recall:variant=zoology,length=64,pairs=16"])
def test_a_model_that_recalls_passes_its_controls(text: str) -> None:
    task = make_task(task_component(text))
    assert isinstance(task, AssocRecall)
    stream = ExampleStream(task, task.eval_cells[0], "test", [0, 1, 0], torch.device("cpu"))
    found = evaluate_controls(Reader(task, stream.cell), stream, 64)  # type: ignore[arg-type]
    assert found["rebound"] == [1.0] * 3
    assert max(found["no keys"]) < 3 / 16  # without keys the oracle names the first value: right once in 16
    assert found.get("refilled", [1.0] * 3) == [1.0] * 3
    assert ("refilled" in found) == (task.variant == "default")


def test_rebinding_moves_every_answer() -> None:
    task = make_task(task_component("assoc-recall:vocab=2000"))
    cell = task.eval_cells[0]
    batch = ExampleStream(task, cell, "test", [0], torch.device("cpu")).batch(torch.arange(32))
    flat = Batch(*(part[0] for part in batch))
    changed = task.controls(flat, cell)
    moved = (changed["rebound"].targets != flat.targets).double().mean()
    assert moved > 0.99  # two pairs may have the same value
    assert torch.equal(changed["refilled"].targets, flat.targets)
    assert not torch.equal(changed["refilled"].inputs, flat.inputs)


class Forecaster:
    """A model of the exact distributions of a task, mixed with the uniform distribution over all tokens."""

    evaluating = nullcontext
    model = None

    def __init__(self, task: DistributionTask, cell: Cell, uniform: float) -> None:
        self.task, self.cell, self.uniform = task, cell, uniform

    def call(self, _model: None, inputs: Tensor, positions: Tensor) -> Tensor:
        flat = self.task.distribution(inputs.flatten(0, 1), positions.flatten(0, 1), self.cell)
        mixed = (1 - self.uniform) * flat + self.uniform / self.task.vocabulary
        return mixed.log().view(*positions.shape, -1)


@pytest.mark.parametrize("text", ["grammar:depth=2,length=20", "grammar:depth=2,length=20,grammar=fresh"])
def test_a_distribution_is_compared_with_the_exact_one(text: str) -> None:
    """The exact distribution diverges by 0; a mixture with the uniform one by the sum of p log (p / q)."""
    task = make_task(task_component(text))
    assert isinstance(task, DistributionTask)
    stream = ExampleStream(task, task.eval_cells[0], "test", [0, 1], torch.device("cpu"))
    batch = stream.first(8)
    exact = task.distribution(batch.inputs.flatten(0, 1), batch.positions.flatten(0, 1), stream.cell)
    for uniform in (0.0, 0.25):
        model = Forecaster(task, stream.cell, uniform)
        counts = evaluate(model, stream, [batch])  # type: ignore[arg-type]
        mixed = (1 - uniform) * exact + uniform / task.vocabulary
        terms = torch.where(exact > 0, exact * (exact / mixed).log(), 0.0).sum(dim=-1).view(2, -1).mean(dim=1)
        assert counts.divergence == pytest.approx(terms.tolist(), abs=1e-9)
        possible = (mixed * (exact > 0)).sum(dim=-1).view(2, -1).mean(dim=1)
        assert counts.possible_mass == pytest.approx(possible.tolist(), abs=1e-9)
        assert counts.accuracy == counts.exact_match == [1.0, 1.0]
