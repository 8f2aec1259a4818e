"""Pass finished runs to trackio, wandb (offline) or tensorboard; no error of theirs can make a run fail.

A logger receives a run after its commit, in the process that the user started, whatever the engine. A logger that
raises an exception is reported once and receives no further run. Its files are in the folder `logs/` of the store.
"""

import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

from icl_bench.errors import RecordError, SpecError
from icl_bench.harness.environment import environment_variable
from icl_bench.runs.events import Reporter
from icl_bench.runs.record import RunRecord, RunResult
from icl_bench.runs.store import Store
from icl_bench.schema import nearest

PROJECT = "icl-bench"
LOG = logging.getLogger("icl_bench")

Logger = Callable[[RunRecord], None]
"""A function that writes a finished run; it may raise any exception."""


def log_to_trackio(folder: Path, record: RunRecord) -> None:
    """Write a run to a local trackio database."""
    with environment_variable("TRACKIO_DIR", os.environ.get("TRACKIO_DIR", str(folder))):
        import trackio

        name = record.result.id
        run = trackio.init(**shared_options(record), name=name, auto_log_gpu=False, auto_log_cpu=False, embed=False)
        for step, values in validations(record):
            run.log(dict(values), step=step)
        run.finish()


def log_to_wandb(folder: Path, record: RunRecord) -> None:
    """Write a run to an offline folder, which `wandb sync` uploads."""
    import wandb

    folder.mkdir(parents=True, exist_ok=True)
    result, options = record.result, shared_options(record)
    name = f"{result.arch} seed {result.seed}"
    run = wandb.init(**options, id=result.id, name=name, mode="offline", dir=str(folder))
    for step, values in validations(record):
        run.log(dict(values), step=step)
    run.summary.update(test_results(record))
    run.finish()


def log_to_tensorboard(folder: Path, record: RunRecord) -> None:
    """Write a run to a folder of event files."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / record.result.id))
    for step, values in validations(record):
        for name, value in values.items():
            writer.add_scalar(name, value, step)
    flat = flat_config(record).items()
    config = {key: value if isinstance(value, bool | int | float) else str(value) for key, value in flat}
    writer.add_hparams(config, test_results(record), run_name=".")
    writer.close()


LOGGERS: Mapping[str, Callable[[Path, RunRecord], None]] = {
    "tensorboard": log_to_tensorboard,
    "trackio": log_to_trackio,
    "wandb": log_to_wandb,
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


class LoggingReporter:
    """Passes every event to another reporter, and every committed run to loggers too."""

    def __init__(self, reporter: Reporter, store: Store, loggers: Mapping[str, Logger]) -> None:
        self.reporter, self.store, self.loggers = reporter, store, dict(loggers)
        self.planned, self.started, self.progressed = reporter.planned, reporter.started, reporter.progressed
        self.lost, self.closed = reporter.lost, reporter.closed

    def finished(self, results: Sequence[RunResult]) -> None:
        """Pass the event on, and each run to the loggers; drop a logger that raises an exception."""
        self.reporter.finished(results)
        for result in results:
            try:
                record = self.store.load(result.id)
            except RecordError as error:
                LOG.warning("not logged: %s", error)
                continue
            for name, log in list(self.loggers.items()):
                try:
                    with redirect_stdout(sys.stderr):  # standard output is reserved for results
                        log(record)
                except Exception as error:  # a third-party package may raise anything, but no run may fail by it
                    del self.loggers[name]
                    LOG.warning("logger %s is dropped: %s", name, " ".join(f"{type(error).__name__}: {error}".split()))


def shared_options(record: RunRecord) -> dict[str, Any]:
    """Return the options that trackio and wandb name alike."""
    return {"project": PROJECT, "group": record.result.task, "config": flat_config(record)}


def flat_config(record: RunRecord) -> dict[str, Any]:
    """Return the specification of a run as one flat dictionary, with keys such as `train.lr`."""
    flat: dict[str, Any] = {"task": record.result.task, "arch": record.result.arch}
    for name, value in record.spec.items():
        if isinstance(value, Mapping) and name != "task":
            flat |= {f"{name}.{key}": inner for key, inner in value.items()}
        elif name not in ("task", "arch"):
            flat[name] = value
    return flat


def validations(record: RunRecord) -> Iterator[tuple[int, Mapping[str, float]]]:
    """Yield each validation: its step and its values by name."""
    for point in record.metrics:
        cells = {f"accuracy/{label}": accuracy for label, accuracy in point.by_cell.items()}
        means = {"loss/train": point.train_loss, "accuracy/train": point.train_accuracy}
        yield point.step, {**means, "accuracy/validation": point.accuracy, **cells}


def test_results(record: RunRecord) -> dict[str, float]:
    """Return the test results by name."""
    result = record.result
    return {"test/accuracy": result.accuracy, "test/exact_match": result.exact_match, "test/floor": result.floor}
