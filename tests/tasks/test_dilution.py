"""Dilution: noise in the context alone, and answers, floors and bits as without it."""

import pytest
import torch

from icl_bench.errors import SpecError
from icl_bench.tasks import TASKS
from icl_bench.tasks.base import measured_floors
from icl_bench.tasks.dilution import Diluted
from icl_bench.tasks.vocabulary import NOISE

NAMES = sorted(name for name in TASKS if issubclass(TASKS[name], Diluted))


@pytest.mark.parametrize("name", NAMES)
def test_examples_are_those_of_the_task_with_noise_after_each_token_of_the_context(draw, name):
    """Token ids do not move, so that both examples can be compared."""
    plain, cell, batch = draw(name, 40)
    task, wide, spread = draw(f"{name}:dilute=3", 40)
    context = plain.context_tokens(cell)
    assert 0 < context < cell.length and wide.length == cell.length + 3 * context
    apart = spread.inputs[:, : 4 * context].unflatten(1, (context, 4))
    assert torch.equal(apart[..., 0], batch.inputs[:, :context])
    assert torch.equal(spread.inputs[:, 4 * context :], batch.inputs[:, context:])
    noise = apart[..., 1:] - task.words.first("noise")
    assert noise.min() == 0 and noise.max() == NOISE - 1
    assert torch.equal(spread.positions, batch.positions + 3 * context) and (batch.positions >= context).all()
    assert torch.equal(spread.targets, batch.targets) and torch.equal(spread.groups, batch.groups)
    assert torch.equal(task.oracle(spread.inputs, spread.positions, wide), batch.targets)
    assert measured_floors(task, wide, spread) == measured_floors(plain, cell, batch)
    assert task.state_bits(wide) == plain.state_bits(cell)


def test_controls_are_diluted_too(draw):
    task, cell, batch = draw("assoc-recall:dilute=2", 40)
    plain, dense, alike = draw("assoc-recall", 40)
    expected = plain.controls(alike, dense)
    for name, changed in task.controls(batch, cell).items():
        assert changed.inputs.shape == batch.inputs.shape
        context = changed.inputs[:, : 3 * 2 * cell.load]
        assert torch.equal(context[:, ::3], expected[name].inputs[:, : 2 * cell.load])
        assert torch.equal(context[:, 1::3], batch.inputs[:, 1 : 3 * 2 * cell.load : 3])
        assert torch.equal(changed.targets, expected[name].targets)


def test_a_task_without_dilution_leaves_it_out_of_its_specification(make):
    assert "dilute" not in make("assoc-recall").model_dump()
    assert make("assoc-recall:dilute=1").model_dump()["dilute"] == 1


@pytest.mark.parametrize("spec", ["dilute=-1", "dilute=1024", "variant=zoology,dilute=1"])
def test_bad_dilutions_are_refused(make, spec):
    with pytest.raises(SpecError, match="dilute"):
        make(f"assoc-recall:{spec}")
