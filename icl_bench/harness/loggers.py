"""Pass runs to trackio, wandb (offline) or tensorboard while they train; no error of theirs can make a run fail.

A logger has one open log for each run in training, in the process that the user started, whatever the engine. A log
receives losses and validations as they are reported, and at the end those that no report brought, the test scores and
the sizes. A logger that raises an exception is named once and receives nothing more. Its files are in the folder
`logs/` of the store. Values have the names of `runs/columns.py`; that of a cell ends in the label of the cell.
"""

import importlib.util
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from icl_bench.errors import RecordError, SpecError
from icl_bench.isolation import environment_variable
from icl_bench.runs.columns import CELL_COLUMNS, RUN_COLUMNS, power_of, run_values
from icl_bench.runs.events import Progress, Reporter
from icl_bench.runs.record import MetricPoint, RunRecord, RunResult
from icl_bench.runs.spec import RunSpec
from icl_bench.runs.store import Store
from icl_bench.schema import nearest

PROJECT = "icl-bench"
SECONDS_BETWEEN_LOSSES = 5.0
"""Seconds between two training losses of a fleet that are logged; validations are logged always."""
LOG = logging.getLogger("icl_bench")

Values = Mapping[str, float]


class LoggedRun(NamedTuple):
    """A run as a log names and describes it."""

    id: str
    task: str
    arch: str
    seed: int
    config: Mapping[str, Any]
    """The setting of the run, flat: columns, then fields of the specification such as `train.steps`."""


class RunLog(Protocol):
    """The open log of one run; every method may raise any exception."""

    def write(self, step: int, values: Values) -> None:
        """Write values at a step; steps never fall."""

    def end(self, step: int, scores: Values) -> None:
        """Write the test scores and sizes of the finished run, and close the log."""

    def stop(self) -> None:
        """Close the log of a run that is not finished."""


Logger = Callable[[LoggedRun], RunLog]
"""A function that opens the log of a run; it may raise any exception."""


class TrackioLog:
    """A run of a local trackio database."""

    def __init__(self, folder: Path, about: LoggedRun) -> None:
        self.folder = os.environ.get("TRACKIO_DIR", str(folder))
        with environment_variable("TRACKIO_DIR", self.folder):
            import trackio

            self.run = trackio.init(
                project=PROJECT, group=about.task, name=about.id, config=dict(about.config), resume="allow",
                auto_log_gpu=False, auto_log_cpu=False, embed=False,
            )  # fmt: skip

    def write(self, step: int, values: Values) -> None:
        """Write values at a step."""
        with environment_variable("TRACKIO_DIR", self.folder):
            self.run.log(dict(values), step=step)

    def end(self, step: int, scores: Values) -> None:
        """Write the scores as values of the last step, since trackio has no summary, and close the log."""
        self.write(step, scores)
        self.stop()

    def stop(self) -> None:
        """Close the log."""
        with environment_variable("TRACKIO_DIR", self.folder):
            self.run.finish()


class WandbLog:
    """A run in an offline folder, which `wandb sync` uploads."""

    def __init__(self, folder: Path, about: LoggedRun) -> None:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        self.run = wandb.init(
            project=PROJECT, group=about.task, id=about.id, name=f"{about.arch} seed {about.seed}",
            config=dict(about.config), mode="offline", dir=str(folder), reinit="create_new",
        )  # fmt: skip

    def write(self, step: int, values: Values) -> None:
        """Write values at a step."""
        self.run.log(dict(values), step=step)

    def end(self, step: int, scores: Values) -> None:
        """Write the scores as the summary of the run, and close the log."""
        self.run.summary.update(dict(scores))
        self.stop()

    def stop(self) -> None:
        """Close the log."""
        self.run.finish()


class TensorboardLog:
    """A folder of event files."""

    def __init__(self, folder: Path, about: LoggedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.config = about.config
        self.writer = SummaryWriter(str(folder / about.id), flush_secs=10)

    def write(self, step: int, values: Values) -> None:
        """Write values at a step."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def end(self, step: int, scores: Values) -> None:
        """Write the scores beside the setting, as hyperparameters, and close the log."""
        kinds = bool | int | float
        config = {key: value if isinstance(value, kinds) else str(value) for key, value in self.config.items()}
        self.writer.add_hparams(config, dict(scores), run_name=".")
        self.stop()

    def stop(self) -> None:
        """Close the log."""
        self.writer.close()


LOGGERS: Mapping[str, Callable[[Path, LoggedRun], RunLog]] = {
    "tensorboard": TensorboardLog,
    "trackio": TrackioLog,
    "wandb": WandbLog,
}
"""Loggers by the name of the package that each needs."""


def make_loggers(names: Sequence[str], store: Store) -> dict[str, Logger]:
    """Return the loggers of these names; raise SpecError if one is unknown or its package is not installed."""
    for name in names:
        if name not in LOGGERS:
            raise SpecError(
                f"--log is one of {', '.join(LOGGERS)}; got {name!r}; {nearest(name, LOGGERS)}choose one of them"
            )
        if importlib.util.find_spec(name) is None:
            raise SpecError(
                f"--log {name} needs the package {name}, which is not installed; run "
                f"`pip install icl-bench[{name}]` or leave the option out"
            )
    return {name: partial(LOGGERS[name], store.root / "logs" / name) for name in names}


class OpenLogs:
    """The open logs of runs in training, by logger; a logger that raises an exception is named once and dropped."""

    def __init__(self, loggers: Mapping[str, Logger]) -> None:
        self.loggers = dict(loggers)
        self.logs: dict[tuple[str, str], RunLog] = {}  # by logger and id of the run
        self.steps: dict[str, int] = {}  # last step written, by id of the run
        self.validated: dict[str, int] = {}  # last validation written, by id of the run

    def write(self, about: LoggedRun, step: int, values: Values) -> None:
        """Write finite values at a step of a run to every logger; a step below one that is written is ignored."""
        known = {name: value for name, value in values.items() if math.isfinite(value)}
        if known and step >= self.steps.get(about.id, 0):
            self.steps[about.id] = step
            self.each(about, lambda log: log.write(step, known))

    def validate(self, about: LoggedRun, point: MetricPoint) -> None:
        """Write a validation, unless it is written already."""
        if point.step > self.validated.get(about.id, -1):
            self.validated[about.id] = point.step
            self.write(about, point.step, validation_values(point))

    def end(self, record: RunRecord) -> None:
        """Write what is missing of a finished run, and close its logs."""
        about = about_record(record)
        for point in record.metrics:
            self.validate(about, point)
        step = self.steps.get(about.id, record.result.steps)
        self.each(about, lambda log: log.end(step, final_values(record)))
        self.forget(about.id)

    def stop(self) -> None:
        """Close the logs of runs that are not finished."""
        for name, run_id in list(self.logs):
            if log := self.logs.pop((name, run_id), None):
                self.guard(name, log.stop)
        self.steps.clear()
        self.validated.clear()

    def forget(self, run_id: str) -> None:
        """Forget a run that has ended."""
        self.logs = {key: log for key, log in self.logs.items() if key[1] != run_id}
        self.steps.pop(run_id, None)
        self.validated.pop(run_id, None)

    def each(self, about: LoggedRun, use: Callable[[RunLog], None]) -> None:
        """Use the log of a run of every logger; open it first where it is not open."""

        def opened(name: str) -> None:
            if (name, about.id) not in self.logs:
                self.logs[name, about.id] = self.loggers[name](about)
            use(self.logs[name, about.id])

        for name in list(self.loggers):
            self.guard(name, partial(opened, name))

    def guard(self, name: str, action: Callable[[], None]) -> None:
        """Do something with a logger; drop the logger if that raises an exception."""
        try:
            with redirect_stdout(sys.stderr):  # standard output is reserved for results
                action()
        except (Exception, SystemExit) as error:  # a third-party package may raise anything, but no run may fail by it
            self.loggers.pop(name, None)
            self.logs = {key: log for key, log in self.logs.items() if key[0] != name}
            LOG.warning("logger %s is dropped: %s", name, " ".join(f"{type(error).__name__}: {error}".split()))


class LoggingReporter:
    """Passes every event to another reporter, and to loggers what happens to runs."""

    def __init__(
        self,
        reporter: Reporter,
        store: Store,
        loggers: Mapping[str, Logger],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.reporter, self.store, self.logs, self.clock = reporter, store, OpenLogs(loggers), clock
        self.expected, self.started, self.lost = reporter.expected, reporter.started, reporter.lost
        self.last: dict[str, float] = {}  # time of the last loss that was logged, by the first run of the fleet

    def planned(self, specs: Sequence[RunSpec], missing: Sequence[RunSpec]) -> None:
        """Pass the event on; say how runs that are done already can be logged."""
        self.reporter.planned(specs, missing)
        if done := len(specs) - len(missing):
            named = ", ".join(self.logs.loggers)
            LOG.warning("%d runs are done already; `icl-bench runs export --to NAME` logs them (%s)", done, named)

    def progressed(self, specs: Sequence[RunSpec], progress: Progress) -> None:
        """Pass the event on; log validations, and losses every few seconds."""
        self.reporter.progressed(specs, progress)
        due = self.clock() - self.last.get(specs[0].id, -math.inf) >= SECONDS_BETWEEN_LOSSES
        for member, spec in enumerate(specs):
            if progress.validations:
                self.logs.validate(about_spec(spec), progress.validations[member])
            elif due:
                losses = {"train_loss": progress.loss[member], "train_accuracy": progress.accuracy[member]}
                self.logs.write(about_spec(spec), progress.step, losses)
        if due:
            self.last[specs[0].id] = self.clock()

    def finished(self, results: Sequence[RunResult]) -> None:
        """Pass the event on, and log the end of each run."""
        self.reporter.finished(results)
        for result in results:
            try:
                self.logs.end(self.store.load(result.id))
            except RecordError as error:
                LOG.warning("not logged: %s", error)

    def closed(self) -> None:
        """Pass the event on; close the logs of runs that were interrupted."""
        self.reporter.closed()
        self.logs.stop()


def about_spec(spec: RunSpec) -> LoggedRun:
    """Describe a run by its specification."""
    return about_run(spec.id, spec.task.label, spec.arch_label, spec.model_dump(mode="json"))


def about_record(record: RunRecord) -> LoggedRun:
    """Describe a run by its record."""
    return about_run(record.result.id, record.result.task, record.result.arch, record.spec)


def about_run(run_id: str, task: str, arch: str, spec: Mapping[str, Any]) -> LoggedRun:
    """Describe a run, with its whole specification as one flat dictionary."""
    train = spec["train"]
    config: dict[str, Any] = {"id": run_id, "task": task, "arch": arch, "p": power_of(spec)}
    config |= {"lr": train["lr"], "weight_decay": train["weight_decay"]}
    for name, value in spec.items():
        if isinstance(value, Mapping) and name != "task":
            config |= {f"{name}.{key}": inner for key, inner in value.items()}
        elif name not in ("task", "arch"):
            config[name] = value
    return LoggedRun(run_id, task, arch, spec["seed"], config)


def validation_values(point: MetricPoint) -> dict[str, float]:
    """Return the values of a validation by column, those of a cell with its label."""
    means = {"train_loss": point.train_loss, "train_accuracy": point.train_accuracy, "validation": point.accuracy}
    return means | {f"validation/{label}": accuracy for label, accuracy in point.by_cell.items()}


def final_values(record: RunRecord) -> dict[str, float]:
    """Return the numbers of a finished run by column: sizes, mean scores, scores of cells with their labels."""
    result, own = record.result, run_values(record)
    means = {"accuracy": result.accuracy, "exact_match": result.exact_match, "floor": result.floor}
    found = {name: own[name] for name in RUN_COLUMNS if name not in ("seed", "data_seed", "lr", "weight_decay")}
    found |= means if result.cells else {}
    for cell in result.cells:
        found |= {f"{name}/{cell.label}": getattr(cell, name) for name in CELL_COLUMNS if name not in ("cell", "load")}
    return {name: value for name, value in found.items() if isinstance(value, int | float)}


def log_finished(records: Iterable[RunRecord], loggers: Mapping[str, Logger]) -> list[str]:
    """Log finished runs from their records; return the names of the loggers that did not fail."""
    logs = OpenLogs(loggers)
    for record in records:
        logs.end(record)
    return list(logs.loggers)
