"""Table of the tuning seeds of a study that train at each learning rate, and of those that were lost.

    python benchmarks/training_rates.py STORE --study degree-curriculum

Each row is an architecture at one combination of the axes of the study. A seed trains by the classes of
`icl_bench.runs.probes.ending_of`; lost is one whose loss or gradient was not finite, or exploded. In brackets the
median of the validated updates until a validation accuracy of .9, where half of the seeds reach it.
"""

import argparse
from collections import defaultdict
from pathlib import Path
from statistics import median_low

from icl_bench.harness.study.file import Study, load_study
from icl_bench.harness.study.protocol import finished_study
from icl_bench.runs.columns import run_values
from icl_bench.runs.record import RunRecord
from icl_bench.runs.store import Store

LEVEL = 0.9
"""Validation accuracy that counts as reached."""


def place_of(study: Study, record: RunRecord) -> str:
    """Return the architecture of a run and the values of the axes of its study."""
    fields = (axis.split(".") for axis in study.axes)
    values = ", ".join(f"{field}={record.spec[section].get(field, 'default')}" for section, field in fields)
    return f"{record.result.arch}, {values}" if values else record.result.arch


def updates_to_level(record: RunRecord) -> float:
    """Return the first validated update with a validation accuracy of `LEVEL`; infinite for a run without one."""
    return next((float(point.step) for point in record.metrics if point.accuracy >= LEVEL), float("inf"))


def cell(records: list[RunRecord]) -> str:
    """Return the seeds that train at a rate, those that were lost, and the updates of the middle one."""
    outcomes = [run_values(record)["outcome"] for record in records]
    lost = sum(outcome in ("nan", "explode") for outcome in outcomes)
    updates = median_low([updates_to_level(record) for record in records])
    return f"{outcomes.count('trained')}" + f", {lost} lost" * (lost > 0) + f" ({updates:g})" * (updates < float("inf"))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--study", required=True)
    arguments = parser.parse_args()
    study = load_study(arguments.study)
    found: dict[str, dict[float, list[RunRecord]]] = defaultdict(lambda: defaultdict(list))
    for record in finished_study(study, Store(arguments.store)).tuning:
        found[place_of(study, record)][record.result.lr].append(record)
    rates = sorted({rate for rows in found.values() for rate in rows})
    print("| by rate |", *(f" {rate:.2g} |" for rate in rates), sep="")
    print("| :-- |" + " --: |" * len(rates))
    for place, rows in sorted(found.items()):
        print(f"| {place} |", *(f" {cell(rows[rate]) if rate in rows else '-'} |" for rate in rates), sep="")


if __name__ == "__main__":
    main()
