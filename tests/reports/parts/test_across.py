"""Tables over several tasks."""

import pytest

from icl_bench.reports.parts.across import across_blocks, aggregate_table, standings, task_table
from tests.reports.factory import comparison, sections_of, several


def test_tasks_are_aggregated_for_architectures_that_ran_on_all() -> None:
    records = [*several("linear", 0.5, 0), *several("softmax", 0.9, 0), *several("linear", 0.7, 0, task="copy")]
    sections = sections_of(records)
    row, floor, oracle = aggregate_table(standings(sections), 2).rows
    corrected = [sum((value - f) / (1 - f) for f in (1 / 4, 1 / 8, 1 / 16)) / 3 for value in (0.5, 0.7)]
    assert (row[0], row[2]) == ("linear", f"{sum(corrected) / 2:.3f}")
    assert (floor[2], oracle[2]) == ("0.000", "1.000")
    assert [row[1] for row in task_table(sections, standings(sections)).rows] == [f"{value:.3f}" for value in corrected]
    assert aggregate_table(standings(sections_of(comparison(2))), 1).rows == ()


def test_more_architectures_than_tasks_are_rows_of_the_table() -> None:
    values = {"linear": (0.5, 0.7), "softmax": (0.9, 0.8), "power": (0.8, 0.6)}
    runs = [run for name, (first, _) in values.items() for run in several(name, first, 0)]
    sections = sections_of([*runs, *(run for name in values for run in several(name, values[name][1], 0, task="copy"))])
    table = task_table(sections, standings(sections))
    assert table.header == ("architecture", *(section.task for section in sections))
    assert [row[0] for row in table.rows] == sorted(values)
    assert [row[1] for row in table.rows] == sorted(row[1] for row in table.rows)


def test_architectures_matched_task_by_task_are_aggregated_by_family() -> None:
    records = [*several("window:w=8", 0.5, 0), *several("window:w=32", 0.7, 0, task="copy")]
    assert [row[0] for row in aggregate_table(standings(sections_of(records)), 2).rows] == ["window", "floor", "oracle"]
    larger = [*records, *several("window:w=16", 0.6, 0)]
    assert aggregate_table(standings(sections_of(larger)), 2).rows == ()  # which of the two sizes would it be?


def test_tasks_without_a_cell_that_ranks_do_not_enter_the_mean() -> None:
    records = [*several("linear", 0.5, 0), *several("softmax", 0.7, 0)]
    solved = [run for arch in ("linear", "softmax") for run in several(arch, 1.0, 0, task="memorization")]
    hopeless = [run for arch in ("linear", "softmax") for run in several(arch, 0.0, 0, task="regbench")]
    sections = sections_of([*records, *solved, *hopeless])
    linear, softmax = standings(sections)
    expected = [sum((value - f) / (1 - f) for f in (1 / 4, 1 / 8, 1 / 16)) / 3 for value in (0.5, 0.7)]
    assert [linear.mean, softmax.mean] == pytest.approx(expected)
    assert (
        "Left out of it, as none of their cells ranks: memorization and regbench." in across_blocks(sections)[-1].text
    )
    assert standings(sections_of([*solved, *hopeless])) == []
