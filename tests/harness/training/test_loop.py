"""Validations and reports over a training."""

import pytest

from icl_bench.harness.training.loop import TrainingLoop
from icl_bench.harness.training.trainer import Machine, Trainer
from tests.harness.training.small_runs import CPU, specs, trained


def test_validation_points_and_cells_are_all_there() -> None:
    _, scores, logged = trained(specs("power:p=2"))
    (member,) = scores.members
    assert [point.step for _, point in logged] == [6, 12]
    assert [cell.label for cell in member.cells] == ["pairs=2", "pairs=4"] == list(logged[0][1].by_cell)
    assert member.cells[0].floor >= 0.25


def test_what_is_reported_adds_up_to_what_is_logged() -> None:
    trainer, reported, logged = Trainer(specs("softmax"), Machine(CPU)), [], []
    TrainingLoop(trainer, reported.append, lambda member, point: logged.append(point), report_every=0.0).run()
    assert [point for progress in reported for point in progress.validations] == logged
    reported = [progress for progress in reported if not progress.validations]
    assert [progress.step for progress in reported] == list(range(1, 13))
    for point in logged:
        span = [progress.loss[0] for progress in reported if point.step - 6 < progress.step <= point.step]
        assert sum(span) / 6 == pytest.approx(point.train_loss, rel=1e-9)


def test_the_first_step_is_reported_at_once() -> None:
    reported: list[int] = []
    loop = TrainingLoop(
        Trainer(specs("softmax"), Machine(CPU)), lambda progress: reported.append(progress.step), lambda *_: None, 1e9
    )
    loop.run()
    assert list(dict.fromkeys(reported)) == [1, 6, 12]
