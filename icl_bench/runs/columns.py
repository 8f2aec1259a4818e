"""Columns of runs: one name and one type for each value, in exports, reports, data frames and loggers alike."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from icl_bench.escapes import csv_text
from icl_bench.runs.outline import MeasuredRun
from icl_bench.runs.probes import Probes, ending_of
from icl_bench.runs.record import CellScore, RunRecord

ColumnValue = str | int | float | None
Row = dict[str, ColumnValue]

RUN_COLUMNS: Mapping[str, type] = {
    **dict.fromkeys(("id", "task", "arch"), str),
    **{"p": int, "seed": int, "data_seed": int, "lr": float, "weight_decay": float},
    **{"status": str, "detail": str, "params": int, "state_elements": int, "state_bytes": int},
    **{"weight_flops": float, "state_flops": float, "steps": int, "seconds": float, "solved_at": int},
    **{"validation": float, "device": str, "gain": float, "outcome": str, "outcome_step": int},
}
"""Columns of a run: its setting, its sizes and its outcome."""
CELL_COLUMNS: Mapping[str, type] = {
    **{"cell": str, "load": int, "length": int, "accuracy": float, "exact_match": float, "loss": float},
    **{"floor": float, "floor_solver": str, "state_bits": float, "free_running": float, "free_running_exact": float},
    **{"divergence": float, "possible_mass": float},
}
"""Columns of the test scores of a cell."""
CURVE_COLUMNS: Mapping[str, type] = {
    **{"step": int, "train_loss": float, "train_accuracy": float, "cell": str, "validation": float},
}
"""Columns of a validation of a cell during training."""
SCORE_COLUMNS: Mapping[str, type] = {**RUN_COLUMNS, **CELL_COLUMNS}
"""Columns of a table with a row for each run and cell."""
KEY_COLUMNS = ("id", "task", "arch", "p", "seed", "data_seed", "lr")
"""Columns of a run that a table of curves repeats."""
STEP_COLUMNS: Mapping[str, type] = {**{name: RUN_COLUMNS[name] for name in KEY_COLUMNS}, **CURVE_COLUMNS}
"""Columns of a table with a row for each run, validation and cell."""
PROBE_COLUMNS: Mapping[str, type] = {
    **{name: RUN_COLUMNS[name] for name in KEY_COLUMNS}, "step": int, "probe": str, "value": float,
}  # fmt: skip
"""Columns of a table with a row for each run, probed step and number."""


def run_values(run: MeasuredRun | RunRecord) -> Row:
    """Return the values of `RUN_COLUMNS`."""
    result, spec = run.result, run.spec
    points = run.curve if isinstance(run, MeasuredRun) else [(one.step, one.accuracy) for one in run.metrics]
    curve = [value for _, value in points]
    trained = result.status in ("ok", "diverged")
    ending = ending_of(result.status, result.steps, result.detail, points, result.floor) if trained else None
    return {
        "id": result.id,
        "task": result.task,
        "arch": result.arch,
        "p": power_of(spec),
        "seed": result.seed,
        "data_seed": spec["data_seed"],
        "lr": result.lr,
        "weight_decay": spec["train"]["weight_decay"],
        "status": result.status,
        "detail": result.detail,
        "params": result.params or None,
        "state_elements": result.state.elements if result.state else None,
        "state_bytes": result.state.bytes if result.state else None,
        "weight_flops": result.work.weights,
        "state_flops": result.work.state,
        "steps": result.steps,
        "seconds": result.seconds,
        "solved_at": result.solved_at,
        "validation": curve[-1] if curve else None,
        "device": run.manifest.device,
        "gain": spec["model"].get("gain", 1.0),
        "outcome": ending.outcome if ending else None,
        "outcome_step": ending.step if ending else None,
    }


def power_of(spec: Mapping[str, Any]) -> int | None:
    """Return the power p of the first architecture of the pattern that has one; None if none has."""
    powers = [part["params"]["p"] for part in spec["arch"] if isinstance(part["params"].get("p"), int)]
    return powers[0] if powers else None


def cell_values(cell: CellScore) -> Row:
    """Return the values of `CELL_COLUMNS`."""
    return {name: cell.label if name == "cell" else getattr(cell, name) for name in CELL_COLUMNS}


def score_rows(run: MeasuredRun | RunRecord) -> Iterator[Row]:
    """Yield a row of `SCORE_COLUMNS` for each cell of a run; a run without scores has one row with empty values."""
    own = run_values(run)
    for cell in run.result.cells:
        yield own | cell_values(cell)
    if not run.result.cells:
        yield own | dict.fromkeys(CELL_COLUMNS)


def curve_rows(run: RunRecord) -> Iterator[Row]:
    """Yield a row of `STEP_COLUMNS` for each validation and cell of a run."""
    values = run_values(run)
    own = {name: values[name] for name in KEY_COLUMNS}
    for point in run.metrics:
        at = {"step": point.step, "train_loss": point.train_loss, "train_accuracy": point.train_accuracy}
        for label, accuracy in point.by_cell.items():
            yield {**own, **at, "cell": label, "validation": accuracy}


def probe_rows(run: MeasuredRun, probes: Probes) -> Iterator[Row]:
    """Yield a row of `PROBE_COLUMNS` for each number at each probed step of a run."""
    values = run_values(run)
    own = {name: values[name] for name in KEY_COLUMNS}
    for point in probes.points:
        for name, value in zip(probes.names, point.values, strict=True):
            yield {**own, "step": point.step, "probe": name, "value": value}


def csv_values(values: Iterable[ColumnValue]) -> list[ColumnValue]:
    """Return values for a CSV file, with text that a terminal and a spreadsheet show unchanged."""
    return [csv_text(value) if isinstance(value, str) else value for value in values]
