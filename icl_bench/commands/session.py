"""Requests and studies carried out: from the options of a command to an executor, and from its records to a report."""

import gc
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from icl_bench.commands.options import MachineOptions, OutputOptions
from icl_bench.commands.output import finish, note

if TYPE_CHECKING:
    from collections.abc import Sequence

    from icl_bench.harness.engines.executor import Executor
    from icl_bench.harness.estimate import Estimate
    from icl_bench.harness.resolve import Request
    from icl_bench.harness.session import Session
    from icl_bench.harness.study.file import LossPoint, Published, Study
    from icl_bench.reports.context import StudyContext
    from icl_bench.runs.record import RunRecord
    from icl_bench.runs.spec import RunSpec

COLLECT_AT = gc.get_threshold()[0]
"""Objects made since the last collection of garbage at which Python collects the next time."""
COLLECT_LOADING_AT = 100_000
"""The same while modules are loaded, all of whose objects stay: a tenth of the time of an import is collections."""
ENGINES_HERE = ("auto", "inline")
"""Engines that use the GPU in this process."""
OWN_RANK = "LOCAL_RANK"
"""Environment variable of processes that torchrun starts, each of which has a GPU of its own."""
REPORT_MODULES = ("icl_bench.reports.report", "scipy.stats")
"""Modules that a report loads, the second for exact tests of some studies alone."""
LOAD_REPORTS_AFTER = 20.0
"""Seconds after which the modules of reports are loaded while runs train: kernels are compiled by then."""


def prepare_engine(machine: MachineOptions) -> None:
    """Begin what takes seconds before this process imports torch: other processes, or the context of its GPU."""
    from icl_bench.harness.compiled import is_cold
    from icl_bench.isolation import GPU_DRIVER, start_server

    gc.set_threshold(COLLECT_LOADING_AT)
    engine = machine.engine.partition(":")[0]  # what reads all of it imports pydantic
    if engine == "local":
        start_server()
        if machine.device != "cpu" and GPU_DRIVER.exists():
            from icl_bench.harness.early_workers import begin_workers

            begin_workers()
    elif engine in ENGINES_HERE and machine.device != "cpu" and OWN_RANK not in os.environ:
        threading.Thread(target=load_gpu, name="load_gpu").start()
        if is_cold():
            start_server()  # whose processes compile kernels


def load_gpu() -> None:
    """Make the context of the GPU, if there is one, and load torch and the libraries that launch kernels.

    An error of the device is left to the first fleet that uses it.
    """
    from icl_bench.isolation import GPU_DRIVER

    if GPU_DRIVER.exists():
        import_module("icl_bench.kernels.context")
        import_module("icl_bench.kernels.digested")
    import torch

    from icl_bench.kernels.backends import has_triton, prepare_in_turn

    if not torch.cuda.is_available():
        return
    with suppress(RuntimeError):
        ones = torch.ones(1, 16, 16, device="cuda", dtype=torch.bfloat16)
        torch.bmm(ones, ones)
        if has_triton(ones):
            prepare_in_turn()
            from icl_bench.kernels.triton.common import add_parts

            add_parts(ones, ones.dtype)


@contextmanager
def loading_reports() -> Iterator[None]:
    """Load the modules of reports in a thread if the block takes long: figures then follow its results sooner."""
    timer = threading.Timer(LOAD_REPORTS_AFTER, lambda: [import_module(name) for name in REPORT_MODULES])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def make_executor(machine: MachineOptions, output: OutputOptions) -> "Executor":
    """Make the executor of these options, whose engine the caller closes; raise SpecError if a part is not there."""
    from icl_bench.harness.session import Session

    where = (machine.device, machine.impl, machine.graphs, machine.fleet, machine.engine)
    memory = (machine.accumulate, machine.recompute)
    session = Session(*where, output.log or (), output.quiet, output.again, *memory)
    executor = open_with_progress(output.store, session, keep_of(output))
    gc.freeze()  # so that no collection while runs train looks at the modules again
    gc.set_threshold(COLLECT_AT)
    return executor


def open_with_progress(store: Path, session: "Session", keep: tuple[str, ...]) -> "Executor":
    """Open a session that prints its progress on standard error, unless it is quiet."""
    from icl_bench.commands.console import terminal
    from icl_bench.commands.progress import make_reporter
    from icl_bench.harness.engines.base import device_for
    from icl_bench.harness.estimate import Forecast
    from icl_bench.harness.session import open_session
    from icl_bench.runs.events import SilentReporter

    forecast = Forecast(device_for(session.engine, session.device).type)
    reporter = SilentReporter() if session.quiet else make_reporter(terminal(err=True), forecast)
    return open_session(store, session, reporter, keep)


def keep_of(output: OutputOptions) -> tuple[str, ...]:
    """Return the names that --keep gives; raise SpecError for others."""
    from icl_bench.runs.kept import parse_keep

    return parse_keep(output.keep) if output.keep else ()


def note_lacking(records: "list[RunRecord]", output: OutputOptions) -> None:
    """Name on standard error the runs that were finished before without what --keep asks for."""
    from icl_bench.runs.kept import lacking_lines

    for line in lacking_lines((record.result for record in records), keep_of(output)):
        note(f"note: {line}")


def estimate_left(
    batches: "Sequence[Sequence[RunSpec]]", machine: MachineOptions, output: OutputOptions
) -> "list[Estimate]":
    """Estimate the time of each batch of runs in one process, at once: by the finished runs of the store, or a rule.

    With `--device cuda` this machine needs no GPU, and a rule is all there is.
    """
    import torch

    from icl_bench.harness.engines.base import device_for
    from icl_bench.harness.environment import check_impl, device_name
    from icl_bench.harness.estimate import estimate_runs, measured_seconds
    from icl_bench.runs.store import Store

    check_impl(machine.impl)
    if machine.device == "cuda" and not torch.cuda.is_available():
        return [estimate_runs(runs, "cuda") for runs in batches]
    device = device_for(machine.engine, machine.device)
    known = measured_seconds(Store(output.store), device_name(device))
    return [estimate_runs(runs, device.type, known) for runs in batches]


def execute(requests: "Sequence[Request]", machine: MachineOptions, output: OutputOptions) -> "list[RunRecord]":
    """Train the runs of requests that the store lacks, and return the records of all their runs."""
    from icl_bench.harness.session import finish_requests

    records = finish_requests(requests, make_executor(machine, output))
    note_lacking(records, output)
    return records


def complete_study(
    study: "Study",
    machine: MachineOptions,
    output: OutputOptions,
    report: Path,
    parts: "Sequence[int]" = (),
    finished: bool = False,
) -> None:
    """Run a study or some of its parts, print its results, write its report; with `finished`, train nothing.

    Raise StateBudgetError if no architecture can be matched, or none is finished.
    """
    from icl_bench.harness.session import finish_study

    with loading_reports():
        records, left_out = finish_study(study, make_executor(machine, output), parts, finished)
    note_lacking(records, output)
    for line in left_out:
        note(f"left out: {line}")
    finish(records, output.store, output.as_json, report, context_of(study, left_out))


def context_of(study: "Study", left_out: "list[str]") -> "StudyContext":
    """Return the context of a study that its report shows: question, hypotheses, conclusions, published results."""
    from icl_bench.harness.resolve import label_of_arch, model_of
    from icl_bench.reports.context import PublishedLoss, PublishedResult, StudyContext

    d_model = model_of(study.preset, study.settings).d_model

    def named(points: "Sequence[Published] | Sequence[LossPoint]") -> "list[dict[str, Any]]":
        return [one.model_dump() | {"arch": one.arch and label_of_arch(one.arch, d_model)} for one in points]

    reasons = tuple(message.rpartition("; ")[0] or message for message in left_out)  # without the way out
    return StudyContext(
        name=study.name,
        question=study.question,
        hypotheses=study.hypotheses,
        conclusions=study.conclusions,
        corrections=study.corrections,
        left_out=reasons,
        published=tuple(PublishedResult(**point) for point in named(study.published)),
        published_losses=tuple(PublishedLoss(**point) for point in named(study.published_losses)),
        primary_test=study.primary_test,
        choice=study.choice,
        ladder=study.ladder,
    )


def load_plugins_or_warn() -> None:
    """Load the installed plug-ins; name each that fails on standard error."""
    from icl_bench.registry import load_plugins

    for plugin in load_plugins():
        if plugin.error:
            note(f"warning: plug-in {plugin.name} did not load: {plugin.error}")
