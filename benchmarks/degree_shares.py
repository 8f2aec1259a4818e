"""Table of the shares of lower degrees at the end of training, for the measuring runs of a store that keep probes.

    python benchmarks/degree_shares.py STORE

Each row is a task, an architecture and a number of updates: the seeds whose accuracy is at least .8 of the best one's,
and for each layer and share its median over them, with the least and the largest.
"""

import sys
from collections import defaultdict
from pathlib import Path
from statistics import median

from icl_bench.runs.kept import lacking
from icl_bench.runs.probes import Probes
from icl_bench.runs.record import RunRecord
from icl_bench.runs.store import Store
from icl_bench.runs.store.kept_records import kept_probes

TUNING_FROM = 1000
"""Least seed of a tuning run."""
TRAINED = 0.8
"""Least accuracy of a seed that counts, over the best of its entry."""


def groups_of(store: Store) -> dict[tuple[str, str, int], list[RunRecord]]:
    """Return the measuring runs that ended well and keep probes, by task, architecture and number of updates."""
    found: dict[tuple[str, str, int], list[RunRecord]] = defaultdict(list)
    for run_id in store.ids():
        record = store.load(run_id)
        measured = record.result.seed < TUNING_FROM and record.result.status == "ok"
        if measured and not lacking(record.result.files, ("probes",)):
            steps: int = record.spec["train"]["steps"]
            found[record.result.task, record.result.arch, steps].append(record)
    return found


def trained(runs: list[RunRecord]) -> list[RunRecord]:
    """Return the runs whose accuracy is at least `TRAINED` of the best."""
    best = max(run.result.accuracy for run in runs)
    return [run for run in runs if run.result.accuracy >= TRAINED * best]


def last_shares(probes: Probes) -> dict[str, float]:
    """Return the last value of each share by layer; none of an architecture without learned shares."""
    names = [name for name in probes.names if ".theta" in name]
    return {name: probes.column(name)[0][-1] for name in names}


def main() -> None:
    """Print the table."""
    store = Store(Path(sys.argv[1]))
    print("| entry | seeds | share | median | least | largest |", "| :-- | --: | :-- | --: | --: | --: |", sep="\n")
    for (task, arch, steps), runs in sorted(groups_of(store).items()):
        kept = trained(runs)
        ends = [last_shares(kept_probes(store, run.result)) for run in kept]
        for name in ends[0]:
            values = [end[name] for end in ends]
            shown = f"{median(values):.2f} | {min(values):.2f} | {max(values):.2f}"
            title = f"{task}, {arch}, {steps:,} updates".replace("|", " ")
            print(f"| {title} | {len(kept)}/{len(runs)} | {name} | {shown} |")


if __name__ == "__main__":
    main()
