"""Count the bits of facts that trained weights hold, from the runs of `memorization:exposures=...` in a store.

    python benchmarks/stored_bits.py STORE

One line for each cell of a run: entities, exposures, architecture, seed, learning rate, bits that the facts have, bits
that the weights hold (keys · attributes · (log2 values - loss / ln 2)), and these over all parameters and over those
without the embedding. Source of the measure: Allen-Zhu, "Physics of Language Models: Part 4.1" (arXiv 2512.17351).
"""

import math
import sys
from pathlib import Path

from icl_bench.harness.resolve import make_task
from icl_bench.runs.spec import Component
from icl_bench.runs.store import Store
from icl_bench.tasks.memorization import Memorization


def main() -> None:
    """Print the bits of every finished run of the store."""
    print("keys", "exposures", "arch", "seed", "lr", "bits", "held", "a_parameter", "without_embedding", sep="\t")
    store = Store(Path(sys.argv[1]))
    for record in map(store.load, store.ids()):
        spec, result = record.spec, record.result
        task = make_task(Component(**spec["task"], label=result.task))
        if not isinstance(task, Memorization) or task.exposures is None:
            continue
        tables = task.vocabulary * spec["model"]["d_model"] * (1 if spec["model"]["tied"] else 2)
        for cell in result.cells:
            facts = cell.load * task.attributes
            held = max(0.0, facts * (math.log2(task.values) - cell.loss / math.log(2)))
            shares = [f"{held / count:.3f}" for count in (result.params, result.params - tables)]
            row = [cell.load, task.exposures, result.arch, result.seed, f"{result.lr:g}"]
            print(*row, round(facts * math.log2(task.values)), round(held), *shares, sep="\t")


if __name__ == "__main__":
    main()
