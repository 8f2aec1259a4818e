"""The export of runs as a table: CSV and Parquet."""

import csv
import json

import pytest

from icl_bench.errors import SpecError
from icl_bench.runs.store import export
from tests.runs.records import MANIFEST, filled, read_all, result, spec


def test_a_table_of_all_runs(tmp_path) -> None:
    store = filled(tmp_path / "store", 0, 1)
    store.begin(spec(2), MANIFEST).commit(
        result(spec(2)).model_copy(update={"status": "error", "detail": "=1+1", "cells": (), "task": "@x"})
    )
    records = read_all(store)
    assert export.export_records(records, tmp_path / "runs.csv") == 3
    with (tmp_path / "runs.csv").open() as file:
        read = {line["seed"]: line for line in csv.DictReader(file)}
    assert read["0"]["cell"] == "pairs=2" and float(read["0"]["accuracy"]) == 0.5 and read["0"]["data_seed"] == "0"
    assert read["2"]["detail"] == "'=1+1" and read["2"]["task"] == "'@x" and read["2"]["accuracy"] == ""
    assert set(read["0"]) == set(export.EXPORT_COLUMNS)


def test_parquet_without_pyarrow_says_what_to_do(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SpecError, match=r"needs the package pyarrow.*write \.csv, or run `pip install"):
        export.export_records([], tmp_path / "runs.parquet")
    with pytest.raises(SpecError, match=r"an export is a \.csv or \.parquet file; got"):
        export.export_records([], tmp_path / "runs.xlsx")


def test_parquet_with_pyarrow(tmp_path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    records = read_all(filled(tmp_path / "store", 0, 1))
    export.export_records(records, tmp_path / "runs.parquet")
    table = parquet.read_table(tmp_path / "runs.parquet").to_pylist()
    assert [line["accuracy"] for line in table] == [0.5, 0.5] and json.dumps(table)
