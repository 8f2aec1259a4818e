"""The commands on finished runs: `icl-bench runs`, `merge` and `report`."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from icl_bench.commands.options import DEFAULT_STORE, REPORT_HELP, JsonOption, StoreOption
from icl_bench.commands.output import SOMETHING_FAILED, note_problems, print_json, write_files
from icl_bench.commands.session import load_plugins_or_warn
from icl_bench.errors import StoreError

if TYPE_CHECKING:
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
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """List runs, one line each: finished runs, then interrupted and running ones."""
    from icl_bench.runs.store.index import Index
    from icl_bench.runs.store.listing import Filters, parse_since, unfinished

    opened = open_store(store)
    index = Index(opened)
    finished, problems = index.summaries()
    filters = Filters(task, arch, status, parse_since(since, datetime.now(UTC)) if since else None)
    rows = [row for row in (*finished, *unfinished(opened)) if filters.admit(row)]
    if as_json:
        print_json({"runs": [row._asdict() for row in rows], "problems": [str(problem) for problem in problems]})
        return
    print_rows(rows)
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
        typer.echo(f"{run_id} is now {opened.remove(run_id)}")


@runs.command("verify")
def verify_runs(store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """Read every byte of every run and compare digests; exit status 3 if something is damaged."""
    from icl_bench.runs.store.verify import verify_store

    found = verify_store(open_store(store))
    if as_json:
        print_json(found._asdict())
    else:
        typer.echo(f"{found.runs} runs and {found.checkpoints} checkpoints are whole, {len(found.problems)} problems")
        for problem in found.problems:
            typer.echo(f"damaged: {problem}", err=True)
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
    typer.echo(f"floors of {len(floors)} sets of test examples: {write_floors(store, floors)}")
    note_problems(index, problems)
    for line in failed:
        typer.echo(f"not measured: {line}", err=True)


@runs.command("export")
def export_runs(
    file: Annotated[Path, typer.Argument(help="The file to write: .csv, or .parquet (needs pyarrow).")],
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Write finished runs as one table, a row for each run and cell."""
    from icl_bench.runs.store.export import export_records
    from icl_bench.runs.store.index import Index

    index = Index(open_store(store))
    finished, problems = index.runs()
    typer.echo(f"{export_records(finished.load_all(), file)} rows of {len(finished.outlines)} runs: {file}")
    note_problems(index, problems)


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
    typer.echo(f"{done.copied} runs copied, {done.present} there already")
    for line in done.conflicts:
        typer.echo(f"conflict: {line}", err=True)
    for problem in done.problems:
        typer.echo(f"not copied: {problem}", err=True)
    if done.conflicts or done.problems:
        raise typer.Exit(SOMETHING_FAILED)


def report(
    source: Annotated[Path, typer.Argument(help="A store of finished runs.")] = DEFAULT_STORE,
    output: Annotated[Path, typer.Option("--output", "-o", help=REPORT_HELP)] = Path("report.md"),
) -> None:
    """Write a report, with figures, of every run in a store."""
    from icl_bench.reports.context import NO_STUDY
    from icl_bench.runs.store import Store
    from icl_bench.runs.store.index import Index, uncollected
    from icl_bench.runs.store.listing import INTERRUPTED, unfinished

    index = Index(Store(source))
    runs, problems = index.runs()
    interrupted = sum(row.status == INTERRUPTED for row in unfinished(index.store))
    if not runs.outlines and not problems:
        raise StoreError(
            f"a report needs finished runs; {source} has none; make some with `icl-bench run --store {source}`"
        )
    note_problems(index, ())
    with uncollected():
        typer.echo(write_files(runs, problems, output, NO_STUDY._replace(interrupted=interrupted)))


def open_store(path: Path) -> "Store":
    """Open a store that exists; raises StoreError if it does not."""
    from icl_bench.runs.store import Store

    if not path.is_dir():
        raise StoreError(f"a store is a folder of runs; {path} is none; choose another with --store")
    store = Store(path)
    store.check_folders()
    return store


def print_rows(rows: "list[Summary]") -> None:
    """Print runs in columns, and their number on standard error."""
    from icl_bench.reports.text import plain

    cells = [
        (row.id, row.status, plain(row.task), plain(row.arch), str(row.seed), f"{row.lr:.3g}" if row.lr else "-",
         f"{row.accuracy:.3f}" if row.status == "ok" else "-", plain(row.started) or "-")
        for row in rows
    ]  # fmt: skip
    head = ("id", "status", "task", "architecture", "seed", "lr", "accuracy", "started")
    widths = [max(len(row[i]) for row in (head, *cells)) for i in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *cells)]
    typer.echo("\n".join(line.rstrip() for line in lines))
    cut = sum(row.status == "interrupted" for row in rows)
    typer.echo(f"{len(rows):,} runs" + (f", {cut:,} of them interrupted" if cut else ""), err=True)


def print_record(record: "RunRecord") -> None:
    """Print a run as lines of name and value."""
    from icl_bench.reports.text import plain
    from icl_bench.schema import canonical_json

    result = record.result
    facts = {key: value if isinstance(value, str) else canonical_json(value) for key, value in result.summary().items()}
    facts |= {f"spec.{key}": canonical_json(value) for key, value in record.spec.items()}
    facts |= {key: str(value) for key, value in record.manifest.model_dump(mode="json").items()}
    for name, value in facts.items():
        for i, line in enumerate(value.splitlines() or [""]):
            typer.echo(f"{'' if i else name:<20} {plain(line)}")
