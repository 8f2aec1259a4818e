"""Requests and studies carried out: from the options of a command to an executor, and from its records to a report."""

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from icl_bench.commands.options import MachineOptions, OutputOptions
from icl_bench.commands.output import finish
from icl_bench.errors import StateBudgetError

if TYPE_CHECKING:
    from icl_bench.harness.engines.base import Executor
    from icl_bench.harness.resolve import Request
    from icl_bench.harness.study.file import Study
    from icl_bench.reports.context import StudyContext
    from icl_bench.runs.record import RunRecord
    from icl_bench.runs.spec import RunSpec


def make_executor(machine: MachineOptions, output: OutputOptions) -> "Executor":
    """Make the executor of these options, whose engine the caller closes; raise SpecError if a part is not there."""
    from rich.console import Console

    from icl_bench.commands.progress import make_reporter
    from icl_bench.harness.engines.base import FLEET_SIZE, Executor, device_for, make_engine
    from icl_bench.harness.environment import check_impl
    from icl_bench.harness.loggers import LoggingReporter, make_loggers
    from icl_bench.harness.training.trainer import Machine
    from icl_bench.runs.store import Store

    check_impl(machine.impl)
    device = device_for(machine.engine, machine.device)
    engine = make_engine(machine.engine, Machine(device, machine.impl, machine.graphs))
    store, reporter = Store(output.store), make_reporter(Console(stderr=True))
    loggers = make_loggers(output.log or (), store)
    told = LoggingReporter(reporter, store, loggers) if loggers else reporter
    return Executor(store, engine, machine.fleet or FLEET_SIZE[device.type], told)


def estimate_seconds(phases: "list[list[RunSpec]]", options: MachineOptions) -> float:
    """Estimate the seconds that successive phases of runs take in one process, from a few steps of each kind."""
    from icl_bench.harness.engines.base import FLEET_SIZE
    from icl_bench.harness.environment import check_impl, pick_device
    from icl_bench.harness.estimate import seconds_for
    from icl_bench.harness.training.trainer import Machine

    check_impl(options.impl)
    device = pick_device(options.device)
    machine, size = Machine(device, options.impl, options.graphs), options.fleet or FLEET_SIZE[device.type]
    return sum(seconds_for(phase, machine, size) for phase in phases)


def execute(request: "Request", machine: MachineOptions, output: OutputOptions) -> "list[RunRecord]":
    """Train the runs of a request that the store lacks, and return the records of all its runs."""
    from icl_bench.harness.resolve import expand_request
    from icl_bench.runs.store.floors import read_floors, renewed_run

    specs, floors = expand_request(request), read_floors(output.store)
    executor = make_executor(machine, output)
    with closing(executor.engine):
        return [renewed_run(record, floors) for record in executor.finish(specs)]


def complete_study(
    study: "Study", machine: MachineOptions, output: OutputOptions, report: Path, parts: int | None = None
) -> None:
    """Run a study or its first parts, print its results, write its report.

    Raise StateBudgetError if no architecture can be matched.
    """
    from icl_bench.harness.study.protocol import run_study
    from icl_bench.runs.store.floors import read_floors, renewed_run

    floors = read_floors(output.store)
    executor = make_executor(machine, output)
    with closing(executor.engine):
        outcome = run_study(study, executor, parts)
    if not outcome.measured:
        raise StateBudgetError(f"a study needs an architecture that can be matched; {outcome.left_out[0]}")
    for line in outcome.left_out:
        typer.echo(f"left out: {line}", err=True)
    once = {record.result.id: record for record in [*outcome.measured, *outcome.tuning]}  # a seed may do both
    records = [renewed_run(record, floors) for record in once.values()]
    finish(records, output.as_json, report, context_of(study, outcome.left_out))


def context_of(study: "Study", left_out: "list[str]") -> "StudyContext":
    """Return the context of a study that its report shows: question, hypotheses, conclusions, published results."""
    from icl_bench.harness.resolve import label_of_arch, model_of
    from icl_bench.reports.context import PublishedResult, StudyContext

    d_model = model_of(study.preset, study.settings).d_model
    labels = [point.arch and label_of_arch(point.arch, d_model) for point in study.published]
    pairs = zip(study.published, labels, strict=True)
    points = [PublishedResult(one.label, one.bytes, one.accuracy, one.source, label) for one, label in pairs]
    reasons = tuple(message.rpartition("; ")[0] or message for message in left_out)  # without the way out
    return StudyContext(
        name=study.name,
        question=study.question,
        hypotheses=study.hypotheses,
        conclusions=study.conclusions,
        corrections=study.corrections,
        left_out=reasons,
        published=tuple(points),
        primary_test=study.primary_test,
        choice=study.choice,
        ladder=study.ladder,
    )


def load_plugins_or_warn() -> None:
    """Load the installed plug-ins; name each that fails on standard error."""
    from icl_bench.registry import load_plugins

    for plugin in load_plugins():
        if plugin.error:
            typer.echo(f"warning: plug-in {plugin.name} did not load: {plugin.error}", err=True)
