"""What the commands share: carrying out requests and studies, printing, exit statuses."""

import json
import os
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from icl_bench.errors import StateBudgetError, StoreError
from icl_bench.harness.engines.choice import Choice

if TYPE_CHECKING:
    from collections.abc import Sequence

    from icl_bench.errors import RecordError
    from icl_bench.harness.engines.base import Engine
    from icl_bench.harness.resolve import Request
    from icl_bench.harness.study.protocol import Study
    from icl_bench.reports.framing import Frame
    from icl_bench.runs.events import Reporter
    from icl_bench.runs.outline import Outline
    from icl_bench.runs.record import RunRecord
    from icl_bench.runs.spec import RunSpec

SOME_RUNS_FAILED = 3
DEFAULT_ENGINE = Choice()


class Workshop(NamedTuple):
    """What carries runs out: an engine, the fleet size that suits its device, and who is told."""

    engine: "Engine"
    fleet_size: int
    reporter: "Reporter"


def workshop(device: str, impl: str, fleet: int | None, graphs: bool, choice: Choice = DEFAULT_ENGINE) -> Workshop:
    """Set up for the device of that name and an engine; raises SpecError where one is not there."""
    from rich.console import Console

    from icl_bench.commands.progress import make_reporter
    from icl_bench.harness.engines.base import FLEET_SIZE
    from icl_bench.harness.engines.choose import check_choice, choose_device, make_engine
    from icl_bench.harness.environment import check_impl
    from icl_bench.harness.training.fleet import Machine

    check_impl(impl)
    check_choice(choice)
    chosen = choose_device(choice, device)
    made = make_engine(choice, Machine(chosen, impl, graphs))
    return Workshop(made, fleet or FLEET_SIZE[chosen.type], make_reporter(Console(stderr=True)))


def expected_seconds(phases: "list[list[RunSpec]]", device: str, impl: str, graphs: bool, fleet: int | None) -> float:
    """About how long these runs take, each list after the one before; measures a few steps."""
    from icl_bench.harness.engines.base import FLEET_SIZE
    from icl_bench.harness.environment import check_impl, pick_device
    from icl_bench.harness.estimate import seconds_for
    from icl_bench.harness.training.fleet import Machine

    check_impl(impl)
    chosen = pick_device(device)
    machine, size = Machine(chosen, impl, graphs), fleet or FLEET_SIZE[chosen.type]
    return sum(seconds_for(phase, machine, size) for phase in phases)


def logged(shop: Workshop, loggers: "list[str] | None", store: Path) -> Workshop:
    """The same workshop, with loggers of these names told of its runs; raises SpecError where one is not there."""
    from icl_bench.harness.loggers import LoggingReporter, make_loggers
    from icl_bench.runs.store import Store

    opened = Store(store)
    made = make_loggers(loggers or (), opened)
    return shop._replace(reporter=LoggingReporter(shop.reporter, opened, made)) if made else shop


def check_report(report: Path | None) -> None:
    """Refuse, before anything is trained, a report that could not be written; raises StoreError."""
    if report is None:
        return
    folder = report.resolve().parent
    if report.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise StoreError(
            f"a report is a file in a folder that exists and can be written; got {report}; choose another file"
        )


def execute(request: "Request", store: Path, shop: Workshop) -> "list[RunRecord]":
    """Carry out a request and read its runs back."""
    from icl_bench.harness.engines.base import run_all
    from icl_bench.harness.resolve import expand
    from icl_bench.runs.store import Store

    with closing(shop.engine):
        return run_all(expand(request), Store(store), *shop)


def carry_out(study: "Study", store: Path, shop: Workshop, report: Path, as_json: bool) -> None:
    """Run a study and report it; what could not be matched is named, and an error where nothing could."""
    from icl_bench.harness.study.protocol import run_study
    from icl_bench.runs.store import Store

    with closing(shop.engine):
        outcome = run_study(study, Store(store), *shop)
    if not outcome.measured:
        raise StateBudgetError(f"a study needs an architecture that can be matched; {outcome.left_out[0]}")
    for line in outcome.left_out:
        typer.echo(f"left out: {line}", err=True)
    once = {record.result.id: record for record in [*outcome.measured, *outcome.tuning]}  # a seed may do both
    finish(list(once.values()), as_json, report, bars=True, frame=frame_of(study, outcome.left_out))


def frame_of(study: "Study", left_out: "list[str]") -> "Frame":
    """What the report of a study says of it."""
    from icl_bench.harness.study.protocol import label_in
    from icl_bench.reports.framing import Frame, Published

    points = [
        Published(point.label, point.bytes, point.accuracy, point.source, label_in(study, point.arch))
        for point in study.published
    ]
    return Frame(
        study.name, study.question, study.hypotheses, study.conclusions, tuple(map(problem_of, left_out)), tuple(points)
    )


def problem_of(message: str) -> str:
    """A message without its way out, which serves no reader of a report."""
    return message.rpartition("; ")[0] or message


def write_files(
    records: "Sequence[RunRecord | Outline]",
    problems: "list[RecordError]",
    report: Path,
    frame: "Frame | None" = None,
) -> Path:
    """Write a report: one HTML page where the file is so named, else Markdown with a folder of figures."""
    from icl_bench.reports.framing import NO_FRAME
    from icl_bench.reports.page import write_page
    from icl_bench.reports.report import write_report

    write = write_page if report.suffix in (".html", ".htm") else write_report
    return write(records, problems, report, command_line(), frame or NO_FRAME)


def finish(
    records: "list[RunRecord]",
    as_json: bool,
    report: Path | None,
    bars: bool = False,
    frame: "Frame | None" = None,
) -> None:
    """Print the results, write the report where one is asked for, and exit with 3 where a run failed."""
    from icl_bench.commands.tables import accuracy_bars, results_table

    if as_json:
        print_json({"schema": 1, "runs": [record.result.summary() for record in records]})
    else:
        stdout_console().print(results_table(records))
        if bars:
            stdout_console().print(accuracy_bars(records))
    if report is not None:
        typer.echo(f"report: {write_files(records, [], report, frame)}", err=as_json)
    failed = [record.result for record in records if record.result.status != "ok"]
    for result in failed:
        typer.echo(f"failed: {result.id} {result.arch} seed {result.seed}: {result.status}", err=True)
    if failed:
        raise typer.Exit(SOME_RUNS_FAILED)


def load_plugins_or_warn() -> None:
    """Load the installed plug-ins; one that fails is named on standard error."""
    from icl_bench.registry import load_plugins

    for plugin in load_plugins():
        if plugin.error:
            typer.echo(f"warning: plug-in {plugin.name} did not load: {plugin.error}", err=True)


def listing(kind: str, rows: list[dict[str, str]], as_json: bool) -> None:
    """Print names and summaries."""
    if as_json:
        print_json({"schema": 1, kind: rows})
        return
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        typer.echo(f"{row['name']:<{width}}  {row['summary']}")


def print_json(document: dict[str, Any]) -> None:
    """Print one JSON document."""
    typer.echo(json.dumps(document, indent=2, allow_nan=False))


def stdout_console() -> Any:
    """A console on standard output, with room for a table where it is no terminal."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=160, color_system=None)


def command_line() -> str:
    """The command that was typed."""
    import shlex

    return shlex.join(["icl-bench", *sys.argv[1:]])
