"""Estimate of the time that runs take on this machine, from a few steps of each kind of fleet among them."""

import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

from icl_bench.harness.training.evaluate import evaluate, evaluation_pieces
from icl_bench.harness.training.fleet import pack
from icl_bench.harness.training.trainer import WARM_STEPS, Machine, Trainer
from icl_bench.runs.spec import RunSpec

LARGEST_BATCH = {"cpu": 16, "cuda": None}
"""Most examples of a member in a measured step; a processor takes as long for each example, however many there are."""
EXAMPLES = 64
"""Examples of each cell that are evaluated for the measurement."""
LEAST_SECONDS = 0.1
"""Shortest time of a measurement, which repeats its work at least twice."""


def seconds_for(runs: Sequence[RunSpec], machine: Machine, fleet_size: int) -> float:
    """Estimate the seconds of runs in fleets of at most `fleet_size`, one after the other; takes seconds itself."""
    kinds: dict[tuple[str, int], list[list[RunSpec]]] = {}
    for fleet in pack(runs, fleet_size):
        kinds.setdefault((fleet[0].fleet_key(), len(fleet)), []).append(fleet)
    return sum(len(fleets) * fleet_seconds(fleets[0], machine) for fleets in kinds.values())


def fleet_seconds(fleet: Sequence[RunSpec], machine: Machine) -> float:
    """Estimate the seconds of one fleet: set-up, steps, validations and test."""
    spec, started = fleet[0], time.perf_counter()
    most = LARGEST_BATCH[machine.device.type] or spec.train.batch
    train = [member.train.model_copy(update={"batch": min(most, spec.train.batch)}) for member in fleet]
    smaller = [member.model_copy(update={"train": own}) for member, own in zip(fleet, train, strict=True)]
    trainer = Trainer(smaller, machine)
    wait_for(machine.device)
    set_up = time.perf_counter() - started
    ratio = spec.train.batch / trainer.spec.train.batch
    cells = range(len(trainer.cells))
    steps = sum(trainer.cell_of_step.count(cell) * step_seconds(trainer, cell, ratio) for cell in cells)
    examples = spec.evaluation.points * spec.evaluation.validation + spec.evaluation.examples
    return set_up + steps + examples * example_seconds(trainer)


def step_seconds(trainer: Trainer, cell: int, ratio: float) -> float:
    """Estimate the seconds of a step on a cell with `ratio` times the examples; the optimiser costs the same."""
    queue, members = trainer.queues[cell], len(trainer.specs)
    refill = measured_seconds(lambda: trainer.run_refill(cell), trainer.device, trainer.captured) / queue.steps
    update = measured_seconds(lambda: repeat_update(trainer, cell), trainer.device, trainer.captured)
    losses = torch.zeros(members, device=trainer.device)
    optimiser = measured_seconds(lambda: trainer.optimiser.step(losses), trainer.device, captured=False)
    optimiser = min(update, optimiser)
    return refill * ratio + optimiser + (update - optimiser) * ratio


def repeat_update(trainer: Trainer, cell: int) -> None:
    """Update all members on the first batch in the queue of a cell."""
    trainer.queues[cell].next_row.zero_()
    trainer.run_update(cell)


def example_seconds(trainer: Trainer) -> float:
    """Measure the seconds that the evaluation of one example of every cell takes."""
    total = 0.0
    for cell in trainer.task.eval_cells:
        stream = trainer.make_stream(cell.label, "val")
        pieces = list(evaluation_pieces(stream, EXAMPLES))
        work = partial(evaluate, trainer.working_model, stream, pieces)
        total += measured_seconds(work, trainer.device, captured=False)
    return total / EXAMPLES


def measured_seconds(work: Callable[[], object], device: torch.device, captured: bool) -> float:
    """Measure the seconds of a piece of work, after one run to warm up and those that a graph needs."""
    for _ in range(1 + WARM_STEPS * captured):
        work()
    wait_for(device)
    started, done = time.perf_counter(), 0
    while done < 2 or time.perf_counter() - started < LEAST_SECONDS:
        work()
        done += 1
        wait_for(device)
    return (time.perf_counter() - started) / done


def wait_for(device: torch.device) -> None:
    """Wait until the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def in_words(seconds: float) -> str:
    """Return a duration with two digits and its unit.

    >>> [in_words(seconds) for seconds in (7.4, 95, 5400, 400_000)]
    ['7 s', '1.6 min', '1.5 h', '4.6 days']
    """
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.2g} {unit}"
    return f"{max(1.0, seconds):.0f} s"
