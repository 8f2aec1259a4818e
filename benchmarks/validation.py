"""Hold every task, and settings that change its code path, against the shallow solvers; write their results.

    python benchmarks/validation.py --workers 8 --trained [--settings "k-hop memorization"]

writes `benchmarks/results/validation.json`, from which the page on validation is made, with the processor time that
each setting took. `--settings` validates these alone and leaves the results of the others as they are.
"""

import argparse
import datetime
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from icl_bench.commands.validate import TRAINED_PER_TESTED, document
from icl_bench.harness.environment import device_name, git_revision, pick_device, versions
from icl_bench.harness.resolve import make_task, task_component
from icl_bench.harness.validation.gate import Sample, names_answers, validate_task
from icl_bench.harness.validation.trained import train_solvers
from icl_bench.tasks import TASKS

VARIANTS = (
    "assoc-recall:variant=zoology,length=64,pairs=8,vocab=512",
    "assoc-recall:readout=deferred,gap=2,pairs=[4|8]",
    "assoc-recall:dilute=3",
    "copy:order=reverse",
    "depo:nodes=12,hops=8,name_tokens=2,shown=true",
    "flip-flop:length=64,ignore=0.5",
    "in-context-recall:length=96,keys=5,motif=2,noise=0.25",
    "linear-regression:variant=garg,dims=5,points=11",
    "markov-icl:length=40,order=2,alphabet=5,queries=8",
    "memorization:exposures=100,keys=1000",
    "multi-stack:operations=24,stacks=3,shown=true",
    "ngram-lookup:side=prefix",
    "selective-copy:variant=mad",
    "set-disjointness:first=4,second=32,alphabet=600",
    "state-tracking:group=parity",
    "state-tracking:group=a5",
    "variable-tracking:length=128,chains=4,hops=4,ask=last,variables=64",
)
"""Settings that are held against the solvers besides the defaults."""
UNKNOWN = "unknown"
"""Stands for the revision of code outside a checkout."""
RESULTS = Path(__file__).parent / "results" / "validation.json"


def validate_setting(examples: int, trained: bool, revision: str, text: str) -> dict[str, Any]:
    """Return the verdicts on one task as typed."""
    torch.set_num_threads(1)
    begun = time.process_time()
    sample = Sample(TRAINED_PER_TESTED * examples, examples)
    found = validate_task(make_task(task_component(text)), sample, train_solvers(text) if trained else {})
    seconds = round(time.process_time() - begun)
    print(text, sum(len(cell.above) for cell in found), "above;", seconds, "s", flush=True)
    return {**document(text, found), "processor_seconds": seconds, "revision": revision}


def machine() -> dict[str, object]:
    """Return processor, versions and date of this run."""
    device = f"{device_name(pick_device('cpu'))}, {os.cpu_count()} cores"
    return {"device": device, "versions": versions(), "date": datetime.datetime.now(datetime.UTC).date().isoformat()}


def main() -> None:
    """Validate all settings in processes of their own."""
    parser = argparse.ArgumentParser(description="Hold every task against the shallow solvers; write their results.")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--examples", type=int, default=4000)
    parser.add_argument("--trained", action="store_true")
    parser.add_argument("--settings", default="", help="specs, separated by spaces; all by default")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    revision = git_revision() or UNKNOWN
    every = sorted([*(name for name in TASKS if names_answers(TASKS[name]())), *VARIANTS])
    chosen = options.settings.split() or every
    former = json.loads(options.output.read_text()) if options.settings else {"runs": {}, "tasks": []}
    tasks = {task["task"]: task for task in former["tasks"] if task["task"] in every}
    with ProcessPoolExecutor(options.workers, get_context("spawn")) as pool:
        for task in pool.map(partial(validate_setting, options.examples, options.trained, revision), chosen):
            tasks[task["task"]] = task
    found = {
        "examples": options.examples,
        "ok": all(task["ok"] for task in tasks.values()),
        "runs": {**former["runs"], revision: machine()},
        "tasks": [tasks[name] for name in sorted(tasks)],
    }
    options.output.write_text(json.dumps(found, indent=1, default=float) + "\n")


if __name__ == "__main__":
    main()
