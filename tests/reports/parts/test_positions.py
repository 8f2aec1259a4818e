"""Losses by position and against work: what the tables say of records made by hand, and none without losses."""

import math

import pytest

from icl_bench.reports.analysis import Section
from icl_bench.reports.context import NO_STUDY
from icl_bench.reports.parts.capacity import capacity_table
from icl_bench.reports.parts.findings import findings
from icl_bench.reports.parts.positions import (
    POSITION_PART,
    WORK_PART,
    loss_by_position,
    loss_by_work,
    position_table,
    training_work,
    work_table,
)
from icl_bench.runs.record import CellScore, GroupScore, RunRecord, TokenWork, WorkReport
from tests.reports.factory import comparison, make_record, section_of
from tests.reports.parts.test_ladder import at_budget

BY_OCTAVE = {"position 1": 4.0, "position 2-3": 3.0, "position 4-7": 2.0, "position 8-15": 2.5}
"""Losses in bits; the least is not the last."""


def with_losses(record: RunRecord, more: float = 0.0) -> RunRecord:
    """Give a record one cell of 16 bytes with losses by octave, in nats, `more` bits each, and the work of a token."""
    nats = {name: (bits + more) * math.log(2) for name, bits in BY_OCTAVE.items()}
    cell = CellScore(
        label="length=16",
        load=16,
        length=16,
        accuracy=0.7,
        exact_match=0.0,
        loss=(2.4 + more) * math.log(2),
        floor=0.6,
        floor_solver="trigram",
        state_bits=0.0,
        scored=15,
        controls={"second half": 0.7, "prefix swap": 0.68},
        groups={name: GroupScore(accuracy=0.7, count=8, loss=loss) for name, loss in nats.items()},
    )
    token = TokenWork(length=16, weights=3e5, recurrent=2e4, quadratic=1e4, executed=9.6e5)
    work = WorkReport(weights=1e5, state=2e4, training=token)
    result = record.result.model_copy(update={"cells": (cell,), "work": work, "load_name": "tokens"})
    task = {**record.spec["task"], "params": {"vocab": 256}}
    return record.model_copy(update={"result": result, "spec": {**record.spec, "task": task}})


@pytest.fixture
def text() -> Section:
    return section_of(
        [
            *(with_losses(make_record("power:p=2", seed), 0.1 * seed) for seed in range(3)),
            with_losses(make_record("softmax"), -0.2),
        ]
    )


def test_the_best_context_is_the_octave_of_the_least_loss(text: Section) -> None:
    power, softmax, floor = position_table(text).rows
    # medians over three seeds: 2.4, 2.0 and 2.5 bits, and .1 more
    assert [str(cell) for cell in power] == ["power:p=2", "16", "2.500", "2.100", "4-7", "2.600", "0.160"]
    assert [str(cell) for cell in softmax][2:4] == ["2.200", "1.800"]
    assert [str(cell) for cell in floor][:3] == ["trigram", "16", "3.200"]  # 8 bits less .6 of them


def test_work_counts_the_cheaper_form_of_the_state(text: Section) -> None:
    power = next(entry for entry in text.entries if entry.label == "power:p=2")
    assert training_work(power) == 3 * (3e5 + 1e4) * 16 * 64 * 500
    assert [str(cell) for cell in work_table(text).rows[0]] == [
        *("power:p=2", "3e05", "2e04", "1e04", "9.6e05", "4.8e11", "20", "25,600", "2.500"),
    ]


def test_figures_follow_the_losses(text: Section) -> None:
    by_position, by_work = loss_by_position(text, NO_STUDY), loss_by_work(text, NO_STUDY)
    assert by_position is not None and by_work is not None
    low, high = by_position.axes[0].get_ylim()
    assert low < 1.8 and 4.1 < high < 5
    assert min(by_work.axes[0].get_ylim()) > 1


def test_a_line_joins_the_budgets_of_an_architecture() -> None:
    runs = [with_losses(make_record(arch, seed)) for arch in ("power:p=2", "softmax") for seed in range(2)]
    section = section_of(runs + at_budget(runs, 1500))
    figure = loss_by_work(section, NO_STUDY)
    assert figure is not None and len(figure.axes) == 1
    lines = [
        line for line in figure.axes[0].get_lines() if line.get_linestyle() != "None" and len(line.get_xdata()) == 2
    ]
    assert len(lines) == 2
    for line in lines:
        assert line.get_xdata()[1] == pytest.approx(3 * line.get_xdata()[0])
    assert {text.get_text() for text in figure.axes[0].texts} >= {"power:p=2", "softmax"}


def test_language_models_have_no_capacity() -> None:
    runs = [with_losses(make_record("softmax", seed)) for seed in range(3)]
    longer = []
    for run in runs:
        (cell,) = run.result.cells
        cells = (cell, cell.model_copy(update={"label": "length=32", "load": 32, "length": 32}))
        longer.append(run.model_copy(update={"result": run.result.model_copy(update={"cells": cells})}))
    section = section_of(longer)
    assert not capacity_table(section).rows
    assert findings(section)[0].startswith("Question: how well does softmax predict assoc-recall at 16 to 32 tokens")


def test_other_tasks_have_neither_topic() -> None:
    section = section_of(comparison(1))
    assert loss_by_position(section, NO_STUDY) is None and loss_by_work(section, NO_STUDY) is None
    assert POSITION_PART.blocks(section, None) == WORK_PART.blocks(section, None) == []
