"""Tasks whose inputs and targets are vectors: training, scores, the recurrent form, what is recorded."""

import math
from contextlib import nullcontext

import pytest
import torch

from icl_bench.architectures.interface import Scores
from icl_bench.harness.training.batches import ExampleStream
from icl_bench.harness.training.evaluate import evaluate, evaluation_pieces
from icl_bench.harness.training.held_out import floors_by_member
from icl_bench.harness.training.loop import TrainingLoop
from icl_bench.harness.training.trainer import Machine, Trainer
from icl_bench.runs.spec import RunSpec
from icl_bench.tasks import LinearRegression, VectorRecall
from icl_bench.tasks.continuous import nearest_target
from tests.harness.training import small_runs
from tests.harness.training.small_runs import (
    CPU,
    assert_a_diverging_member_harms_no_other,
    assert_a_member_equals_its_run_alone,
)

REGRESSION = "linear-regression:dims=[2|3],points=6"
RECALL = "vector-recall:length=12,pairs=[2|4],dims=4"


def specs(task: str, arch: str = "power:p=2", seeds=(0,), lrs=(), precision="float32") -> list[RunSpec]:
    return small_runs.specs(arch, seeds, lrs, task=task, precision=precision)


class Answering:
    """A model whose answers are given."""

    evaluating = nullcontext

    def __init__(self, task, solve) -> None:
        self.task, self.solve = task, solve

    def scores(self, inputs, positions, targets) -> Scores:
        answers = self.solve(inputs.flatten(0, 1), positions.flatten(0, 1)).view(targets.shape)
        return Scores(*self.task.grade(answers.double(), targets.double()))


@pytest.mark.parametrize("task", [REGRESSION, RECALL])
@pytest.mark.parametrize("arch", ["power:p=2", "gated-conv+softmax"])
def test_a_member_of_four_equals_the_run_alone(task: str, arch: str) -> None:
    runs = [specs(task, arch, seeds=[seed], lrs=[1e-3 * (1 + seed)])[0] for seed in range(4)]
    assert_a_member_equals_its_run_alone(runs, 2)


def test_a_member_that_diverges_leaves_the_others_alone() -> None:
    runs = [specs(REGRESSION, seeds=[seed])[0] for seed in range(3)]
    assert_a_diverging_member_harms_no_other(runs)


@pytest.mark.parametrize("arch", ["power:p=2", "softmax:rope=true", "window:w=3"])
def test_step_equals_the_parallel_form(arch: str) -> None:
    model = Trainer(specs(RECALL, arch, seeds=(0, 1)), Machine(CPU)).model.double()
    inputs = torch.randn(2, 3, 10, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = model(inputs, torch.arange(10).expand(2, 3, -1))
    state = model.initial_state(3)
    for t in range(10):
        answers, state = model.step(inputs[:, :, t], state, t)
        # ten sums of at most ten terms a layer, in float64
        torch.testing.assert_close(answers, whole[:, :, t], rtol=1e-9, atol=1e-9)


def test_an_input_of_another_length_is_another_input() -> None:
    """The norm that follows the projection leaves the length of a vector in place, for the bias stands beside it."""
    model = Trainer(specs(REGRESSION), Machine(CPU)).model
    one = torch.zeros(1, 1, 2, 4)
    one[..., 0, 3], one[..., 1, 3] = 0.5, 2.0
    embedded = model.blocks[0].mixer_norm(model.embedding(one)).detach()
    assert float((embedded[..., 0, :] - embedded[..., 1, :]).abs().max()) > 0.1


@pytest.mark.parametrize("task", [LinearRegression(dims=(4,), noise=0.5), VectorRecall()])
def test_the_oracle_has_all_and_answering_0_has_nothing(task) -> None:
    cell = task.eval_cells[0]
    stream = ExampleStream(task, cell, "test", (0, 1), CPU)
    oracle = Answering(task, lambda inputs, positions: task.oracle(inputs, positions, cell).double())
    best = evaluate(oracle, stream, evaluation_pieces(stream, 64))
    assert best.accuracy == pytest.approx([1, 1]) and best.exact_match == [1, 1] and best.loss == best.oracle_error
    assert all(score.accuracy == pytest.approx(1) for groups in best.groups(task) for score in groups.values())
    zero = Answering(task, lambda inputs, positions: task.floors["zero"](inputs, positions, cell).double())
    none = evaluate(zero, stream, evaluation_pieces(stream, 64))
    chance = 0 if task.criterion == "explained" else 1 / cell.load
    assert max(none.accuracy) <= chance + 1e-9
    assert max(none.exact_match) < 0.1  # of a few examples with much noise, the oracle knows nothing either
    # 64 examples, each with weights of its own, whose squares vary by about their mean
    assert none.loss == pytest.approx([1, 1], abs=5 * math.sqrt(2 / 64))


def test_worse_than_answering_0_is_not_below_0() -> None:
    task = LinearRegression(dims=(4,))
    stream = ExampleStream(task, task.eval_cells[0], "test", (0,), CPU)
    loud = Answering(task, lambda inputs, positions: 9.0 + torch.zeros(*positions.shape, 1))
    outcome = evaluate(loud, stream, evaluation_pieces(stream, 16))
    assert outcome.accuracy == [0] and outcome.loss[0] > 40
    (found,) = floors_by_member(stream, 16)
    assert found.floor_solver == "correlation" and 0 < found.floor < 1


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_errors_are_recorded(precision: str) -> None:
    trainer = Trainer(specs(REGRESSION, precision=precision), Machine(CPU))
    scores = TrainingLoop(trainer, lambda progress: None, lambda member, point: None).run()
    for cell in scores.members[0].cells:
        assert cell.error == cell.loss > cell.oracle_error > 0 and 0 <= cell.accuracy < 1
    assert trainer.take_means(1) == ([0.0], [0.0])


def test_hits_are_judged_in_float32() -> None:
    trainer = Trainer(specs("vector-recall:length=192,pairs=64,dims=4", precision="bfloat16"), Machine(CPU))
    batch = trainer.queues[0].stream.batch(torch.arange(8))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        answers = trainer.model(batch.inputs, batch.positions)
        scores = trainer.model.scores(batch.inputs, batch.positions, batch.targets)
    assert torch.equal(scores.hits, nearest_target(answers.float(), batch.targets)) and scores.hits.sum() > 0


def test_tokens_have_no_error() -> None:
    trainer = Trainer(specs("assoc-recall:length=16,pairs=2,vocab=64"), Machine(CPU))
    scores = TrainingLoop(trainer, lambda progress: None, lambda member, point: None).run()
    assert [cell.error for cell in scores.members[0].cells] == [None]
