"""One result for each kind of ending."""

import math

import pytest

from icl_bench.harness.training.results import failed_result, member_result
from tests.harness.training.small_runs import TASK, specs, trained, with_rate


def test_a_member_ends_well_or_diverged() -> None:
    runs = specs("power:p=2", seeds=(0, 1, 2))
    runs[1] = with_rate(runs[1], 1e38)
    scores = trained(runs).scores
    first, second, _ = (member_result(run, scores, member, "f" * 64) for member, run in enumerate(runs))
    assert (first.status, first.steps, first.detail, first.first_batch) == ("ok", 12, None, "f" * 64)
    assert first.cells == scores.members[0].cells and first.params == second.params > 0
    assert second.status == "diverged" and second.cells == () and second.steps == scores.members[1].diverged_at > 0
    assert second.detail == (f"diverged at step {second.steps}: loss or gradient not finite")


def test_a_text_keeps_the_loss_of_each_test_example() -> None:
    runs = specs("softmax", (0, 1), task="text:corpus=example,length=8,extrapolate=[16]", extra=("train.steps=2",))
    for member in trained(runs).scores.members:
        for cell in member.cells:
            assert cell.example_losses and len(cell.example_losses) == runs[0].evaluation.examples
            assert math.fsum(cell.example_losses) / len(cell.example_losses) == pytest.approx(cell.loss, abs=1e-6)
    assert trained(specs("power:p=2")).scores.members[0].cells[0].example_losses is None


def test_a_failed_run_knows_its_state_and_work_all_the_same() -> None:
    (run,) = specs("power:p=2")
    failed = failed_result(run, "oom", "no room", 1.23456)
    assert (failed.status, failed.detail, failed.seconds, failed.params) == ("oom", "no room", 1.235, 0)
    assert failed.state is not None and failed.state.elements > 0 and failed.work.state > 0


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "task", [TASK, "vector-recall:length=20,pairs=[2|4],dims=5", "linear-regression:dims=3,points=8"]
)
def test_a_loss_that_is_not_finite_in_the_test_alone_is_a_divergence(task: str, precision: str) -> None:
    """The only update explodes, so that training has met finite losses alone."""
    runs = specs(
        "linear",
        (0, 1, 2),
        task=task,
        precision=precision,
        extra=("train.steps=1", "train.warmup=0", "train.clip=none"),
    )
    runs[1] = with_rate(runs[1], 1e12)
    outcome = trained(runs)
    results = [member_result(run, outcome.scores, member, "f" * 64) for member, run in enumerate(runs)]
    assert [one.status for one in results] == ["ok", "diverged", "ok"]
    assert results[1].cells == () and results[1].steps == 1 and results[0].cells and results[2].cells
    assert all(math.isfinite(point.train_loss + point.accuracy) for _, point in outcome.logged)
