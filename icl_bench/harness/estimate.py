"""About how long runs will take on this machine, from a few steps of every kind of fleet among them."""

import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

from icl_bench.harness.training.evaluate import batches, evaluate
from icl_bench.harness.training.fleet import Machine, pack
from icl_bench.harness.training.graphs import WARM_STEPS
from icl_bench.harness.training.trainer import Trainer
from icl_bench.runs.spec import RunSpec

LARGEST_BATCH = {"cpu": 16, "cuda": None}
"""Examples of a member in a measured step: a processor takes as long for each, whatever their number."""
EXAMPLES = 64
"""Examples evaluated for the measurement, of each cell."""
LONG_ENOUGH = 0.1
"""Seconds after which a measurement ends, once done twice."""


def seconds_for(runs: Sequence[RunSpec], machine: Machine, fleet_size: int) -> float:
    """Seconds for runs in fleets of at most that size, one fleet after the other; takes some of them itself."""
    known: dict[tuple[str, int], float] = {}
    total = 0.0
    for fleet in pack(runs, fleet_size):
        kind = (fleet[0].fleet_key(), len(fleet))
        if kind not in known:
            known[kind] = fleet_seconds(fleet, machine)
        total += known[kind]
    return total


def fleet_seconds(fleet: Sequence[RunSpec], machine: Machine) -> float:
    """Seconds for one fleet: set-up, steps, validations and test."""
    spec, started = fleet[0], time.perf_counter()
    most = LARGEST_BATCH[machine.device.type] or spec.train.batch
    trainer = Trainer([smaller(own, most) for own in fleet], machine.device, machine.impl, machine.graphs)
    wait(machine.device)
    set_up = time.perf_counter() - started
    whole = spec.train.batch / trainer.spec.train.batch
    steps = [trainer.order.count(which) * step_seconds(trainer, which, whole) for which in range(len(trainer.cells))]
    examples = spec.evaluation.points * spec.evaluation.validation + spec.evaluation.examples
    return set_up + sum(steps) + examples * example_seconds(trainer)


def smaller(spec: RunSpec, most: int) -> RunSpec:
    """The same run with at most so many examples a step."""
    return spec.model_copy(update={"train": spec.train.model_copy(update={"batch": min(most, spec.train.batch)})})


def step_seconds(trainer: Trainer, which: int, whole: float) -> float:
    """Seconds of a step on one cell with `whole` times the examples; the optimiser costs the same for any number."""
    device, supply = trainer.device, trainer.supplies[which]
    refill = timed(lambda: trainer.run(trainer.refill, trainer.refills, which), device, trainer.captured) / supply.steps
    update = timed(lambda: again(trainer, which), device, trainer.captured)
    losses = torch.zeros(len(trainer.present), device=device)
    own = min(update, timed(lambda: trainer.optimiser.step(losses), device, captured=False))
    return refill * whole + own + (update - own) * whole


def again(trainer: Trainer, which: int) -> None:
    """An update on the first batch that there is."""
    trainer.supplies[which].slot.zero_()
    trainer.run(trainer.update, trainer.updates, which)


def example_seconds(trainer: Trainer) -> float:
    """Seconds to evaluate one example of every cell."""
    total = 0.0
    for cell in trainer.task.eval_cells:
        feed = trainer.feed(cell.label, "val")
        pieces = list(batches(feed, EXAMPLES, len(trainer.present)))
        total += timed(partial(evaluate, trainer.working, feed, pieces), trainer.device, captured=False)
    return total / EXAMPLES


def timed(work: Callable[[], object], device: torch.device, captured: bool) -> float:
    """Seconds of a piece of work, after once to warm up, and as often as a graph needs."""
    for _ in range(1 + WARM_STEPS * captured):
        work()
    wait(device)
    started, done = time.perf_counter(), 0
    while done < 2 or time.perf_counter() - started < LONG_ENOUGH:
        work()
        done += 1
        wait(device)
    return (time.perf_counter() - started) / done


def wait(device: torch.device) -> None:
    """Let the device finish."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def in_words(seconds: float) -> str:
    """A duration with two digits.

    >>> in_words(7.4), in_words(95), in_words(5400), in_words(400_000)
    ('7 s', '1.6 min', '1.5 h', '4.6 days')
    """
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.2g} {unit}"
    return f"{max(1.0, seconds):.0f} s"
