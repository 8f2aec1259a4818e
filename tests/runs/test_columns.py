"""Columns of runs: their values and their types."""

from icl_bench.harness.resolve import Request, expand_request
from icl_bench.runs.columns import (
    CELL_COLUMNS,
    RUN_COLUMNS,
    SCORE_COLUMNS,
    STEP_COLUMNS,
    csv_values,
    curve_rows,
    power_of,
    run_values,
    score_rows,
)  # fmt: skip
from icl_bench.runs.outline import measured
from icl_bench.runs.record import StateReport
from icl_bench.runs.store import Store
from tests.runs.records import MANIFEST, POINT, finished, result, spec


def test_values_have_the_columns_and_types_that_are_declared(tmp_path) -> None:
    finished(Store(tmp_path), spec(1))
    record = Store(tmp_path).load(spec(1).id)
    assert list(run_values(record)) == list(RUN_COLUMNS) and run_values(record) == run_values(measured(record))
    for rows, columns in ((score_rows(record), SCORE_COLUMNS), (curve_rows(record), STEP_COLUMNS)):
        for row in rows:
            assert list(row) == list(columns)
            kinds = {name: type(value) for name, value in row.items() if value is not None}
            assert all(kind is columns[name] or (kind, columns[name]) == (int, float) for name, kind in kinds.items())
    empty = record.model_copy(update={"result": record.result.model_copy(update={"cells": ()})})
    (row,) = score_rows(empty)
    assert {row[name] for name in CELL_COLUMNS} == {None} and row["id"] == record.result.id


def test_sizes_and_the_power_have_columns(tmp_path) -> None:
    run = expand_request(Request("assoc-recall", ["gated-conv+power:p=3"]))[0]
    own = {"arch": run.arch_label, "state": StateReport(elements=7, bytes=28, length=64)}
    writer = Store(tmp_path).begin(run, MANIFEST)
    writer.log(POINT)
    writer.commit(result(run).model_copy(update=own))
    values = run_values(Store(tmp_path).load(run.id))
    assert (values["p"], values["state_elements"], values["state_bytes"], values["params"]) == (3, 7, 28, 10)
    assert power_of({"arch": [{"params": {}}, {"params": {"p": "x"}}]}) is None


def test_text_that_a_spreadsheet_would_run_is_quoted() -> None:
    assert csv_values(["=1", " +1", "a=1", 3, None, "a\nb"]) == ["'=1", "'+1", "a=1", 3, None, "a b"]
