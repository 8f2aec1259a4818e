"""The command line: each command parses, calls the library once, and prints."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from icl_bench import __version__
from icl_bench.errors import IclBenchError, StoreError

if TYPE_CHECKING:
    from icl_bench.harness.record import RunRecord
    from icl_bench.harness.resolve import Request

SOME_RUNS_FAILED = 3
USER_MUST_CHANGE_SOMETHING = 2

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"max_content_width": 110},
)

TaskArgument = Annotated[str, typer.Argument(help="A task: name or name:key=value,... (see `icl-bench tasks`).")]
ArchOption = Annotated[
    list[str], typer.Option("--arch", help="An architecture: name or name:key=value,...; a+b for hybrids; repeatable.")
]
PresetOption = Annotated[
    str, typer.Option(help="Settings: quick (two cores), default, zoology (the published protocol).")
]
SeedsOption = Annotated[str, typer.Option(help="Seeds: 0, 0,1,5 or a range 0..4.")]
LrOption = Annotated[str | None, typer.Option(help="Learning rate: 1e-3, 1e-3,3e-3 or a log grid 1e-4..3e-2/7.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Any other field, as train.steps=2000; repeatable.")]
PrecisionOption = Annotated[str, typer.Option(help="Arithmetic: float32 or bfloat16.")]
DeviceOption = Annotated[str, typer.Option(help="Where to run: auto, cpu or cuda.", rich_help_panel="Machine")]
ImplOption = Annotated[
    str, typer.Option(help="Kernel implementation: auto, reference, triton, ...", rich_help_panel="Machine")
]
FleetOption = Annotated[
    int | None,
    typer.Option("--fleet", min=1, help="Runs trained together; 1 on a CPU, 32 on a GPU.", rich_help_panel="Machine"),
]
GraphsOption = Annotated[
    bool, typer.Option("--graphs/--no-graphs", help="Capture steps on a GPU in graphs.", rich_help_panel="Machine")
]
StoreOption = Annotated[Path, typer.Option(help="Folder of finished runs.", rich_help_panel="Output")]
ReportOption = Annotated[
    Path | None, typer.Option("--report", help="Write a Markdown report to this file.", rich_help_panel="Output")
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON document and nothing else.", rich_help_panel="Output")
]
DEFAULT_STORE = Path("icl-runs")


@app.callback(invoke_without_command=True)
def start(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    """Recall from context against state size, for sequence-mixing layers."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
def quickstart(
    store: StoreOption = DEFAULT_STORE,
    report: Annotated[Path, typer.Option(help="The report to write.", rich_help_panel="Output")] = Path("report.md"),
    device: DeviceOption = "auto",
) -> None:
    """The main job in about a minute: four architectures on associative recall, ending with a report."""
    from icl_bench.harness.resolve import QUICKSTART

    records = execute(QUICKSTART, store, device, "auto", None, True)
    finish(records, as_json=False, report=report)


@app.command()
def run(
    task: TaskArgument,
    arch: ArchOption,
    preset: PresetOption = "default",
    seeds: SeedsOption = "0",
    lr: LrOption = None,
    settings: SetOption = None,
    precision: PrecisionOption = "float32",
    device: DeviceOption = "auto",
    impl: ImplOption = "auto",
    graphs: GraphsOption = True,
    fleet: FleetOption = None,
    store: StoreOption = DEFAULT_STORE,
    report: ReportOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train and evaluate one or many architectures on a task.

    Example: icl-bench run assoc-recall --arch power:p=2 --arch linear --seeds 0..2
    """
    from icl_bench.harness.resolve import Request, parse_lrs, parse_seeds

    load_plugins_or_warn()
    request = Request(
        task=task,
        archs=arch,
        preset=preset,
        lrs=parse_lrs(lr) if lr else (),
        seeds=parse_seeds(seeds),
        precision=precision,
        settings=settings or (),
    )
    finish(execute(request, store, device, impl, fleet, graphs), as_json=as_json, report=report)


@app.command()
def report(
    source: Annotated[Path, typer.Argument(help="A store of finished runs.")] = DEFAULT_STORE,
    output: Annotated[Path, typer.Option("--output", "-o", help="The report to write.")] = Path("report.md"),
) -> None:
    """Write a Markdown report, with figures, of every run in a store."""
    from icl_bench.harness.store import Store
    from icl_bench.reports.report import write_report

    records, problems = Store(source).read_all()
    if not records and not problems:
        raise StoreError(
            f"a report needs finished runs; {source} has none; make some with `icl-bench run --store {source}`"
        )
    typer.echo(write_report(records, problems, output, command_line()))


@app.command()
def tasks(as_json: JsonOption = False) -> None:
    """List the tasks, one line each."""
    from icl_bench.tasks import TASKS

    load_plugins_or_warn()
    listing("tasks", [{"name": name, "summary": TASKS.summary(name)} for name in TASKS], as_json)


@app.command()
def archs(as_json: JsonOption = False) -> None:
    """List the architectures, one line each."""
    from icl_bench.architectures import ARCHITECTURES

    load_plugins_or_warn()
    listing("archs", [{"name": name, "summary": ARCHITECTURES.summary(name)} for name in ARCHITECTURES], as_json)


@app.command()
def plugins(as_json: JsonOption = False) -> None:
    """List the installed plug-ins, and what went wrong with them."""
    from icl_bench.registry import load_plugins

    rows = [{"name": p.name, "summary": p.error or f"{p.target} from {p.distribution}"} for p in load_plugins()]
    listing("plugins", rows, as_json)


@app.command()
def show(
    task: TaskArgument,
    cell: Annotated[str | None, typer.Option(help="A cell of the task, by its label; the first by default.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the example.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Print one example of a task, its scored positions marked with their targets."""
    from icl_bench.harness.show import example, render

    load_plugins_or_warn()
    shown = example(task, cell, seed)
    if as_json:
        print_json(shown.document())
    else:
        stdout_console().print(render(shown))


@app.command()
def state(
    specs: Annotated[list[str], typer.Argument(help="Architectures: name or name:key=value,...")],
    length: Annotated[int, typer.Option(min=1, help="Tokens after which the state is counted.")] = 1024,
    d_model: Annotated[int, typer.Option("--d-model", min=1, help="Model width.")] = 64,
    layers: Annotated[int, typer.Option(min=1, help="Number of layers.")] = 2,
    as_json: JsonOption = False,
) -> None:
    """State, parameters, work and weight-state FLOP ratio of architectures; nothing is trained."""
    from icl_bench.harness.accounting import account
    from icl_bench.reports.accounts import state_table

    load_plugins_or_warn()
    rows = [account(spec, d_model, layers, length) for spec in specs]
    if as_json:
        print_json({"schema": 1, "archs": [row._asdict() for row in rows]})
    else:
        stdout_console().print(state_table(rows))


@app.command()
def doctor(store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """What this machine can run, and what is missing."""
    from icl_bench.harness.doctor import examine

    checks = examine(store)
    if as_json:
        print_json({"schema": 1, "checks": [check._asdict() for check in checks]})
        return
    for check in checks:
        typer.echo(f"{'ok     ' if check.ok else 'missing'}  {check.name}: {check.detail}")


def execute(
    request: "Request", store: Path, device: str, impl: str, fleet: int | None, graphs: bool
) -> "list[RunRecord]":
    """Carry out a request and read its runs back."""
    from rich.console import Console

    from icl_bench.harness.engine import FLEET_SIZE, InlineEngine, run_all
    from icl_bench.harness.environment import pick_device
    from icl_bench.harness.fleet import Machine
    from icl_bench.harness.resolve import expand
    from icl_bench.harness.store import Store
    from icl_bench.reports.progress import make_reporter

    chosen = pick_device(device)
    specs = expand(request)
    engine = InlineEngine(Machine(chosen, impl, graphs))
    reporter = make_reporter(Console(stderr=True))
    return run_all(specs, Store(store), engine, fleet or FLEET_SIZE[chosen.type], reporter)


def finish(records: "list[RunRecord]", as_json: bool, report: Path | None) -> None:
    """Print the results, write the report where one is asked for, and exit with 3 where a run failed."""
    from icl_bench.reports.report import write_report
    from icl_bench.reports.terminal import results_table

    if as_json:
        print_json({"schema": 1, "runs": [record.result.summary() for record in records]})
    else:
        stdout_console().print(results_table(records))
    if report is not None:
        written = write_report(records, [], report, command_line())
        typer.echo(f"report: {written}", err=as_json)
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


def main() -> NoReturn:
    """The installed program: an error that the user can mend is one line and exit status 2."""
    try:
        app()
    except IclBenchError as error:
        typer.echo(f"Error: {error}", err=True)
        sys.exit(USER_MUST_CHANGE_SOMETHING)
    sys.exit(0)
