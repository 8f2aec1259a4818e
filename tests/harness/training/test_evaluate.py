"""Evaluation: what controls tell."""

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from icl_bench.architectures.interface import Scores
from icl_bench.harness.resolve import make_task, task_component
from icl_bench.harness.training.batches import ExampleStream
from icl_bench.harness.training.evaluate import evaluate_controls
from icl_bench.tasks import Batch, Cell
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
