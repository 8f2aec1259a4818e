"""Run records made by hand."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from icl_bench.errors import SpecError
from icl_bench.reports.analysis import Section, analyse
from icl_bench.runs.outline import FinishedRuns
from icl_bench.runs.record import (
    CellScore,
    GroupScore,
    Manifest,
    MetricPoint,
    RunRecord,
    RunResult,
    StateReport,
    Status,
    WorkReport,
)
from icl_bench.schema import content_hash, parse_spec

LOADS = (4, 8, 16)
VERSIONS = {
    "icl-bench": "0.1.0",
    "python": "3.11.9",
    "torch": "2.13.0",
    "triton": "3.9.0",
    "numpy": "2.2.0",
    "cuda": "none",
}


def make_record(
    arch: str = "power:p=2",
    seed: int = 0,
    lr: float = 3e-3,
    accuracies: Sequence[float] = (1.0, 0.9, 0.8),
    *,
    task: str = "assoc-recall",
    loads: Sequence[int] = LOADS,
    floors: Sequence[float] | None = None,
    status: Status = "ok",
    detail: str | None = None,
    state: int | None = 10_000,
    validation: float | None = None,
    device: str = "Test CPU",
    versions: Mapping[str, str] = VERSIONS,
    revision: str | None = "0123456789ab",
    model: Mapping[str, Any] | None = None,
    arch_params: Mapping[str, Any] | None = None,
    command: str = "icl-bench run assoc-recall",
) -> RunRecord:
    """A record with one cell a load; a run that failed has no cells and no validation."""
    ok = status == "ok"
    spec = make_spec(task, arch, seed, lr, model or {}, arch_params)
    digest = content_hash([spec, arch, task], "test")
    mean = sum(accuracies) / len(accuracies) if validation is None else validation
    floors = floors or [1 / max(load, 1) for load in loads]
    cells = [make_cell(*row) for row in zip(loads, accuracies, floors, strict=True)] if ok else []
    return RunRecord(
        spec=spec,
        manifest=Manifest(
            versions=versions,
            device=device,
            threads=2,
            host="Linux x86_64, 2 cores",
            revision=revision,
            impl="auto",
            fleet_size=1,
            command=command,
            started="2026-11-20T10:00:00+00:00",
        ),
        result=RunResult(
            id=digest[:16],
            digest=digest,
            task=task,
            arch=arch,
            load_name="pairs",
            seed=seed,
            lr=lr,
            status=status,
            detail=detail,
            params=94_000 if status in ("ok", "diverged") else 0,
            state=None if state is None else StateReport(elements=state, bytes=4 * state, length=64),
            work=WorkReport(weights=180_000.0, state=2.0 * (state or 0)),
            steps=500,
            seconds=20.0,
            examples_per_second=1600.0,
            cells=tuple(cells),
            files={},
        ),
        metrics=tuple(make_point(step, min(1.0, mean * step / 500)) for step in range(100, 501, 100)) if ok else (),
    )


def make_spec(
    task: str, arch: str, seed: int, lr: float, model: Mapping[str, Any], arch_params: Mapping[str, Any] | None
) -> dict[str, Any]:
    """A specification as plain data, as stored."""
    defaults = {"heads": 4, "kv_heads": 4, "d_key": 16, "d_value": 16, "conv": 4}
    parts = []
    for part in arch.split("+"):
        try:
            name, params, _ = parse_spec(part)
        except SpecError:
            name, params = part, {}
        parts.append({"name": name, "version": 1, "params": {**defaults, **params, **(arch_params or {})}})
    return {
        "task": {"name": task.partition(":")[0], "version": 1, "params": {"vocab": 512, "length": 64}},
        "arch": parts,
        "model": {"d_model": 64, "layers": 2, "mlp": 2.0, "tied": True, **model},
        "train": {"steps": 500, "batch": 64, "lr": lr, "weight_decay": 0.1},
        "evaluation": {"examples": 1024, "validation": 256, "points": 5},
        "seed": seed,
        "data_seed": seed,
        "precision": "float32",
    }


def make_cell(load: int, accuracy: float, floor: float) -> CellScore:
    """A cell with two groups, the nearer one easier."""
    near = min(1.0, accuracy * 1.05)
    return CellScore(
        label=f"pairs={load}",
        load=load,
        length=64,
        accuracy=accuracy,
        exact_match=accuracy**load,
        loss=0.1,
        floor=floor,
        floor_solver="any-value",
        state_bits=load * math.log2(240),
        scored=load,
        answers=load or None,
        alphabet=240,
        groups={
            "gap 8..15": GroupScore(accuracy=2 * accuracy - near, count=512 * load),
            "gap 4..7": GroupScore(accuracy=near, count=512 * load),
        },
    )


def make_point(step: int, accuracy: float) -> MetricPoint:
    """A validation."""
    return MetricPoint(step=step, train_loss=1.0, train_accuracy=accuracy, accuracy=accuracy, by_cell={})


def noise(seed: int, scale: float = 0.01) -> float:
    """A small number that depends on the seed alone."""
    return scale * math.sin(12.9898 * (seed + 1))


def comparison(seeds: int = 5) -> list[RunRecord]:
    """Four architectures, well separated."""
    plan = {
        "power:p=2": (17_408, (1.0, 0.99, 0.96)),
        "linear": (2_048, (0.98, 0.93, 0.70)),
        "window:w=16": (4_096, (0.50, 0.32, 0.20)),
        "softmax": (16_384, (1.0, 1.0, 1.0)),
    }
    return [
        make_record(arch, seed, accuracies=[max(0.0, min(1.0, a + noise(seed))) for a in means], state=state)
        for arch, (state, means) in plan.items()
        for seed in range(seeds)
    ]


def sections_of(records: Sequence[RunRecord]) -> tuple[Section, ...]:
    """The sections of a report on these records."""
    return analyse(FinishedRuns.of(records))


def section_of(records: Sequence[RunRecord]) -> Section:
    """The only section of a report on these records."""
    (section,) = sections_of(records)
    return section


def with_cells(run: RunRecord, **fields: Any) -> RunRecord:
    """A record whose cells have other values."""
    cells = tuple(cell.model_copy(update=fields) for cell in run.result.cells)
    return run.model_copy(update={"result": run.result.model_copy(update={"cells": cells})})


def several(arch: str, accuracy: float, spread: float = 0.01, **fields: Any) -> list[RunRecord]:
    """Five seeds of an architecture about an accuracy."""
    values = {seed: min(1.0, accuracy + noise(seed, spread)) for seed in range(5)}
    return [make_record(arch, seed, accuracies=(value,) * 3, **fields) for seed, value in values.items()]
