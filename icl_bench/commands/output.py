"""Results on the terminal and in files: tables, JSON documents, reports, and the exit statuses of commands."""

import json
import os
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import typer

from icl_bench.errors import SpecError, StoreError
from icl_bench.escapes import visible_text

if TYPE_CHECKING:
    from icl_bench.errors import RecordError
    from icl_bench.reports.context import StudyContext
    from icl_bench.runs.outline import FinishedRuns
    from icl_bench.runs.record import RunRecord
    from icl_bench.runs.store.index import Index

REPORT_SUFFIXES = ("", ".md", ".markdown", ".txt", ".html", ".htm")
LONGEST_NAME = 80
"""Most characters of a report's name that nobody gave, without its ending."""
USER_MUST_CHANGE_SOMETHING = 2
"""Exit status after an error that the user can mend."""
SOMETHING_FAILED = 3
"""Exit status of a command that did its work and found failed runs, damaged records or broken kernels."""

WHOLE_TRACEBACKS = "--traceback"
"""Option of all commands, which prints what code from outside raised, whole."""


def say(*lines: str) -> None:
    """Print lines on standard output, of visible characters alone."""
    write_text(sys.stdout, "\n".join(map(visible_text, lines)))


def note(line: str) -> None:
    """Print one line on standard error, of visible characters alone."""
    write_text(sys.stderr, visible_text(line))


def note_trace(trace: str) -> None:
    """Print a traceback on standard error where --traceback asks for it."""
    for line in trace.splitlines() if WHOLE_TRACEBACKS in sys.argv else ():
        note(line)


def print_json(document: dict[str, Any]) -> None:
    """Print one JSON document on standard output."""
    written = json.dumps({"schema": 1, **document}, indent=2, allow_nan=False)  # ASCII
    write_text(sys.stdout, written.replace("\x7f", "\\u007f"))


def write_text(stream: TextIO, text: str) -> None:
    """Write text and a line feed to a standard stream, at once."""
    stream.write(text + "\n")
    stream.flush()


def print_listing(kind: str, rows: list[dict[str, str]], as_json: bool) -> None:
    """Print names with their summaries, one line each."""
    if as_json:
        print_json({kind: rows})
        return
    if not rows:
        note(f"no {kind} are installed")
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        say(f"{row['name']:<{width}}  {row['summary']}")


def check_report(report: Path | None) -> None:
    """Refuse a report that cannot be written, before anything is trained; raises SpecError or StoreError."""
    if report is None:
        return
    if report.suffix.lower() not in REPORT_SUFFIXES or report.name == "-":
        raise SpecError(
            f"a report is Markdown or one HTML page; got {str(report)!r}; give it a name that ends in .md or .html"
        )
    folder = report.resolve().parent
    if report.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise StoreError(
            f"a report is a file in a folder that exists and can be written; got {report}; choose another file"
        )


def default_report(command: str, *subject: str) -> Path:
    """Return the file of a report that nobody named: commands do not overwrite the reports of others.

    >>> print(default_report("compare", "assoc-recall", "64KiB"))
    compare-assoc-recall-64KiB.md
    """
    return Path(re.sub(r"[^A-Za-z0-9]+", "-", "-".join((command, *subject)))[:LONGEST_NAME].strip("-") + ".md")


def write_files(
    runs: "FinishedRuns", problems: "list[RecordError]", report: Path, context: "StudyContext | None" = None
) -> Path:
    """Write a report: one HTML page if the file is so named, else Markdown with a folder of figures."""
    from icl_bench.reports.context import NO_STUDY
    from icl_bench.reports.report import write_report
    from icl_bench.runs.record import command_line

    return write_report(runs, problems, report, command_line(), context or NO_STUDY)


def finish(
    records: "list[RunRecord]", store: Path, as_json: bool, report: Path | None, context: "StudyContext | None" = None
) -> None:
    """Write the report, if one is asked for, and print the results; exit with status 3 if a run failed.

    The report reads what runs of the store keep. With a `context`, which studies have, a bar of accuracy for each
    architecture follows the results.
    """
    from icl_bench.commands.console import terminal
    from icl_bench.commands.tables import accuracy_bars, results_table
    from icl_bench.runs.outline import FinishedRuns
    from icl_bench.runs.store import Store
    from icl_bench.runs.store.kept_records import probes_if_kept

    finished = FinishedRuns.of(records, partial(probes_if_kept, Store(store)))
    written = report and write_files(finished, [], report, context)
    if as_json:
        print_json({"runs": [record.result.summary() for record in records]})
    else:
        terminal().print(results_table(records))
        if context is not None:
            terminal().print(accuracy_bars(records))
    if written:
        (note if as_json else say)(f"report: {written}")
    failed = [record.result for record in records if record.result.status != "ok"]
    for result in failed:
        *trace, reason = (result.detail or "").strip().splitlines() or [""]
        note_trace("\n".join(trace))
        note(f"failed: {result.id} {result.arch} seed {result.seed}: {result.status}{reason and ', '}{reason}")
    if failed:
        raise typer.Exit(SOMETHING_FAILED)


def note_problems(index: "Index", problems: "Sequence[RecordError]") -> None:
    """Print the errors of unreadable runs on standard error, and a note if the index cannot be written."""
    for problem in problems:
        note(f"unreadable: {problem}")
    if not index.kept:
        note(f"note: {index.path} cannot be written; runs are read from their folders every time")
