"""Evaluation: how floors are chosen and measured, and that members of one data seed share them."""

import torch
from torch import Tensor

from icl_bench.harness.data import Feed, Split
from icl_bench.harness.evaluate import best_floors
from icl_bench.harness.resolve import make_task, task_component
from icl_bench.harness.spec import EvalSpec
from icl_bench.tasks import Cell
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


def feeds(seeds: list[int]) -> tuple[Feed, Feed]:
    task = Guesses(length=16, pairs=(2,), vocab=64)
    made = {split: feed(task, split, seeds) for split in ("val", "test")}
    return made["val"], made["test"]


def feed(task: AssocRecall, split: Split, seeds: list[int]) -> Feed:
    plain = make_task(task_component("assoc-recall:length=16,pairs=2,vocab=64"))
    found = Feed(plain, plain.eval_cells[0], split, seeds, torch.device("cpu"))
    found.task = task
    return found


def test_a_floor_is_chosen_on_validation_and_measured_on_test() -> None:
    (found,) = best_floors(*feeds([0]), SPEC)
    assert found == ("lucky", 0.5)  # right on all 100 of validation, on 100 of 200 of the test


def test_members_of_one_data_seed_share_their_floor() -> None:
    task = make_task(task_component("assoc-recall:length=64,pairs=8"))
    splits: tuple[Split, Split] = ("val", "test")
    val, test = (Feed(task, task.eval_cells[0], split, [3, 4, 3], torch.device("cpu")) for split in splits)
    first, other, again = best_floors(val, test, SPEC)
    assert first == again != other
    alone = [Feed(task, task.eval_cells[0], split, [4], torch.device("cpu")) for split in splits]
    assert best_floors(*alone, SPEC) == [other]
