"""The export of runs as tables: CSV, JSON, JSON lines and Parquet."""

import csv
import json

import pytest

from icl_bench.errors import SpecError, StoreError
from icl_bench.runs.columns import PROBE_COLUMNS, SCORE_COLUMNS, STEP_COLUMNS
from icl_bench.runs.probes import ProbePoint, Probes
from icl_bench.runs.store import Store, export
from icl_bench.runs.store.index import Index
from tests.runs.records import MANIFEST, filled, finished, result, spec


@pytest.fixture
def store(tmp_path) -> Store:
    """Return a store with two scored runs and one that failed."""
    made = filled(tmp_path / "store", 0, 1)
    failed = result(spec(2)).model_copy(update={"status": "error", "detail": "=1+1", "cells": ()})
    made.begin(spec(2), MANIFEST).commit(failed)
    return made


def written(store: Store, path, kind: export.TableKind = "cells"):
    count, problems = export.write_table(Index(store).runs()[0], store, path, kind)
    assert problems == []
    return count


def read(path) -> list[dict]:
    """Read a table back by the means of its format; values of CSV are text."""
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return list(csv.DictReader(file))
    if path.suffix == ".json":
        document = json.loads(path.read_text())
        assert document["schema"] == 1
        return document["rows"]
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("ending", [".csv", ".json", ".jsonl"])
def test_a_table_of_all_runs(store, tmp_path, ending: str) -> None:
    path = tmp_path / f"runs{ending}"
    assert written(store, path) == 3
    rows = {str(row["seed"]): row for row in read(path)}
    assert all(list(row) == list(SCORE_COLUMNS) for row in rows.values()) and len(rows) == 3
    assert rows["0"]["cell"] == "pairs=2" and float(rows["0"]["accuracy"]) == 0.5 and str(rows["0"]["data_seed"]) == "0"
    assert float(rows["0"]["validation"]) == 0.5
    missing, quote = ("", "'") if ending == ".csv" else (None, "")
    assert rows["2"]["detail"] == f"{quote}=1+1" and rows["2"]["accuracy"] == rows["2"]["p"] == missing


@pytest.mark.parametrize("ending", [".csv", ".json", ".jsonl"])
def test_a_table_of_curves(store, tmp_path, ending: str) -> None:
    path = tmp_path / f"curves{ending}"
    assert written(store, path, "curves") == 2  # the failed run has no validation
    rows = read(path)
    assert all(list(row) == list(STEP_COLUMNS) for row in rows)
    assert {(int(row["step"]), float(row["train_loss"]), row["cell"], float(row["validation"])) for row in rows} == {
        (5, 1.5, "pairs=2", 0.5)
    }


def test_curves_of_a_run_that_is_damaged_are_named(store, tmp_path) -> None:
    runs = Index(store).runs()[0]
    (store.path(spec(0).id) / "metrics.jsonl").write_text("")
    count, problems = export.write_table(runs, store, tmp_path / "curves.csv", "curves")
    assert count == 1 and len(problems) == 1 and spec(0).id in str(problems[0])


@pytest.mark.parametrize("ending", [".csv", ".json", ".jsonl"])
def test_a_table_of_probes_has_the_runs_that_keep_them(store, tmp_path, ending: str) -> None:
    kept = Probes(
        id=spec(3).id, task=result(spec(3)).task, arch=result(spec(3)).arch, names=("gradient", "block0.eps_share"),
        points=tuple(ProbePoint(step=step, values=(1.5, None)) for step in (2, 4)),
    )  # fmt: skip
    finished(store, spec(3), kept={"probes.json": kept.model_dump_json().encode()})
    path = tmp_path / f"probes{ending}"
    assert written(store, path, "probes") == 4
    rows = read(path)
    assert all(list(row) == list(PROBE_COLUMNS) for row in rows) and {row["id"] for row in rows} == {spec(3).id}
    missing = "" if ending == ".csv" else None
    values = {(int(row["step"]), row["probe"]): row["value"] for row in rows}
    assert float(values[4, "gradient"]) == 1.5 and values[2, "block0.eps_share"] == missing


def test_an_export_that_cannot_be_written_says_so(store, tmp_path) -> None:
    with pytest.raises(StoreError, match=r"runs\.csv"):
        written(store, tmp_path / "nowhere" / "runs.csv")


def test_parquet_without_pyarrow_says_what_to_do(store, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SpecError, match=r"needs the package pyarrow.*write \.csv, or run `pip install"):
        written(store, tmp_path / "runs.parquet")
    with pytest.raises(SpecError, match=r"an export is a \.csv, \.parquet, \.json, \.jsonl file; got .*runs\.xlsx"):
        written(store, tmp_path / "runs.xlsx")


def test_parquet_with_pyarrow(store, tmp_path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    tables: dict[export.TableKind, object] = {
        "cells": SCORE_COLUMNS, "curves": STEP_COLUMNS, "probes": PROBE_COLUMNS,
    }  # fmt: skip
    for kind, columns in tables.items():
        path = tmp_path / f"{kind}.parquet"
        count = written(store, path, kind)
        table = parquet.read_table(path)
        assert table.num_rows == count and table.column_names == list(columns)
        assert "null" not in {str(kind) for kind in table.schema.types}
        assert json.dumps(table.to_pylist())
