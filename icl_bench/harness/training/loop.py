"""The training of one fleet to its end: steps (see trainer.py), validations and checkpoints, and one test."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors

from icl_bench.harness.interruption import is_interrupted, raise_if_interrupted
from icl_bench.harness.training.executed import executed_operations
from icl_bench.harness.training.graphs import Pace
from icl_bench.harness.training.keep import kept_files, probes_file
from icl_bench.harness.training.optimiser import LOSS_LIMIT
from icl_bench.harness.training.probes import Probe, probe_marks
from icl_bench.harness.training.results import FleetScores, MemberScores
from icl_bench.harness.training.roster import Roster
from icl_bench.harness.training.trainer import Trainer
from icl_bench.harness.training.validator import Validation, Validator
from icl_bench.runs.events import Progress, Report
from icl_bench.runs.kept import KEPT_FILES
from icl_bench.runs.probes import ProbePoint
from icl_bench.runs.record import SOLVED, MetricPoint
from icl_bench.runs.store.checkpoint import Checkpoints, FleetState, Saved
from icl_bench.runs.store.faults import reach
from icl_bench.runs.store.parsing import LARGEST_HEADER

LOG = logging.getLogger("icl_bench")


class StartedValidation(NamedTuple):
    """A validation that may be under way."""

    step: int
    held: list[int]
    """Index in the fleet of each member that is validated."""
    means: tuple[list[float], list[float]]
    """Mean training loss and accuracy of each of these members over the span."""
    result: Callable[[], Validation]
    """Waits for the validation."""


class TrainingLoop:
    """The progress of a fleet in training; holds the only reference to its trainer, which `narrow` replaces.

    Args:
        trainer: The fleet, before its first step.
        report: Called with the progress after the first step, about every `report_every` seconds from then on, and at
            the end of each span.
        log: Called with the index of a member and its metrics at each validation.
        report_every: Seconds between reports.
        checkpoints: Where states are saved; None to save none.
    """

    def __init__(
        self,
        trainer: Trainer,
        report: Report,
        log: Callable[[int, MetricPoint], None],
        report_every: float = 0.25,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        self.trainer, self.report, self.log, self.checkpoints = trainer, report, log, checkpoints
        self.specs, self.spec, self.roster = trainer.specs, trainer.spec, Roster(len(trainer.specs))
        self.solved_at: list[int | None] = [None] * self.roster.size
        self.stopped_at = [0] * self.roster.size  # step at which a member was accurate enough to stop
        self.metrics: list[list[MetricPoint]] = [[] for _ in range(self.roster.size)]
        self.points: list[list[ProbePoint]] = [[] for _ in range(self.roster.size)]
        self.probe = Probe(trainer) if "probes" in trainer.machine.keep else None
        self.marks = probe_marks(self.spec.train.steps) if self.probe else set[int]()
        self.validator, self.pace = Validator(trainer), Pace(trainer.device)
        self.validation: StartedValidation | None = None
        now = time.perf_counter()
        self.report_every, self.last_report = report_every, -math.inf  # the first step tells that the fleet is built
        self.started = now  # earlier by the time of previous parts, if the run was interrupted
        self.training_seconds, self.training_since = 0.0, now
        self.latest: Progress | None = None
        self.began = 0  # step from which this process goes on

    def run(self) -> FleetScores:
        """Train from the newest usable checkpoint and test; if a signal asks to stop, save and raise `Interrupted`."""
        self.resume()
        self.began = self.trainer.done
        try:
            for begin, end in validation_spans(self.spec.train.steps, self.spec.evaluation.points):
                if end > self.trainer.done and self.over:
                    self.repeat_points(end)
                elif end > self.trainer.done:
                    self.train(begin, end)
                    self.start_validation(begin, end)
                    self.save_if_due()
            reach("trained")
            self.finish_validation()
            self.hold(self.roster.with_stopped(self.trainer, self.specs))
            cells = self.roster.widen(self.trainer.test(self.validator.models()), ())
        finally:
            self.validator.close()
        reach("tested")
        diverged_at = self.roster.diverged_at(self.trainer)
        examples = self.trainer.done * self.spec.train.batch * self.roster.size
        exploded = [any(point.train_loss > LOSS_LIMIT.margin for point in points) for points in self.metrics]
        stopped_at = [0 if diverged else step for diverged, step in zip(diverged_at, self.stopped_at, strict=True)]
        members = zip(cells, diverged_at, self.solved_at, exploded, stopped_at, strict=True)
        return FleetScores(
            members=[MemberScores(*fields) for fields in members],
            params=self.trainer.model.parameters_per_member(),
            seconds=self.seconds,
            examples_per_second=examples / self.training_seconds,
            kept=self.kept_files(),
            executed=executed_operations(self.spec, self.trainer.machine, self.roster.size),
        )

    def kept_files(self) -> list[dict[str, bytes]]:
        """Return the files that each member keeps; probes, alone, also of members that diverged."""
        files = [dict(own) for own in self.roster.widen(kept_files(self.trainer), {})]
        if self.probe is not None:
            for own, spec, points in zip(files, self.specs, self.points, strict=True):
                own[KEPT_FILES["probes"]] = probes_file(spec, self.probe.names, points)
        return files

    @property
    def seconds(self) -> float:
        """Wall time so far, over all parts of the run."""
        return time.perf_counter() - self.started

    def resume(self) -> None:
        """Continue from the newest usable checkpoint, if there is one; of several ranks the first one has it."""
        found, ranks = self.newest_usable(), self.trainer.machine.ranks
        if ranks is not None:
            state = ranks.share(found.state.model_dump_json().encode() if found else b"")
            tensors = ranks.share(found.tensors if found else b"")
            found = Saved(FleetState.model_validate_json(state), tensors) if state else None
        if found is not None:
            self.continue_from(found.state, safetensors.load(found.tensors))

    def newest_usable(self) -> Saved | None:
        """Return the newest checkpoint that this fleet can continue from; None if there is none."""
        if self.checkpoints is None:
            return None
        wanted = self.roster.state(self.trainer)
        largest = sum(tensor.nbytes for tensor in wanted.values()) + LARGEST_HEADER
        for saved in self.checkpoints.saved(largest):
            tensors = tensors_of(saved, wanted)
            if tensors is None:
                continue
            if name := self.roster.spoiled(self.trainer, tensors):
                LOG.warning("checkpoint skipped: step %d has numbers in %r that are none", saved.state.step, name)
                continue
            return saved
        return None

    def continue_from(self, state: FleetState, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take the fleet to the state of a checkpoint."""
        self.hold(self.roster.restore(self.trainer, state.step, tensors))
        LOG.info("continued from step %d of %d", state.step, self.spec.train.steps)
        self.started -= state.seconds
        self.training_seconds = state.training
        self.solved_at = list(state.solved_at)
        if self.probe is not None:
            self.points = [list(points) for points in state.probes] or self.points
        for member, points in enumerate(state.metrics):
            for point in points:
                self.add_point(member, point)
        self.stop_accurate()

    def add_point(self, member: int, point: MetricPoint) -> None:
        """Log a validation, and keep it for the next checkpoint."""
        self.metrics[member].append(point)
        self.log(member, point)

    def train(self, begin: int, end: int) -> None:
        """Make the steps of a span that are not done yet."""
        self.training_since = time.perf_counter()
        reported_sums, reported_at = torch.zeros(2, len(self.roster.held), dtype=torch.float64), begin
        for step in range(self.trainer.done + 1, end + 1):
            self.trainer.step()
            self.pace.count_step()
            if self.probe is not None and step in self.marks:
                self.probe.record()
            reach("step-done")
            if time.perf_counter() - self.last_report >= self.report_every or step == end:
                self.pace.wait()
                sums = self.trainer.monitor.sums.to("cpu", copy=True)  # [2, members held]
                self.latest = self.progress(step, (sums - reported_sums) / (step - reported_at))
                self.report(self.latest)
                self.last_report, reported_sums, reported_at = time.perf_counter(), sums, step
            if step < end:
                self.save_if_due()
        self.count_training_time()

    def progress(self, step: int, means: torch.Tensor) -> Progress:
        """Return the progress at a step; `means` of loss and accuracy since the last report are [2, members held]."""
        loss, accuracy = (self.roster.widen(values, float("nan")) for values in means.tolist())
        seconds = self.training_seconds + time.perf_counter() - self.training_since
        examples = step * self.spec.train.batch * self.roster.size
        return Progress(step, self.spec.train.steps, loss, accuracy, examples / seconds, seconds, self.began)

    def count_training_time(self) -> None:
        """Add the time since the last count to the time of training."""
        now = time.perf_counter()
        self.training_seconds += now - self.training_since
        self.training_since = now

    def start_validation(self, begin: int, end: int) -> None:
        """Begin to measure all members at the end of a span, stop accurate ones, and drop idle members if many."""
        self.finish_validation()
        means = self.trainer.take_means(end - begin)
        self.validation = StartedValidation(end, self.roster.held, means, self.validator.start())
        if not self.validator.beside or self.spec.train.stop_above is not None:
            self.finish_validation()
        self.stop_accurate()
        self.take_probes()
        self.hold(self.roster.narrow(self.trainer))
        if self.over and self.latest is not None:
            self.report(self.latest._replace(steps=end))
        self.training_since = time.perf_counter()
        reach("validated")

    def stop_accurate(self) -> None:
        """Stop each member whose last validation is above the accuracy at which its run ends."""
        limit = self.spec.train.stop_above
        if limit is None:
            return
        diverged_at = self.roster.diverged_at(self.trainer)
        for member, points in enumerate(self.metrics):
            if points and points[-1].accuracy > limit and not diverged_at[member]:
                self.stopped_at[member] = points[-1].step
        for place, member in enumerate(self.roster.held):
            if self.stopped_at[member]:
                self.trainer.optimiser.state.active[place] = False

    @property
    def over(self) -> bool:
        """True once no member is updated any more, of which some were accurate enough to stop."""
        return any(self.stopped_at) and not self.roster.active(self.trainer)

    def repeat_points(self, step: int) -> None:
        """Repeat the last validation of the members that diverged, after the end of the others."""
        for member, stopped in enumerate(self.stopped_at):
            if not stopped:
                self.add_point(member, self.repeated_point(member, step, {}))

    def finish_validation(self) -> None:
        """Keep and report the measurements of the validation that was started last, if it is not finished.

        A member that diverged and was dropped repeats its last measurement; one that has stopped has no more of them.
        """
        if self.validation is None:
            return
        step, held, means, result = self.validation
        by_cell, self.validation = result(), None
        points = dict(zip(held, metric_points(step, means, by_cell), strict=True))
        for member in range(self.roster.size):
            if self.stopped_at[member]:
                continue
            point = points.get(member) or self.repeated_point(member, step, by_cell)
            if self.solved_at[member] is None and point.accuracy >= SOLVED:
                self.solved_at[member] = step
            self.add_point(member, point)
        if self.latest is not None:
            self.report(self.latest._replace(validations=[own[-1] for own in self.metrics]))

    def hold(self, trainer: Trainer) -> None:
        """Go on with this trainer."""
        if trainer is self.trainer:
            return
        self.validator.close()
        self.trainer, self.validator = trainer, Validator(trainer)
        if self.probe is not None:
            self.probe = Probe(trainer)

    def take_probes(self) -> None:
        """Add the probes since the last call to those of the members held; one that has stopped has no more of them."""
        if self.probe is not None:
            for member, taken in zip(self.roster.held, self.probe.take(), strict=True):
                last = self.stopped_at[member] or self.spec.train.steps
                self.points[member] += [point for point in taken if point.step <= last]

    def repeated_point(self, member: int, step: int, labels: Mapping[str, object]) -> MetricPoint:
        """Return the last metrics of a member again, at a later step; zeros if it was dropped before the first."""
        if self.metrics[member]:
            return self.metrics[member][-1].model_copy(update={"step": step})
        return MetricPoint(
            step=step, train_loss=0.0, train_accuracy=0.0, accuracy=0.0, by_cell=dict.fromkeys(labels, 0.0)
        )

    def save_if_due(self) -> None:
        """Save the state if a checkpoint is due or a signal asked to stop; in the second case, raise `Interrupted`."""
        if self.trainer.machine.ranks:
            self.trainer.machine.ranks.hear()
        if self.checkpoints is not None and (is_interrupted() or self.checkpoints.due()):
            self.count_training_time()
            self.finish_validation()
            self.take_probes()
            state = FleetState(
                origin=self.checkpoints.origin,
                step=self.trainer.done,
                seconds=self.seconds,
                training=self.training_seconds,
                solved_at=tuple(self.solved_at),
                metrics=tuple(tuple(points) for points in self.metrics),
                probes=() if self.probe is None else tuple(map(tuple, self.points)),
            )
            tensors = {name: tensor.cpu().contiguous() for name, tensor in self.roster.state(self.trainer).items()}
            self.checkpoints.save(state, safetensors.save(tensors))
            self.training_since = time.perf_counter()
        raise_if_interrupted()


def tensors_of(saved: Saved, wanted: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor] | None:
    """Return the tensors of a checkpoint; None, which is logged, if they cannot be read or are not those `wanted`."""
    try:
        tensors = safetensors.load(saved.tensors)
    except SafetensorError as error:
        LOG.warning("checkpoint skipped: step %d cannot be read: %s", saved.state.step, " ".join(str(error).split()))
        return None
    if shapes(tensors) == shapes(wanted):
        return tensors
    LOG.warning("checkpoint skipped: step %d has other tensors than this version saves", saved.state.step)
    return None


def shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Return the shape and type of each tensor."""
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


def validation_spans(steps: int, count: int) -> Iterator[tuple[int, int]]:
    """Cut the steps into at most `count` spans (begin, end], as even as whole steps allow."""
    ends = sorted({max(1, round(steps * (i + 1) / count)) for i in range(count)})
    yield from zip([0, *ends], ends, strict=False)


def metric_points(
    step: int, means: tuple[list[float], list[float]], by_cell: Mapping[str, list[float]]
) -> Iterator[MetricPoint]:
    """Yield the metrics of each member, from its mean training loss and accuracy and its validation by cell.

    A loss or training accuracy that is not finite is written as 0.
    """
    for member, pair in enumerate(zip(*means, strict=True)):
        loss, accuracy = (value if math.isfinite(value) else 0.0 for value in pair)
        validated = {label: accuracies[member] for label, accuracies in by_cell.items()}
        yield MetricPoint(
            step=step,
            train_loss=loss,
            train_accuracy=accuracy,
            accuracy=sum(validated.values()) / len(validated),
            by_cell=validated,
        )
