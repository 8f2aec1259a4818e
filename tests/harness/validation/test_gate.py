"""The gate: every task passes it, planted shortcuts do not, and chance stays within its bound."""

import math

import pytest
import torch

from icl_bench.errors import SpecError
from icl_bench.harness.validation import gate
from icl_bench.harness.validation.gate import (
    QUICK,
    Sample,
    limit_of,
    names_answers,
    validate_cell,
    validate_task,
    views,
)
from icl_bench.harness.validation.trained import TRAINED
from icl_bench.tasks import TASKS
from icl_bench.tasks.assoc_recall import AssocRecall
from icl_bench.tasks.flip_flop import FlipFlop
from icl_bench.tasks.overwrite_recall import OverwriteRecall

NAMED = [name for name in TASKS if names_answers(TASKS[name]())]
FEWER = {"grammar": Sample(2_000, 60)}
"""Samples of tasks whose hits take long: those of grammar follow all derivations of every example."""


@pytest.mark.parametrize("name", NAMED)
def test_no_shallow_solver_beats_the_floors(name: str) -> None:
    assert [one for cell in validate_task(TASKS[name](), FEWER.get(name, QUICK)) for one in cell.above] == []


@pytest.mark.parametrize("name", list(TASKS))
def test_solvers_by_rule_are_solvers(name: str) -> None:
    assert set(TASKS[name].by_rule) <= gate.FOR_TOKENS.keys() | gate.FOR_VECTORS.keys() | TRAINED.keys()


def test_a_task_of_probabilities_is_refused() -> None:
    with pytest.raises(SpecError, match="shallow solvers name answers; text grades probabilities"):
        validate_task(TASKS["text"](corpus="example"), QUICK)


def test_a_floor_that_is_left_out_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FlipFlop, "floors", property(lambda task: {"latest-bit": task.floor_latest_bit}))
    cell = FlipFlop().eval_cells[0]
    above = {one.solver for one in validate_cell(FlipFlop(), cell, QUICK) if one.outcome == "above"}
    assert "look-up-latest" in above and "majority" not in above


def test_a_rule_that_a_task_does_not_name_is_a_shortcut(monkeypatch: pytest.MonkeyPatch) -> None:
    task = OverwriteRecall()
    found = {one.solver: one for one in validate_cell(task, task.eval_cells[0], QUICK) if not one.group}
    assert found["look-up-latest"].outcome == "by rule" and found["look-up-latest"].accuracy == 1
    monkeypatch.setattr(OverwriteRecall, "by_rule", ())
    found = {one.solver: one for one in validate_cell(task, task.eval_cells[0], QUICK) if not one.group}
    assert found["look-up-latest"].outcome == "above"


def test_views_hold_at_most_half_of_the_bits() -> None:
    task = AssocRecall(length=128, pairs=(4, 32), vocab=512)
    few, many = task.eval_cells
    assert views(task, few) == {}  # 32 bits are no more than four tokens
    for view in views(task, many).values():
        assert view.share == pytest.approx((view.first + view.last) * math.log2(512) / task.state_bits(many))
        assert 0.4 < view.share <= 0.5


def test_a_state_with_fewer_bits_than_stated_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries of which most are the latest pairs need less than the bits of all pairs."""
    task = AssocRecall(length=128, pairs=(32,), vocab=512)
    honest = {one.solver: one for one in validate_cell(task, task.eval_cells[0], QUICK)}
    assert honest["last-tokens"].outcome == honest["first-tokens"].outcome == "below"
    monkeypatch.setattr(AssocRecall, "state_bits", lambda task, cell: 40 * 240.0)
    seen = {one.solver: one for one in validate_cell(task, task.eval_cells[0], QUICK)}
    assert seen["first-tokens"].outcome == "above"


def test_chance_stays_within_its_bound() -> None:
    """The statistic of fair signs of any size is above the bound less often than stated, as at 1 in 100."""
    generator = torch.Generator()
    for rows in (1, 3, 30, 300):
        signs = 2.0 * torch.randint(0, 2, (20_000, rows), generator=generator) - 1
        sizes = torch.rand(20_000, rows, generator=generator) ** 4
        z = torch.tensor([gate.statistic(one) for one in (signs * sizes)[:2_000]])
        assert float((z > limit_of(0.01)).double().mean()) <= 0.01 + 3 * math.sqrt(0.01 / 2_000)


def test_few_occurrences_are_no_evidence() -> None:
    assert gate.statistic(torch.ones(27)) < limit_of(gate.FALSE_ALARM) < gate.statistic(torch.ones(28))
    assert gate.statistic(torch.zeros(5)) == 0.0


def test_questions_stand_in_the_order_of_positions() -> None:
    task = AssocRecall()
    batch = gate.draw(task, task.eval_cells[0], "test", 50)
    assert bool((batch.positions.diff(dim=1) > 0).all())
    assert torch.equal(task.oracle(batch.inputs, batch.positions, task.eval_cells[0]), batch.targets)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMED)
def test_no_shallow_solver_beats_the_floors_on_more_examples(name: str) -> None:
    assert [one for cell in validate_task(TASKS[name](), Sample(20_000, 4_000)) for one in cell.above] == []
