"""Table of outcomes and of causes that probes show, for the tuning runs of a store trained with --keep probes.

    python benchmarks/causes.py STORE [STORE ...]

Each row is an architecture at a gain: its runs by outcome, and how many of those that did not train show each cause.
Beside them: the median over these runs of the largest gradient norm over the median one, and of the first gradient norm
of the queries over that of the values, both of the first layer; and the median over the runs that trained of the last
effective rank of the expanded keys, over the most that there can be, in the first and in the last layer.
"""

import sys
from collections import Counter, defaultdict
from pathlib import Path
from statistics import median
from typing import NamedTuple

from icl_bench.errors import SpecError
from icl_bench.reports.parts.causes import CAUSES, NOT_FAILED, OUTCOMES
from icl_bench.runs.columns import run_values
from icl_bench.runs.probes import Cause, Probes, causes_of
from icl_bench.runs.store import Store
from icl_bench.runs.store.kept_records import kept_probes


class Probed(NamedTuple):
    """A run with what its probes show."""

    outcome: str
    causes: tuple[Cause, ...]
    spike: float
    """Largest norm of the whole gradient over the median one."""
    balance: float
    """First gradient norm of the queries of the first layer over that of the values."""
    ranks: tuple[float, ...]
    """Last effective rank of the expanded keys in the first and in the last layer; none without expanded keys."""


def probed_runs(stores: list[Path], tuning_from: int = 1000) -> dict[tuple[str, str, float], list[Probed]]:
    """Return the runs of tuning seeds that keep probes, by task, architecture and gain."""
    found: dict[tuple[str, str, float], list[Probed]] = defaultdict(list)
    for path in stores:
        store = Store(path)
        for run_id in store.ids():
            record = store.load(run_id)
            row = run_values(record)
            if record.spec["seed"] < tuning_from or row["outcome"] is None:
                continue
            try:
                probes = kept_probes(store, record.result).until(record.result.steps)
            except SpecError:
                continue
            seen = Probed(str(row["outcome"]), tuple(causes_of(probes, record.spec["train"]["clip"])), *ratios(probes))
            found[record.result.task, record.result.arch, float(str(row["gain"]))].append(seen)
    return found


def ratios(probes: Probes) -> tuple[float, float, tuple[float, ...]]:
    """Return the spike, the balance and the ranks of a run."""
    norms = probes.column("gradient")[0]
    q, v = probes.column("gradient.q")[0], probes.column("gradient.v")[0]
    ranks = [values[-1] if values else 0.0 for values in probes.column("key_rank")]
    return max(norms) / max(1e-30, median(norms)), q[0] / max(1e-30, v[0]), (*ranks[:1], *ranks[-1:])


def main(stores: list[Path]) -> None:
    """Print the table as Markdown."""
    print("| architecture | gain | runs |", " | ".join(OUTCOMES), "|", " | ".join(CAUSES), "| spike | q / v | ranks |")
    print("| :-- |", " --: |" * (5 + len(OUTCOMES) + len(CAUSES)))
    for (_, arch, gain), runs in sorted(probed_runs(stores).items()):
        outcomes = Counter(run.outcome for run in runs)
        causes = Counter(cause for run in runs if run.outcome not in NOT_FAILED for cause in run.causes)
        spike, balance = median(run.spike for run in runs), median(run.balance for run in runs)
        trained = [run.ranks for run in runs if run.outcome == "trained"]
        ranks = ", ".join(f"{median(layer):.2f}" for layer in zip(*trained, strict=True)) or "none"
        counts = [*(outcomes[name] for name in OUTCOMES), *(causes[name] for name in CAUSES)]
        shown = [f"`{arch}`", f"{gain:g}", len(runs), *counts, f"{spike:.3g}", f"{balance:.2g}", ranks]
        print("|", " | ".join(map(str, shown)), "|")


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
