"""Recall and parity of every architecture in a small training: does it learn, above the guess?

    python benchmarks/learning.py [--device cuda] [--precision bfloat16] [--workers 12] [--only ARCH]
        [--json FILE]

Width 32, batch 64, six members at once: rates of 1e-3, 3e-3 and 1e-2, two seeds each. Recall ends where both seeds of a
rate are right in 99 % of their training examples. Mixers without a convolution stand behind `gated-conv`; those with a
vector of state are also tried with 256 channels. About 100 s on one H200 with 12 processes.
"""

import argparse
import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch

from icl_bench.architectures import ARCHITECTURES
from icl_bench.harness.environment import pick_device
from icl_bench.harness.resolve import Request, expand_request
from icl_bench.harness.training.trainer import Machine, Trainer

RECALL = "assoc-recall:pairs=4,length=16,vocab=48"
SHORT_RECALL = "assoc-recall:pairs=2,length=8,vocab=40"
PARITY = "state-tracking:symbols=16,extrapolate=64"
RATES, SEEDS = (1e-3, 3e-3, 1e-2), (0, 1)
BEHIND_CONVOLUTION = {
    "based", "differential", "fox", "gla", "gsa", "hgrn", "hgrn2", "lstm", "m-lstm", "min-gru", "min-lstm", "mla",
    "nsa", "path", "re-based", "ret-net", "ttt-linear", "ttt-mlp",
}  # fmt: skip
VECTORS = ("hgrn", "lstm", "min-gru", "min-lstm")
ONE_LAYER = ("delta-net", "delta-net:conv=0", "gla", "linear", "linear:conv=0", "softmax", "softmax:conv=0")
TRACKING = (
    "differential", "gated-delta-product", "log-linear-delta", "log-linear-delta:negative_eigenvalues=true", "lstm",
    "mamba-3", "min-gru", "min-lstm", "mla:d_rope=4", "nsa", "rwkv-7", "s-lstm", "ttt-linear",
)  # fmt: skip
UPDATES, MOST_UPDATES = 600, 4000
EXAMPLES = "evaluation.examples=512"


class Case(NamedTuple):
    """A training: task, architecture, layers, and the number of updates at most."""

    task: str
    arch: str
    layers: int
    updates: int


def cases() -> Iterator[Case]:
    """Return the trainings, those of every mixer first and those that take long last."""
    yield Case(SHORT_RECALL, "gated-conv:conv=8", 2, UPDATES)
    for name in ARCHITECTURES:
        if name not in (*VECTORS, "gated-conv"):
            yield Case(RECALL, ("gated-conv+" if name in BEHIND_CONVOLUTION else "") + name, 2, UPDATES)
    yield from (Case(RECALL, arch, 1, UPDATES) for arch in ONE_LAYER)
    yield from (Case(PARITY, arch, 1, 1500) for arch in TRACKING)
    for name in VECTORS:
        for width in ("", ":d_inner=256"):
            yield Case(RECALL, f"gated-conv+{name}{width}", 2, MOST_UPDATES)


def train(case: Case, device: str, precision: str) -> dict[str, Any]:
    """Train six members; return the updates and the test accuracies of all cells, by rate and seed."""
    torch.set_num_threads(1)
    settings = ("model.d_model=32", f"model.layers={case.layers}", f"train.steps={case.updates}", "train.batch=64")
    request = Request(
        case.task, [case.arch], seeds=SEEDS, lrs=RATES, precision=precision, settings=(*settings, EXAMPLES)
    )
    trainer = Trainer(expand_request(request), Machine(torch.device(device)))
    look = max(25, case.updates // 20)
    for step in range(1, case.updates + 1):
        trainer.step()
        if step % look == 0 and case.task != PARITY:
            seen = trainer.take_means(look)[1]
            if max(min(seen[i : i + len(SEEDS)]) for i in range(0, len(seen), len(SEEDS))) > 0.99:
                break
    cells = [[round(cell.accuracy, 3) for cell in member] for member in trainer.test([trainer.working_model])]
    return {**case._asdict(), "updates": step, "test": cells}


def main() -> None:
    """Run the trainings in processes of their own on one device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--workers", type=int, default=12)
    parser.add_argument("--only", action="append", default=[], help="an architecture; repeatable")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = str(pick_device(options.device))
    todo = [case for case in cases() if not options.only or case.arch in options.only]
    rows = []
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        for done in as_completed([pool.submit(train, case, device, options.precision) for case in todo]):
            rows.append(done.result())
            print(json.dumps(rows[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
