"""The speed of learning, with runs that never reach a level."""

import pytest

from icl_bench.reports.parts.learning import learning_table, reached
from icl_bench.reports.text import NONE
from icl_bench.runs.outline import measured
from icl_bench.runs.record import RunRecord
from tests.reports.factory import make_record, section_of


def row_of(records: list[RunRecord]) -> dict[str, str]:
    table = learning_table(section_of(records))
    (row,) = table.rows
    return dict(zip(table.header, row, strict=True))


def test_a_level_is_reached_at_the_first_validation_that_finds_it() -> None:
    run = measured(make_record(validation=1.0))  # validations at 100, 200, ... 500 updates, rising to 1
    assert reached(run, 0.5) == (300, True)
    assert reached(run, 0.6) == (300, True)
    assert reached(measured(make_record(validation=0.7)), 0.9) == (500, False)


def test_runs_that_do_not_get_there_are_censored_at_their_end() -> None:
    quick, slow = make_record(seed=0, validation=1.5), make_record(seed=1, validation=0.4)
    row = row_of([quick, slow, make_record(seed=2, status="diverged")])
    assert (row["updates to .5"], row["updates to .9"], row["reached .9"]) == (NONE, NONE, "1/3")
    assert float(row["restricted mean"]) == pytest.approx((300 + 500 + 500) / 3, rel=1e-2)


def test_examples_and_work_follow_from_updates() -> None:
    row = row_of([make_record(seed=seed, validation=1.0) for seed in range(3)])
    assert (row["updates to .9"], row["examples to .9"]) == ("500", "32,000")
    assert float(row["FLOPs to .9"]) == pytest.approx(32_000 * 64 * 3 * 200_000, rel=0.05)


def test_nothing_is_said_where_no_run_gets_half_way() -> None:
    assert learning_table(section_of([make_record(validation=0.3)])).rows == ()
