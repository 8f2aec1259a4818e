"""One attempt to train a fleet: its results are committed together, or its error says how its members may go on."""

import time
import traceback
from collections.abc import Sequence
from typing import Literal

import torch

from icl_bench.architectures.plain import LayerFaultError
from icl_bench.errors import IclBenchError, OutsideCodeError, SourceChangedError, StoreError
from icl_bench.harness.environment import make_manifest
from icl_bench.harness.training.batches import ExampleStream
from icl_bench.harness.training.loop import TrainingLoop
from icl_bench.harness.training.results import failed_result, member_result
from icl_bench.harness.training.trainer import Machine, Trainer
from icl_bench.outside import StopRequest, is_request_of_the_user, place_of
from icl_bench.outside import first_line as message_line
from icl_bench.runs.events import Progress, Report
from icl_bench.runs.record import RunResult, Status
from icl_bench.runs.spec import RunSpec
from icl_bench.runs.store import Store
from icl_bench.runs.store.attempt import RunWriter, commit_fleet
from icl_bench.runs.store.checkpoint import Checkpoints

FailureKind = Literal["memory", "fault"]

MEMORY = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "Triton Error [CUDA]: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
FAULT = ("CUDA error", "CUDNN_STATUS", "CUBLAS_STATUS", "Triton Error [CUDA]")


class FleetFailedError(Exception):
    """A fleet could not go on; its members may, in halves or alone in processes of their own."""

    def __init__(self, kind: FailureKind, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


def finish_fleet(
    specs: Sequence[RunSpec], store: Store, machine: Machine, report: Report, last: bool
) -> list[RunResult]:
    """Train a fleet and commit its results; after an error its attempts are dropped and its checkpoints stay.

    In the `last` attempt every failure of the fleet is a result of its members.

    Raises:
        FleetFailedError: The members may do better in halves or alone, and this is not the last try; checkpoints are
            dropped too.
    """
    manifest = make_manifest(machine.device, machine.impl, len(specs))
    writers = [store.begin(spec, manifest) for spec in specs]
    checkpoints = Checkpoints(store.root, specs, torch.__version__, machine.device.type)
    committed = False
    try:
        results = train_members(specs, machine, report, writers, checkpoints, last)
        committed = True
        results = commit_fleet(writers, results)
        checkpoints.remove()
        return results
    except FleetFailedError:
        checkpoints.remove()
        raise
    finally:
        if not committed:
            for writer in writers:
                writer.abandon()


def train_members(
    specs: Sequence[RunSpec],
    machine: Machine,
    report: Report,
    writers: Sequence[RunWriter],
    checkpoints: Checkpoints,
    last: bool,
) -> list[RunResult]:
    """Return the result of each member: its scores, or the error of the fleet; raises as `finish_fleet` does."""
    started = time.perf_counter()
    failures: list[Exception] = []

    def guarded(progress: Progress) -> None:
        try:
            report(progress)
        except Exception as error:  # a listener that fails is no failure of a run
            failures.append(error)
            raise

    try:
        loop = TrainingLoop(
            Trainer(specs, machine), guarded, lambda member, point: writers[member].log(point), checkpoints=checkpoints
        )
        loop.trainer.check_outside_layers()
        scores = loop.run()
    except BaseException as error:  # an error of a layer, whatever its type, is the result of its runs
        # Other ranks know nothing of an error of this one, and cannot go on without it.
        if machine.ranks or error in failures or not is_outcome(error, specs[0].from_outside):
            raise
        status, detail = describe_failure(error, len(specs), last)
        seconds = time.perf_counter() - started
        return [failed_result(spec, status, detail, seconds) for spec in specs]
    for writer, files in zip(writers, scores.kept, strict=True):
        for name, data in files.items():
            writer.keep(name, data)
    trainer = loop.trainer
    stream = ExampleStream(trainer.task, trainer.cells[0], "train", [spec.data_seed for spec in specs], trainer.device)
    first_batches = stream.digests(specs[0].train.batch)
    return [
        member_result(spec, scores, member, digest)
        for member, (spec, digest) in enumerate(zip(specs, first_batches, strict=True))
    ]


def is_outcome(error: BaseException, from_outside: bool) -> bool:
    """Return True if an error is the result of its runs, and no error of the command.

    Code from outside the package may raise anything, the errors of the package too, and an exit or an interrupt.
    """
    if isinstance(error, StopRequest | GeneratorExit | StoreError | SourceChangedError):
        return False
    if from_outside:
        return not is_request_of_the_user(error)
    return isinstance(error, Exception) and not isinstance(error, IclBenchError)


def describe_failure(error: BaseException, members: int, last: bool) -> tuple[Status, str]:
    """Return status and detail of runs that an error ended; raise FleetFailedError if another attempt may do better.

    The last line of a detail is the message; what comes before it is the traceback.
    """
    if isinstance(error, LayerFaultError):
        return "error", str(error)
    kind = failure_kind(error)
    first_line = (str(error).splitlines() or [type(error).__name__])[0]
    if (kind == "fault" and not last) or (kind == "memory" and members > 1):
        raise FleetFailedError(kind, first_line) from None
    if kind == "memory":
        return "oom", first_line
    if isinstance(error, OutsideCodeError):
        return "error", f"{error.trace}{error}"
    place = place_of(error)
    return "error", "".join(traceback.format_exception(error)) + (f"{message_line(error)}{place}" if place else "")


def failure_kind(error: BaseException) -> FailureKind | None:
    """Return the kind of failure of an error, None for other errors.

    The errors during whose handling it was raised count too: leaving a graph capture after an error may fail again.
    """
    errors = [error]
    while link := errors[-1].__cause__ or errors[-1].__context__:
        errors.append(link)
    if any(isinstance(link, torch.OutOfMemoryError | MemoryError) or message_contains(link, MEMORY) for link in errors):
        return "memory"
    if any(isinstance(link, torch.AcceleratorError) or message_contains(link, FAULT) for link in errors):
        return "fault"
    return None


def message_contains(error: BaseException, phrases: tuple[str, ...]) -> bool:
    """Return whether a RuntimeError has one of these phrases in its message."""
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in phrases)
