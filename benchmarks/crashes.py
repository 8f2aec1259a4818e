"""Kill a sweep by SIGKILL at random moments, repeat the command, and count lost, doubled and different runs.

    python benchmarks/crashes.py FOLDER --moments 100

Each moment has a store of its own: a sweep of 40 runs is killed and given again, in half of the cases killed at another
moment too, then given again until it ends. Its store is compared with that of an undisturbed sweep, record by record,
without times and machine names. A state is saved every 50 ms of training, so that many kills hit a fleet that has a
checkpoint.
"""

import argparse
import random
import shutil
import signal
import sys
from collections import Counter
from pathlib import Path

from icl_bench.runs.store import Store
from icl_bench.runs.store.merge import first_difference

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.harness.fork_server import ForkServer

SWEEP = [
    "run", "assoc-recall:length=16,pairs=[2|4],vocab=64", "--arch", "linear", "--arch", "softmax", "--seeds", "0..19",
    "--fleet", "4", "--device", "cpu", "--set", "train.steps=20", "--set", "train.batch=4", "--set", "model.d_model=16",
    "--set", "evaluation.examples=8", "--set", "evaluation.validation=4", "--set", "evaluation.points=2",
]  # fmt: skip
SAVE_OFTEN = {"ICL_BENCH_CHECKPOINT_EVERY": "0.05"}


def main() -> None:
    """Kill, repeat, compare and count."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--moments", type=int, default=100)
    asked = parser.parse_args()
    server, found = ForkServer(), Counter[str]()
    whole = fresh(asked.folder / "whole")
    left_alone = server.run(whole, SWEEP, SAVE_OFTEN)
    assert left_alone.status == 0, left_alone.err
    print(f"left alone: {left_alone.seconds:.1f} s, {len(list(Store(whole / 'icl-runs').ids()))} runs", flush=True)
    for moment in range(asked.moments):
        drawn = random.Random(moment)
        folder = fresh(asked.folder / "killed")
        for _ in range(drawn.choice((1, 2))):
            killed = server.run(folder, SWEEP, SAVE_OFTEN, after=drawn.uniform(0, left_alone.seconds))
            found["killed" if killed.status == -signal.SIGKILL else "ended before"] += 1
            found["continued from a checkpoint"] += killed.err.count("continued from step")
        done = server.run(folder, SWEEP, SAVE_OFTEN)
        found["continued from a checkpoint"] += done.err.count("continued from step")
        assert done.status == 0, done.err
        compare(Store(folder / "icl-runs"), Store(whole / "icl-runs"), found)
        if moment % 10 == 9:
            print(moment + 1, dict(found), flush=True)
    server.close()


def fresh(folder: Path) -> Path:
    """Make the folder empty and return it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def compare(ours: Store, theirs: Store, found: Counter[str]) -> None:
    """Count lost, doubled and different runs, and files left over."""
    here, wanted = list(ours.ids()), list(theirs.ids())
    found["lost"] += len(set(wanted) - set(here))
    found["doubled"] += len(here) - len(set(here)) + len(set(here) - set(wanted))
    for run_id in set(here) & set(wanted):
        found["different"] += first_difference(ours.load(run_id), theirs.load(run_id)) is not None
    found["equal stores"] += here == wanted
    found["left over"] += sum(len(list((ours.root / name).glob("*"))) for name in ("attempts", "checkpoints"))


if __name__ == "__main__":
    main()
