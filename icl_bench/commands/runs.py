"""The commands on finished runs: `icl-bench runs`, `merge` and `report`."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from icl_bench.commands.options import DEFAULT_STORE, REPORT_HELP, JsonOption, StoreOption
from icl_bench.commands.output import (
    SOMETHING_FAILED,
    check_report,
    default_report,
    note,
    note_problems,
    print_json,
    say,
    write_files,
)
from icl_bench.commands.session import load_plugins_or_warn
from icl_bench.errors import SpecError, StoreError

if TYPE_CHECKING:
    from icl_bench.runs.outline import FinishedRuns
    from icl_bench.runs.record import RunRecord
    from icl_bench.runs.store import Store
    from icl_bench.runs.store.index import Summary

runs = typer.Typer(no_args_is_help=True, help="List, show, check, remove and export the runs of a store.")

RunArgument = Annotated[str, typer.Argument(help="A run, by its id or the beginning of it.", show_default=False)]


@runs.command("list")
def list_runs(
    task: Annotated[str | None, typer.Option(help="Only runs of this task, by name or label.")] = None,
    arch: Annotated[str | None, typer.Option(help="Only runs of this architecture, by name or label.")] = None,
    status: Annotated[
        str | None, typer.Option(help="Only runs with this status: ok, diverged, oom, error, interrupted, ...")
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="Only runs started since 2026-01-31, 2026-01-31T12:00, 12h, 3d.")
    ] = None,
    sort: Annotated[
        str | None,
        typer.Option(help="Sort by accuracy or seconds (largest first), started (newest first), or another column."),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", "-n", min=1, help="List the first runs alone.")] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """List runs, one line each: finished runs, then interrupted and running ones."""
    from icl_bench.runs.store.index import Index
    from icl_bench.runs.store.listing import Filters, check_status, parse_since, sort_rows, unfinished

    check_status(status)
    opened = open_store(store)
    index = Index(opened)
    finished, problems = index.summaries()
    filters = Filters(task, arch, status, parse_since(since, datetime.now(UTC)) if since else None)
    there = [*finished, *unfinished(opened)]
    rows = sort_rows([row for row in there if filters.admit(row)], sort)[:limit]
    if as_json:
        print_json({"runs": [row._asdict() for row in rows], "problems": [str(problem) for problem in problems]})
        return
    print_rows(rows)
    if not rows:
        for line in filters.unknown(there):
            note(line)
    note_problems(index, problems)


@runs.command("show")
def show_run(run: RunArgument, store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """Show one run: its specification, its machine and its results."""
    opened = open_store(store)
    record = opened.load(opened.find(run))
    if as_json:
        print_json({"run": record.model_dump(mode="json")})
    else:
        print_record(record)


@runs.command("rm")
def remove_runs(
    run: Annotated[list[str], typer.Argument(help="Runs, by their ids or the beginnings of them.", show_default=False)],
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Move runs to the folder `trash` of their store; empty that folder to delete them."""
    opened = open_store(store)
    for run_id in [opened.find(prefix) for prefix in run]:
        say(f"{run_id} is now {opened.remove(run_id)}")


@runs.command("verify")
def verify_runs(store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """Read every byte of every run and compare digests; exit status 3 if something is damaged."""
    from icl_bench.runs.store.verify import verify_store

    found = verify_store(open_store(store))
    if as_json:
        print_json(found._asdict())
    else:
        say(f"{found.runs} runs and {found.checkpoints} checkpoints are whole, {len(found.problems)} problems")
        for problem in found.problems:
            note(f"damaged: {problem}")
    if found.problems:
        raise typer.Exit(SOMETHING_FAILED)


@runs.command("floors")
def measure_floors(store: StoreOption = DEFAULT_STORE) -> None:
    """Measure floors anew by the solvers of this version; reports then use them in place of those in the records."""
    from icl_bench.harness.training.held_out import remeasure
    from icl_bench.runs.store.floors import write_floors
    from icl_bench.runs.store.index import Index

    load_plugins_or_warn()
    index = Index(open_store(store))
    finished, problems = index.runs()
    floors, failed = remeasure(finished.outlines)
    say(f"floors of {len(floors)} sets of test examples: {write_floors(store, floors)}")
    note_problems(index, problems)
    for line in failed:
        note(f"not measured: {line}")


@runs.command("probes")
def show_probes(run: RunArgument, store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """Print the probes of a run that was trained with --keep probes: the first, the median and the last value of each.

    The first line has the outcome of the run, its step, and the causes that the probes show; --json has every value.
    """
    from icl_bench.commands.console import terminal
    from icl_bench.commands.tables import probes_table
    from icl_bench.runs.probes import causes_of, ending_of
    from icl_bench.runs.store.kept_records import kept_probes

    opened = open_store(store)
    record = opened.load(opened.find(run))
    kept, result = kept_probes(opened, record.result), record.result
    curve = [(point.step, point.accuracy) for point in record.metrics]
    ending = ending_of(result.status, result.steps, result.detail, curve, result.floor)
    causes = causes_of(kept.until(result.steps), record.spec["train"]["clip"])
    if as_json:
        found = {"outcome": ending.outcome, "outcome_step": ending.step, "causes": causes}
        print_json({**found, "probes": kept.model_dump(mode="json")})
    else:
        why = f"; causes: {', '.join(causes)}" if causes else ""
        terminal().print(probes_table(kept, f"{result.id}: {ending.outcome} at step {ending.step}{why}"))


@runs.command("export")
def export_runs(
    file: Annotated[
        Path | None, typer.Argument(help="The file to write: .csv, .json, .jsonl, or .parquet (needs pyarrow).")
    ] = None,
    curves: Annotated[
        bool, typer.Option("--curves", help="A row for each run, validation and cell, instead of each run and cell.")
    ] = False,
    probes: Annotated[
        bool, typer.Option("--probes", help="A row for each number at each step that --keep probes measured.")
    ] = False,
    to: Annotated[
        list[str] | None, typer.Option("--to", help="Log the runs to tensorboard, trackio or wandb; repeatable.")
    ] = None,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Write finished runs as one table, or log them.

    Example: icl-bench runs export runs.csv
    """
    from icl_bench.runs.store.export import write_table
    from icl_bench.runs.store.index import Index

    opened = open_store(store)
    index = Index(opened)
    finished, problems = index.runs()
    if curves and probes:
        raise SpecError("a table has one kind of rows; got --curves and --probes; choose one of them")
    if file is None and not to:
        raise SpecError("an export has a file or a logger; got neither; write `icl-bench runs export runs.csv`")
    if to:
        log_runs(finished, opened, to)
    if file is not None:
        rows, unread = write_table(finished, opened, file, "curves" if curves else "probes" if probes else "cells")
        problems = [*problems, *unread]
        say(f"{rows} rows of {len(finished.outlines)} runs: {file}")
    note_problems(index, problems)


def log_runs(finished: "FinishedRuns", store: "Store", names: list[str]) -> None:
    """Log every finished run; exit with status 3 if a logger fails."""
    from icl_bench.harness.loggers import log_finished, make_loggers

    loggers = make_loggers(names, store)
    kept = log_finished((store.load(outline.id) for outline in finished.outlines), loggers)
    say(f"{len(finished.outlines)} runs logged to {', '.join(kept) or 'none'}: {store.root / 'logs'}")
    if len(kept) < len(loggers):
        raise typer.Exit(SOMETHING_FAILED)


def merge(
    sources: Annotated[list[Path], typer.Argument(help="Stores to copy from.", show_default=False)],
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Copy runs of other stores into one; nothing is overwritten. Exit status 3 if runs differ or are damaged.

    Example: icl-bench merge node1/icl-runs node2/icl-runs --store icl-runs
    """
    from icl_bench.runs.store import Store
    from icl_bench.runs.store.merge import merge_stores

    done = merge_stores(sources, Store(store))
    say(f"{done.copied} runs copied, {done.present} there already")
    for line in done.conflicts:
        note(f"conflict: {line}")
    for problem in done.problems:
        note(f"not copied: {problem}")
    if done.conflicts or done.problems:
        raise typer.Exit(SOMETHING_FAILED)


def report(
    source: Annotated[Path, typer.Argument(help="A store of finished runs.")] = DEFAULT_STORE,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help=REPORT_HELP, show_default="report-STORE.md")
    ] = None,
) -> None:
    """Write a report, with figures, of every run in a store."""
    from icl_bench.reports.context import NO_STUDY
    from icl_bench.runs.store import Store
    from icl_bench.runs.store.index import Index, uncollected
    from icl_bench.runs.store.listing import INTERRUPTED, unfinished

    file = output or default_report("report", source.resolve().name)
    check_report(file)
    index = Index(Store(source))
    runs, problems = index.runs()
    interrupted = sum(row.status == INTERRUPTED for row in unfinished(index.store))
    if not runs.outlines and not problems:
        raise StoreError(
            f"a report needs finished runs; {source} has none; make some with `icl-bench run --store {source}`"
        )
    note_problems(index, ())
    with uncollected():
        say(str(write_files(runs, problems, file, NO_STUDY._replace(interrupted=interrupted))))


def open_store(path: Path) -> "Store":
    """Open a store that exists; raises StoreError if it does not, or cannot be opened."""
    from icl_bench.runs.store import Store
    from icl_bench.runs.store.files import Folder

    if not Folder(path).exists():
        raise StoreError(f"a store is a folder of runs; {path} is none; give one that exists")
    store = Store(path)
    store.check_folders()
    return store


def print_rows(rows: "list[Summary]") -> None:
    """Print runs in columns, and their number on standard error."""
    from icl_bench.escapes import plain

    cells = [
        (row.id, row.status, plain(row.task), plain(row.arch), "-" if row.seed is None else str(row.seed),
         f"{row.lr:.3g}" if row.lr else "-",
         f"{row.accuracy:.3f}" if row.status == "ok" else "-", plain(row.started) or "-")
        for row in rows
    ]  # fmt: skip
    head = ("id", "status", "task", "architecture", "seed", "lr", "accuracy", "started")
    widths = [max(len(row[i]) for row in (head, *cells)) for i in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *cells)]
    say(*(line.rstrip() for line in lines))
    cut = sum(row.status == "interrupted" for row in rows)
    note(f"{len(rows):,} runs" + (f", {cut:,} of them interrupted" if cut else ""))


def print_record(record: "RunRecord") -> None:
    """Print a run as lines of name and value."""
    from icl_bench.schema import canonical_json

    result = record.result
    facts = {key: value if isinstance(value, str) else canonical_json(value) for key, value in result.summary().items()}
    facts |= {f"spec.{key}": canonical_json(value) for key, value in record.spec.items()}
    facts |= {key: str(value) for key, value in record.manifest.model_dump(mode="json").items()}
    for name, value in facts.items():
        for i, line in enumerate(value.splitlines() or [""]):
            say(f"{'' if i else name:<20} {line}")
