"""Steps of a language model on one GPU and on all, measured by turns, and where the difference lies.

    torchrun --nproc-per-node 2 benchmarks/text_ranks.py [--case softmax-1k] [--seconds 0.5] [--rounds 5] [--json FILE]

The cases are those of `benchmarks/text.py`. A round measures each of these for some time, after a meeting of all ranks:

* alone: the first rank takes the whole batch, the others wait;
* beside: every rank takes its share as if it were alone, all at once, so that the slowest says what ranks could reach;
* strong: ranks train together on that batch, a share for each;
* weak: ranks train together on a batch for each, as large as the one of a rank alone;
* sum: the sum of all gradients, nothing else.

Milliseconds are medians over the rounds, of the slowest rank; `times one GPU` are tokens a second over those of a rank
alone. The losses are means over the first steps; those of `alone` and `strong` are on equal rows.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from text import CASES, TOKENS, WIDTH, spec_of, whole_rows
from torch import distributed

from icl_bench.harness.environment import device_name, git_revision, pick_device, versions
from icl_bench.harness.training.memory import release_memory
from icl_bench.harness.training.ranks import Ranks, joined_ranks
from icl_bench.harness.training.trainer import Machine, Trainer

WARM_STEPS, SUMS = 4, 50
ALONE, BESIDE, STRONG, WEAK, SUM = "alone", "beside", "strong", "weak", "sum"


def trainers(case: str, options: argparse.Namespace, ranks: Ranks) -> dict[str, Trainer]:
    """Return the trainers that are measured, after their first steps; only the first rank has one for itself."""

    def made(tokens: int, together: bool) -> Trainer:
        machine = Machine(ranks.device, ranks=ranks if together else None)
        trainer = Trainer([spec_of(*CASES[case], options.width, tokens)], machine)
        for _ in range(WARM_STEPS):
            trainer.step()
        return trainer

    batch = whole_rows(options.tokens, CASES[case][1])
    found = {ALONE: made(batch, False)} if not ranks.rank else {}
    distributed.barrier()
    found[BESIDE] = made(batch // ranks.size, False)
    found[STRONG] = made(batch, True)
    found[WEAK] = made(batch * ranks.size, True)
    return found


def measure(case: str, options: argparse.Namespace, ranks: Ranks) -> dict[str, Any]:
    """Return the milliseconds of a case by name, of each rank and round, and how many times one GPU all of them are."""
    found = trainers(case, options, ranks)
    losses = {name: trainer.take_means(WARM_STEPS)[0][0] for name, trainer in found.items() if name != BESIDE}
    gradients = found[STRONG].optimiser.buffers.gradients
    calls: dict[str, Callable[[], None]] = {name: trainer.step for name, trainer in found.items()}
    calls[SUM] = lambda: ranks.add(gradients)
    times: dict[str, list[float]] = {name: [] for name in (ALONE, BESIDE, STRONG, WEAK, SUM)}
    counts: dict[str, int] = {}
    for round_number in range(options.rounds + 1):
        for name, own in times.items():
            distributed.barrier()
            if name in calls:
                own.append(milliseconds(calls[name], counts.get(name, 3), ranks.device))
            if not round_number:  # all ranks take as many steps as the first one asks for
                steps = 0 if ranks.rank else max(3, round(1e3 * options.seconds / own[-1]))
                counts[name] = SUMS if name == SUM else int(ranks.share(str(steps).encode()))
                own.clear()
    gathered: list[Any] = [None] * ranks.size
    distributed.all_gather_object(gathered, times)
    slowest = {name: max(statistics.median(part[name]) for part in gathered if part[name]) for name in times}
    return {
        "case": case,
        "tokens": whole_rows(options.tokens, CASES[case][1]),
        "losses": losses,
        "ms": {name: round(taken, 3) for name, taken in slowest.items()},
        "times one GPU": {
            STRONG: round(slowest[ALONE] / slowest[STRONG], 3),
            WEAK: round(ranks.size * slowest[ALONE] / slowest[WEAK], 3),
        },
        "ms by rank and round": [{name: [round(t, 3) for t in own] for name, own in part.items()} for part in gathered],
    }


def milliseconds(call: Callable[[], None], count: int, device: torch.device) -> float:
    """Return the time of a call, one of `count` after one that does not count."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    call()
    wait()
    started = time.perf_counter()
    for _ in range(count):
        call()
    wait()
    return 1e3 * (time.perf_counter() - started) / count


def main() -> None:
    """Measure the cases that were asked for; the first rank prints a line for each."""
    parser = argparse.ArgumentParser(description="Measure ranks that train together beside one alone.")
    parser.add_argument("--case", action="append", choices=[*CASES], help="repeatable")
    parser.add_argument("--seconds", type=float, default=0.5, help="of each measurement in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--tokens", type=int, default=TOKENS, help="tokens of a step of a rank alone")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    ranks = joined_ranks(pick_device(options.device))
    if ranks is None:
        parser.error("start several processes by torchrun")
    rows = []
    for case in options.case or ["softmax-1k", "power-16k"]:
        rows.append(measure(case, options, ranks))
        release_memory(ranks.device)
        if not ranks.rank:
            print(json.dumps(rows[-1]), flush=True)
            about = {"device": device_name(ranks.device), "revision": git_revision(), "versions": dict(versions())}
            if options.json:
                options.json.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    ranks.leave()


if __name__ == "__main__":
    main()
