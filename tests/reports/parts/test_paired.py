"""Paired differences of losses: by hand, with intervals over seeds and over test rows."""

import math

import pytest

from icl_bench.reports.parts.paired import paired_table
from icl_bench.reports.text import NONE
from icl_bench.runs.record import RunRecord
from tests.reports.factory import comparison, make_record, section_of
from tests.reports.parts.test_ladder import at_budget
from tests.reports.parts.test_positions import with_losses

ROWS = (0.5, 0.1, 0.3)
"""Losses of test rows in bits, relative to the first entry's."""


def with_rows(record: RunRecord, more: float, rows: tuple[float, ...] | None) -> RunRecord:
    """Give a record a loss `more` bits above that of others, and losses of rows in bits."""
    (cell,) = with_losses(record, more).result.cells
    nats = None if rows is None else tuple(math.log(2) * row for row in rows)
    cell = cell.model_copy(update={"example_losses": nats})
    whole = with_losses(record, more)
    return whole.model_copy(update={"result": whole.result.model_copy(update={"cells": (cell,)})})


def rows_of(records: list[RunRecord]) -> list[dict[str, str]]:
    table = paired_table(section_of(records))
    return [dict(zip(table.header, row, strict=True)) for row in table.rows]


def test_a_pair_by_hand() -> None:
    """Differences of 1, 2 and 3 tenths over seeds; Student's quantile for two degrees of freedom is 4.303."""
    records = [with_rows(make_record("softmax", seed), 0.0, (0.0, 0.0, 0.0)) for seed in range(3)]
    records += [with_rows(make_record("power:p=2", seed), 0.1 * (1 + seed), ROWS) for seed in range(3)]
    (row,) = rows_of(records)
    assert (str(row["first"]), str(row["second"]), row["seeds"]) == ("softmax", "power:p=2", "3")
    half = 4.3027 * 0.1 / math.sqrt(3)
    assert row["difference"] == "+0.200" and row["over seeds"] == f"[{0.2 - half:+.3f}, {0.2 + half:+.3f}]"
    mean = 0.3
    spread = math.sqrt(3 * ((0.5 - mean) ** 2 + (0.1 - mean) ** 2) / 8)
    half = 2.306 * spread / 3
    assert row["over documents"] == f"[{mean - half:+.3f}, {mean + half:+.3f}]"


def test_pairs_have_one_budget() -> None:
    runs = [with_rows(make_record(arch, seed), 0.0, ROWS) for arch in ("softmax", "linear") for seed in range(2)]
    rows = rows_of(runs + at_budget(runs, 1500))
    assert [row["first"].split("=")[-1] == row["second"].split("=")[-1] for row in rows] == [True, True]


def test_seeds_that_are_not_shared_make_no_pair() -> None:
    records = [with_rows(make_record("softmax", 0), 0.0, None), with_rows(make_record("power:p=2", 1), 0.1, None)]
    assert not rows_of(records)
    records.append(with_rows(make_record("power:p=2", 0), 0.3, None))
    (row,) = rows_of(records)
    assert row["difference"] == "+0.300" and row["over seeds"] == row["over documents"] == NONE


def test_records_without_losses_have_no_pairs() -> None:
    assert not rows_of(comparison())


@pytest.mark.parametrize("count", [1, 2])
def test_a_study_of_few_seeds_is_shown(count: int) -> None:
    records = [with_rows(make_record(arch, seed), 0.0, ROWS) for arch in ("softmax", "linear") for seed in range(count)]
    (row,) = rows_of(records)
    assert row["seeds"] == str(count) and (row["over seeds"] == NONE) == (count == 1)
