"""The commands of `icl-bench runs`, and `merge`."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from icl_bench.commands.session import print_json
from icl_bench.errors import StoreError

if TYPE_CHECKING:
    from icl_bench.runs.record import RunRecord
    from icl_bench.runs.store import Store
    from icl_bench.runs.store.index import Index
    from icl_bench.runs.store.rows import Summary

SOMETHING_BROKEN = 3
DEFAULT_STORE = Path("icl-runs")

runs = typer.Typer(no_args_is_help=True, help="List, show, check, remove and export the runs of a store.")

StoreOption = Annotated[Path, typer.Option(help="Folder of finished runs.", rich_help_panel="Output")]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON document and nothing else.", rich_help_panel="Output")
]
RunArgument = Annotated[str, typer.Argument(help="A run, by its id or the beginning of it.", show_default=False)]


@runs.command("list")
def list_runs(
    task: Annotated[str | None, typer.Option(help="Of this task: its name, or its label with parameters.")] = None,
    arch: Annotated[str | None, typer.Option(help="Of this architecture: its name, or its label.")] = None,
    status: Annotated[
        str | None, typer.Option(help="That ended so: ok, diverged, oom, error, ...; interrupted or running.")
    ] = None,
    since: Annotated[str | None, typer.Option(help="Started since: 2026-01-31, 2026-01-31T12:00, 12h, 3d.")] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """List runs, one line each: finished ones, then those that were cut or are under way."""
    from icl_bench.runs.store.index import Index
    from icl_bench.runs.store.listing import Filters, listed, parse_since, unfinished

    opened = open_store(store)
    index = Index(opened)
    finished, problems = index.summaries()
    filters = Filters(task, arch, status, parse_since(since, datetime.now(UTC)) if since else None)
    rows = list(listed(finished, unfinished(opened), filters))
    if as_json:
        unreadable = [str(problem) for problem in problems]
        print_json({"schema": 1, "runs": [row._asdict() for row in rows], "problems": unreadable})
        return
    print_rows(rows)
    for problem in problems:
        typer.echo(f"unreadable: {problem}", err=True)
    tell_if_not_kept(index)


@runs.command()
def show(run: RunArgument, store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """Show one run: what was run, where, and what came out."""
    opened = open_store(store)
    record = opened.load(opened.find(run))
    if as_json:
        print_json({"schema": 1, "run": record.model_dump(mode="json")})
    else:
        print_record(record)


@runs.command("rm")
def remove(
    run: Annotated[list[str], typer.Argument(help="Runs, by their ids or the beginnings of them.", show_default=False)],
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Move runs to the folder trash of their store; to delete them, empty it."""
    opened = open_store(store)
    for run_id in [opened.find(prefix) for prefix in run]:
        typer.echo(f"{run_id} is now {opened.remove(run_id)}")


@runs.command()
def verify(store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """Read every byte of every run and compare digests; exit status 3 where something is damaged."""
    from icl_bench.runs.store.verify import verify as verify_store

    found = verify_store(open_store(store))
    if as_json:
        print_json({"schema": 1, **found._asdict()})
    else:
        typer.echo(f"{found.runs} runs and {found.checkpoints} checkpoints are whole, {len(found.problems)} problems")
        for problem in found.problems:
            typer.echo(f"damaged: {problem}", err=True)
    if found.problems:
        raise typer.Exit(SOMETHING_BROKEN)


@runs.command()
def export(
    file: Annotated[Path, typer.Argument(help="The file to write: .csv, or .parquet (needs pyarrow).")],
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Write finished runs as one table, a row for each run and cell."""
    from icl_bench.runs.store.export import export as export_records
    from icl_bench.runs.store.index import Index

    index = Index(open_store(store))
    records, problems = index.records()
    typer.echo(f"{export_records(records, file)} rows of {len(records)} runs: {file}")
    for problem in problems:
        typer.echo(f"unreadable: {problem}", err=True)
    tell_if_not_kept(index)


def merge(
    sources: Annotated[list[Path], typer.Argument(help="Stores to copy from.", show_default=False)],
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Copy runs of other stores into one; nothing is overwritten. Exit status 3 where runs differ or are damaged.

    Example: icl-bench merge node1/icl-runs node2/icl-runs --store icl-runs
    """
    from icl_bench.runs.store import Store
    from icl_bench.runs.store.merge import merge as merge_stores

    done = merge_stores(sources, Store(store))
    typer.echo(f"{done.copied} runs copied, {done.present} there already")
    for line in done.conflicts:
        typer.echo(f"conflict: {line}", err=True)
    for problem in done.problems:
        typer.echo(f"not copied: {problem}", err=True)
    if done.conflicts or done.problems:
        raise typer.Exit(SOMETHING_BROKEN)


def open_store(path: Path) -> "Store":
    """A store that is there; raises StoreError where it is not."""
    from icl_bench.runs.store import Store

    if not path.is_dir():
        raise StoreError(f"a store is a folder of runs; {path} is none; choose another with --store")
    store = Store(path)
    store.check_folders()
    return store


def tell_if_not_kept(index: "Index") -> None:
    """Say where the next command will take as long as this one."""
    if not index.kept:
        typer.echo(f"note: {index.path} cannot be written; runs are read from their folders every time", err=True)


def print_rows(rows: "list[Summary]") -> None:
    """Runs in columns."""
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
    """A run as lines of name and value."""
    from icl_bench.reports.text import plain
    from icl_bench.schema import canonical_json

    result = record.result
    facts = {key: value if isinstance(value, str) else canonical_json(value) for key, value in result.summary().items()}
    facts |= {f"spec.{key}": canonical_json(value) for key, value in record.spec.items()}
    facts |= {key: str(value) for key, value in record.manifest.model_dump(mode="json").items()}
    for name, value in facts.items():
        for i, line in enumerate(value.splitlines() or [""]):
            typer.echo(f"{'' if i else name:<20} {plain(line)}")
