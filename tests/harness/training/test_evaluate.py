"""Evaluation: how floors are chosen and measured, and what controls tell."""

import pytest
import torch
from torch import Tensor

from icl_bench.architectures.interface import Scores
from icl_bench.harness.resolve import make_task, task_component
from icl_bench.harness.training.batches import ExampleStream, Split
from icl_bench.harness.training.evaluate import best_floors, evaluate_controls
from icl_bench.runs.spec import EvalSpec
from icl_bench.tasks import Batch, Cell
from icl_bench.tasks.assoc_recall import AssocRecall

SPEC = EvalSpec(examples=200, validation=100)


class Guesses(AssocRecall):
    """Associative recall with a solver right on the first 100 examples, and one right on the first 60."""

    @property
    def floors(self):
        return {"lucky": lambda *given: self.right_on(100, *given), "even": lambda *given: self.right_on(60, *given)}

    def right_on(self, size: int, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Right answers where there are at most as many examples, else in that part of them."""
        answers = self.oracle(inputs, positions, cell).clone()
        answers[size:] = 0
        return answers


def streams(seeds: list[int]) -> tuple[ExampleStream, ExampleStream]:
    task = Guesses(length=16, pairs=(2,), vocab=64)
    made = {split: stream_of(task, split, seeds) for split in ("val", "test")}
    return made["val"], made["test"]


def stream_of(task: AssocRecall, split: Split, seeds: list[int]) -> ExampleStream:
    plain = make_task(task_component("assoc-recall:length=16,pairs=2,vocab=64"))
    found = ExampleStream(plain, plain.eval_cells[0], split, seeds, torch.device("cpu"))
    found.task = task
    return found


def test_a_floor_is_chosen_on_validation_and_measured_on_test() -> None:
    (found,) = best_floors(*streams([0]), SPEC)
    assert found == ("lucky", 0.5)  # right on all 100 of validation, on 100 of 200 of the test


def test_members_of_one_data_seed_share_their_floor() -> None:
    task = make_task(task_component("assoc-recall:length=64,pairs=8"))
    splits: tuple[Split, Split] = ("val", "test")
    val, test = (ExampleStream(task, task.eval_cells[0], split, [3, 4, 3], torch.device("cpu")) for split in splits)
    first, other, again = best_floors(val, test, SPEC)
    assert first == again != other
    alone = [ExampleStream(task, task.eval_cells[0], split, [4], torch.device("cpu")) for split in splits]
    assert best_floors(*alone, SPEC) == [other]


class Reader:
    """A model that answers as the oracle of associative recall does, from the inputs alone."""

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
