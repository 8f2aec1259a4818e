"""Training of one fleet to its end: validations and checkpoints on the way, one test."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from safetensors import torch as safetensors

from icl_bench.harness.interruption import check, noted
from icl_bench.harness.training.evaluate import CellOutcome
from icl_bench.harness.training.trainer import Trainer
from icl_bench.runs.events import Progress
from icl_bench.runs.record import MetricPoint
from icl_bench.runs.store.checkpoint import Checkpoints, FleetState, Saved
from icl_bench.runs.store.faults import reach

SOLVED = 0.99

LOG = logging.getLogger("icl_bench")


class FleetScores(NamedTuple):
    """What a trained fleet reached."""

    cells: dict[str, CellOutcome]
    """Test scores by cell."""
    floors: dict[str, list[tuple[str, float]]]
    """Best trivial solver and its accuracy, by cell and member."""
    died_at: list[int]
    """Step at which a member was found to have diverged; 0 where it never was."""
    solved_at: list[int | None]
    """First validated step with an accuracy of at least 0.99."""
    seconds: float
    """Wall time of training and evaluation, over all parts of a run that was interrupted."""
    examples_per_second: float
    """Training examples a second, summed over members."""


def train_fleet(
    trainer: Trainer,
    report: Callable[[Progress], None],
    log: Callable[[int, MetricPoint], None],
    report_every: float = 0.25,
    checkpoints: Checkpoints | None = None,
) -> FleetScores:
    """Train to the end and test once, from the last checkpoint where there is one.

    Args:
        trainer: The fleet, before its first step.
        report: Called about every `report_every` seconds.
        log: Called with a member's index and its metrics at each validation.
        report_every: Seconds.
        checkpoints: Where states are kept; None to keep none.

    Raises:
        Interrupted: where a signal asked to stop while signals are deferred; the state is saved.
    """
    course = Course(trainer, report, log, report_every, checkpoints)
    course.resume()
    for begin, end in validation_spans(trainer.spec.train.steps, trainer.spec.evaluation.points):
        if end > trainer.done:
            course.train(begin, end)
            course.validate(begin, end)
            course.keep()
    reach("trained")
    cells, floors = trainer.test()
    reach("tested")
    examples = trainer.spec.train.steps * trainer.spec.train.batch * len(trainer.specs)
    return FleetScores(cells, floors, trainer.died_at, course.solved, course.seconds, examples / course.training)


class Course:
    """How far a fleet has come, and who is told; the arguments are those of `train_fleet`."""

    def __init__(
        self,
        trainer: Trainer,
        report: Callable[[Progress], None],
        log: Callable[[int, MetricPoint], None],
        report_every: float,
        checkpoints: Checkpoints | None,
    ) -> None:
        self.trainer, self.report, self.log, self.checkpoints = trainer, report, log, checkpoints
        self.report_every, self.last_report = report_every, time.perf_counter()
        members = len(trainer.specs)
        self.solved: list[int | None] = [None] * members
        self.metrics: list[list[MetricPoint]] = [[] for _ in range(members)]
        self.training, self.counted_from = 0.0, time.perf_counter()
        self.started = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Wall time so far, over all parts of the run."""
        return time.perf_counter() - self.started

    def resume(self) -> None:
        """Continue from the newest checkpoint that can be used, if any."""
        saved = self.checkpoints.load() if self.checkpoints else None
        if saved is None:
            return
        tensors, own = safetensors.load(saved.tensors), self.trainer.state()
        if shapes(tensors) != shapes(own):
            LOG.warning("checkpoint passed over: it has other tensors than this version keeps; the fleet starts anew")
            return
        self.trainer.restore(saved.state.step, tensors)
        self.take_over(saved)

    def take_over(self, saved: Saved) -> None:
        """Go on with the clock and the metrics of a checkpoint."""
        LOG.warning("continued from step %d of %d", saved.state.step, self.trainer.spec.train.steps)
        self.started -= saved.state.seconds
        self.training = saved.state.training
        self.solved = list(saved.state.solved_at)
        for member, points in enumerate(saved.state.metrics):
            for point in points:
                self.tell(member, point)
        last = [own[-1] for own in saved.state.metrics if own]
        if len(last) == len(self.solved):
            # What is said of members that were dropped before the checkpoint: their last measurement.
            self.trainer.means = [[point.train_loss for point in last], [point.train_accuracy for point in last]]
            labels = last[0].by_cell
            self.trainer.accuracies = {label: [point.by_cell[label] for point in last] for label in labels}

    def tell(self, member: int, point: MetricPoint) -> None:
        """Log a validation, and remember it for the next checkpoint."""
        self.metrics[member].append(point)
        self.log(member, point)

    def train(self, begin: int, end: int) -> None:
        """The steps of one span that are not yet done."""
        self.counted_from = time.perf_counter()
        told, told_at = torch.zeros(2, len(self.solved), dtype=torch.float64), begin
        for step in range(self.trainer.done + 1, end + 1):
            self.trainer.step()
            reach("step-done")
            if time.perf_counter() - self.last_report >= self.report_every or step == end:
                sums = self.trainer.totals()
                self.report(self.progress(step, (sums - told) / (step - told_at)))
                self.last_report, told, told_at = time.perf_counter(), sums, step
            if step < end:
                self.keep()
        self.count_time()

    def progress(self, step: int, means: torch.Tensor) -> Progress:
        """What is reported at a step; means are those of loss and accuracy since the last report, [2, M]."""
        loss, accuracy = means.tolist()
        seconds = self.training + time.perf_counter() - self.counted_from
        examples = step * self.trainer.spec.train.batch * len(loss)
        return Progress(step, self.trainer.spec.train.steps, loss, accuracy, examples / seconds, seconds)

    def count_time(self) -> None:
        """Add the time since the last count to that of training."""
        now = time.perf_counter()
        self.training += now - self.counted_from
        self.counted_from = now

    def validate(self, begin: int, end: int) -> None:
        """Measure at the end of a span."""
        means = self.trainer.take_means(end - begin)
        for member, point in enumerate(points(end, means, self.trainer.validate())):
            if self.solved[member] is None and point.accuracy >= SOLVED:
                self.solved[member] = end
            self.tell(member, point)
        self.counted_from = time.perf_counter()
        reach("validated")

    def keep(self) -> None:
        """Save the state where that is due or a signal asked to stop; then raise `Interrupted` in the latter case."""
        if self.checkpoints is not None and (noted() or self.checkpoints.due()):
            self.count_time()
            state = FleetState(
                origin=self.checkpoints.origin,
                step=self.trainer.done,
                seconds=self.seconds,
                training=self.training,
                solved_at=tuple(self.solved),
                metrics=tuple(tuple(own) for own in self.metrics),
            )
            tensors = {name: tensor.cpu().contiguous() for name, tensor in self.trainer.state().items()}
            self.checkpoints.save(state, safetensors.save(tensors))
            self.counted_from = time.perf_counter()
        check()


def shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Shape and type of each tensor."""
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


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
