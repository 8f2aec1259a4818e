"""Results on the terminal and in files: tables, JSON documents, reports, and the exit statuses of commands."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from icl_bench.errors import StoreError

if TYPE_CHECKING:
    from rich.console import Console

    from icl_bench.errors import RecordError
    from icl_bench.reports.context import StudyContext
    from icl_bench.runs.outline import FinishedRuns
    from icl_bench.runs.record import RunRecord
    from icl_bench.runs.store.index import Index

USER_MUST_CHANGE_SOMETHING = 2
"""Exit status after an error that the user can mend."""
SOMETHING_FAILED = 3
"""Exit status of a command that did its work and found failed runs, damaged records or broken kernels."""


def print_json(document: dict[str, Any]) -> None:
    """Print one JSON document on standard output."""
    typer.echo(json.dumps({"schema": 1, **document}, indent=2, allow_nan=False))


def print_listing(kind: str, rows: list[dict[str, str]], as_json: bool) -> None:
    """Print names with their summaries, one line each."""
    if as_json:
        print_json({kind: rows})
        return
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        typer.echo(f"{row['name']:<{width}}  {row['summary']}")


def stdout_console() -> "Console":
    """Return a console on standard output, 160 columns wide if that is no terminal."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=160, color_system=None)


def check_report(report: Path | None) -> None:
    """Refuse a report that cannot be written, before anything is trained; raises StoreError."""
    if report is None:
        return
    folder = report.resolve().parent
    if report.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise StoreError(
            f"a report is a file in a folder that exists and can be written; got {report}; choose another file"
        )


def write_files(
    runs: "FinishedRuns", problems: "list[RecordError]", report: Path, context: "StudyContext | None" = None
) -> Path:
    """Write a report: one HTML page if the file is so named, else Markdown with a folder of figures."""
    from icl_bench.reports.context import NO_STUDY
    from icl_bench.reports.report import write_report
    from icl_bench.runs.record import command_line

    return write_report(runs, problems, report, command_line(), context or NO_STUDY)


def finish(
    records: "list[RunRecord]", as_json: bool, report: Path | None, context: "StudyContext | None" = None
) -> None:
    """Print the results and write the report, if one is asked for; exit with status 3 if a run failed.

    With a `context`, which studies have, a bar of accuracy for each architecture follows the results.
    """
    from icl_bench.commands.tables import accuracy_bars, results_table
    from icl_bench.runs.outline import FinishedRuns

    if as_json:
        print_json({"runs": [record.result.summary() for record in records]})
    else:
        stdout_console().print(results_table(records))
        if context is not None:
            stdout_console().print(accuracy_bars(records))
    if report is not None:
        typer.echo(f"report: {write_files(FinishedRuns.of(records), [], report, context)}", err=as_json)
    failed = [record.result for record in records if record.result.status != "ok"]
    for result in failed:
        typer.echo(f"failed: {result.id} {result.arch} seed {result.seed}: {result.status}", err=True)
    if failed:
        raise typer.Exit(SOMETHING_FAILED)


def note_problems(index: "Index", problems: "Sequence[RecordError]") -> None:
    """Print the errors of unreadable runs on standard error, and a note if the index cannot be written."""
    for problem in problems:
        typer.echo(f"unreadable: {problem}", err=True)
    if not index.kept:
        typer.echo(f"note: {index.path} cannot be written; runs are read from their folders every time", err=True)
