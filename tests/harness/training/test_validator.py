"""Validations beside the training and tests in two threads: the same numbers, the same errors."""

import pytest
import torch

from icl_bench.harness.training import validator
from icl_bench.harness.training.loop import TrainingLoop
from icl_bench.harness.training.trainer import Machine, Trainer
from tests.harness.training.small_runs import CPU, specs, trained


def logged_with(cores: int, arch: str, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Return what a fleet of two logs on a machine with so many cores, and its test scores."""
    monkeypatch.setattr(validator, "usable_cores", lambda: cores)
    _, scores, logged = trained(specs(arch, seeds=range(2)))
    return [*logged, [member.cells for member in scores.members]]


@pytest.mark.parametrize("arch", ["power:p=2", "gated-delta-net", "lstm"])
def test_a_second_thread_changes_no_number_of_validations_and_tests(arch, monkeypatch) -> None:
    assert logged_with(2, arch, monkeypatch) == logged_with(1, arch, monkeypatch)


def test_a_copy_keeps_the_numbers_of_its_moment(monkeypatch) -> None:
    monkeypatch.setattr(validator, "usable_cores", lambda: 2)
    trainer = Trainer(specs("power:p=2"), Machine(CPU))
    beside = validator.Validator(trainer)
    copy = beside.copied_model()
    before = [tensor.clone() for tensor in trainer.working_model.parameters.values()]
    trainer.step()
    assert all(map(torch.equal, copy.parameters.values(), before))
    assert not all(map(torch.equal, trainer.working_model.parameters.values(), before))
    assert beside.copied_model() is copy
    assert all(map(torch.equal, copy.parameters.values(), trainer.working_model.parameters.values()))
    beside.close()


def test_an_error_in_the_thread_is_raised_by_the_training(monkeypatch) -> None:
    monkeypatch.setattr(validator, "usable_cores", lambda: 2)
    trainer = Trainer(specs("softmax"), Machine(CPU))

    def fail(model: object) -> None:
        raise MemoryError("no memory for the validation")

    monkeypatch.setattr(trainer, "validate", fail)
    with pytest.raises(MemoryError, match="for the validation"):
        TrainingLoop(trainer, lambda progress: None, lambda member, point: None).run()
