"""Training of one fleet to its end: validations on the way, one test."""

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from icl_bench.harness.evaluate import CellOutcome
from icl_bench.harness.record import MetricPoint
from icl_bench.harness.reporter import Progress
from icl_bench.harness.trainer import Trainer

SOLVED = 0.99


class FleetScores(NamedTuple):
    """What a trained fleet reached."""

    cells: dict[str, CellOutcome]
    """Test scores by cell."""
    floors: dict[str, list[tuple[str, float]]]
    """Best trivial solver and its accuracy, by cell and member."""
    died_at: list[int]
    """Step at which a member's loss or gradient was first not finite; 0 where it never was."""
    solved_at: list[int | None]
    """First validated step with an accuracy of at least 0.99."""
    seconds: float
    """Wall time of training and evaluation."""
    examples_per_second: float
    """Training examples a second, summed over members."""


def train_fleet(
    trainer: Trainer,
    report: Callable[[Progress], None],
    log: Callable[[int, MetricPoint], None],
    report_every: float = 0.25,
) -> FleetScores:
    """Train to the end and test once.

    Args:
        trainer: The fleet.
        report: Called about every `report_every` seconds.
        log: Called with a member's index and its metrics at each validation.
        report_every: Seconds.
    """
    started = time.perf_counter()
    steps, batch, members = trainer.spec.train.steps, trainer.spec.train.batch, len(trainer.specs)
    solved: list[int | None] = [None] * members
    training, last_report = 0.0, started
    for begin, end in validation_spans(steps, trainer.spec.evaluation.points):
        counted_from = time.perf_counter()
        told, told_at = torch.zeros(2, members, dtype=torch.float64), begin
        for step in range(begin + 1, end + 1):
            trainer.step()
            if time.perf_counter() - last_report >= report_every or step == end:
                sums = trainer.sums.to("cpu", copy=True)
                loss, accuracy = ((sums - told) / (step - told_at)).tolist()
                seconds = training + time.perf_counter() - counted_from
                report(Progress(step, steps, loss, accuracy, step * batch * members / seconds, seconds))
                last_report, told, told_at = time.perf_counter(), sums, step
        training += time.perf_counter() - counted_from
        means = trainer.take_means(end - begin)
        for member, point in enumerate(points(end, means, trainer.validate())):
            if solved[member] is None and point.accuracy >= SOLVED:
                solved[member] = end
            log(member, point)
    cells, floors = trainer.test()
    return FleetScores(
        cells,
        floors,
        trainer.optimiser.died_at.tolist(),
        solved,
        time.perf_counter() - started,
        steps * batch * members / training,
    )


def validation_spans(steps: int, count: int) -> Iterator[tuple[int, int]]:
    """Cut the steps into spans that each end in a validation."""
    ends = sorted({max(1, round(steps * (i + 1) / count)) for i in range(count)})
    yield from zip([0, *ends], ends, strict=False)


def points(step: int, means: tuple[list[float], list[float]], by_cell: dict[str, list[float]]) -> Iterator[MetricPoint]:
    """A line of metrics for each member; numbers that are not finite are written as 0."""
    for member, (loss, accuracy) in enumerate(zip(*means, strict=True)):
        own = {label: values[member] for label, values in by_cell.items()}
        yield MetricPoint(
            step=step,
            train_loss=loss if loss == loss and abs(loss) != float("inf") else 0.0,
            train_accuracy=accuracy,
            accuracy=sum(own.values()) / len(own),
            by_cell=own,
        )
