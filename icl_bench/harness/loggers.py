"""Loggers: finished runs passed on to trackio, wandb (offline) or tensorboard. None of them can fail a run.

A logger is told of a run when it is committed, in the process that was started, so that neither engine nor resumption
matters to it. What it raises is said once, and it is asked no more. Its files lie in `logs/` in the store.
"""

import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from icl_bench.errors import RecordError, SpecError
from icl_bench.runs.events import Progress, Reporter
from icl_bench.runs.record import RunRecord, RunResult
from icl_bench.runs.spec import RunSpec
from icl_bench.runs.store import Store
from icl_bench.schema import nearest

PROJECT = "icl-bench"
LOG = logging.getLogger("icl_bench")


class Logger(Protocol):
    """Takes finished runs."""

    def take(self, record: RunRecord) -> None:
        """Pass a run on; may raise anything."""


class TrackioLogger:
    """Runs to a local trackio database."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def take(self, record: RunRecord) -> None:
        """Pass a run on."""
        with variable("TRACKIO_DIR", str(self.folder)):
            import trackio

            run = trackio.init(
                project=PROJECT,
                name=record.result.id,
                group=record.result.task,
                config=config_of(record),
                auto_log_gpu=False,
                auto_log_cpu=False,
                embed=False,
            )
            for step, values in lines_of(record):
                run.log(dict(values), step=step)
            run.finish()


class WandbLogger:
    """Runs to offline folders, which `wandb sync` uploads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def take(self, record: RunRecord) -> None:
        """Pass a run on."""
        import wandb

        self.folder.mkdir(parents=True, exist_ok=True)
        run = wandb.init(
            project=PROJECT,
            id=record.result.id,
            name=f"{record.result.arch} seed {record.result.seed}",
            group=record.result.task,
            config=config_of(record),
            mode="offline",
            dir=str(self.folder),
        )
        for step, values in lines_of(record):
            run.log(dict(values), step=step)
        run.summary.update(finals_of(record))
        run.finish()


class TensorboardLogger:
    """Runs to event files, a folder each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def take(self, record: RunRecord) -> None:
        """Pass a run on."""
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(self.folder / record.result.id))
        for step, values in lines_of(record):
            for name, value in values.items():
                writer.add_scalar(name, value, step)
        config = {
            key: value if isinstance(value, bool | int | float) else str(value)
            for key, value in config_of(record).items()
        }
        writer.add_hparams(config, finals_of(record), run_name=".")
        writer.close()


class Kind(NamedTuple):
    """How to make a logger, and the package that it needs."""

    make: Callable[[Path], Logger]
    package: str


LOGGERS: Mapping[str, Kind] = {
    "tensorboard": Kind(TensorboardLogger, "tensorboard"),
    "trackio": Kind(TrackioLogger, "trackio"),
    "wandb": Kind(WandbLogger, "wandb"),
}


def make_loggers(names: Sequence[str], store: Store) -> list[Logger]:
    """The loggers of these names.

    Raises:
        SpecError: where there is none of a name, or its package is not installed.
    """
    made: list[Logger] = []
    for name in names:
        if name not in LOGGERS:
            raise SpecError(
                f"--log is one of {', '.join(LOGGERS)}; got {name!r}; {nearest(name, LOGGERS)}choose one of them"
            )
        if importlib.util.find_spec(LOGGERS[name].package) is None:
            raise SpecError(
                f"--log {name} needs the package {LOGGERS[name].package}, which is not installed; run "
                f"`pip install icl-bench[{name}]` or leave the option out"
            )
        made.append(LOGGERS[name].make(store.root / "logs" / name))
    return made


class LoggingReporter:
    """Passes every event on, and every committed run to loggers too."""

    def __init__(self, reporter: Reporter, store: Store, loggers: Sequence[Logger]) -> None:
        self.reporter, self.store, self.loggers = reporter, store, list(loggers)

    def planned(self, runs: int, done: int) -> None:
        """Pass it on."""
        self.reporter.planned(runs, done)

    def started(self, specs: Sequence[RunSpec]) -> None:
        """Pass it on."""
        self.reporter.started(specs)

    def progressed(self, specs: Sequence[RunSpec], progress: Progress) -> None:
        """Pass it on."""
        self.reporter.progressed(specs, progress)

    def lost(self, specs: Sequence[RunSpec], reason: str) -> None:
        """Pass it on."""
        self.reporter.lost(specs, reason)

    def finished(self, results: Sequence[RunResult]) -> None:
        """Pass it on, and the runs to the loggers."""
        self.reporter.finished(results)
        for result in results:
            self.log(result.id)

    def closed(self) -> None:
        """Pass it on."""
        self.reporter.closed()

    def log(self, run_id: str) -> None:
        """Pass a run to the loggers; one that raises is dropped."""
        try:
            record = self.store.load(run_id)
        except RecordError as error:
            LOG.warning("not logged: %s", error)
            return
        for logger in list(self.loggers):
            try:
                with redirect_stdout(sys.stderr):  # standard output is for results
                    logger.take(record)
            except Exception as error:  # a stranger's package may raise anything, and no run shall fail of it
                self.loggers.remove(logger)
                LOG.warning(
                    "%s is dropped: %s", type(logger).__name__, " ".join(f"{type(error).__name__}: {error}".split())
                )


def config_of(record: RunRecord) -> dict[str, Any]:
    """What was run, flat."""
    flat: dict[str, Any] = {"task": record.result.task, "arch": record.result.arch}
    for name, value in record.spec.items():
        if isinstance(value, Mapping) and name != "task":
            flat |= {f"{name}.{key}": inner for key, inner in value.items()}
        elif name not in ("task", "arch"):
            flat[name] = value
    return flat


def lines_of(record: RunRecord) -> Iterator[tuple[int, Mapping[str, float]]]:
    """The validations: step and values by name."""
    for point in record.metrics:
        cells = {f"accuracy/{label}": accuracy for label, accuracy in point.by_cell.items()}
        means = {"loss/train": point.train_loss, "accuracy/train": point.train_accuracy}
        yield point.step, {**means, "accuracy/validation": point.accuracy, **cells}


def finals_of(record: RunRecord) -> dict[str, float]:
    """What came out."""
    result = record.result
    return {"test/accuracy": result.accuracy, "test/exact_match": result.exact_match, "test/floor": result.floor}


@contextmanager
def variable(name: str, value: str) -> Iterator[None]:
    """Set an environment variable for a while, unless it is set."""
    if name in os.environ:
        yield
        return
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
