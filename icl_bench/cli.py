"""The command line: each command parses, calls the library once, and prints."""

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from icl_bench import __version__
from icl_bench.commands.kernels import kernels
from icl_bench.commands.options import (
    DEFAULT_STORE,
    ArchOption,
    DeviceOption,
    EngineOption,
    FleetOption,
    GraphsOption,
    ImplOption,
    JsonOption,
    LogOption,
    LrOption,
    PrecisionOption,
    PresetOption,
    RayAddressOption,
    ReportOption,
    SeedsOption,
    SetOption,
    SlurmOption,
    StoreOption,
    TaskArgument,
    TimeoutOption,
    WorkersOption,
)
from icl_bench.commands.runs import merge, runs, tell_if_not_kept
from icl_bench.commands.session import (
    carry_out,
    check_report,
    execute,
    finish,
    listing,
    load_plugins_or_warn,
    logged,
    print_json,
    stdout_console,
    workshop,
    write_files,
)
from icl_bench.errors import IclBenchError, StoreError
from icl_bench.harness.engines.choice import Choice
from icl_bench.harness.interruption import Interrupted, listen

USER_MUST_CHANGE_SOMETHING = 2

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"max_content_width": 110},
)

app.add_typer(kernels, name="kernels")
app.add_typer(runs, name="runs")


@app.callback(invoke_without_command=True)
def start(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
    plugin: Annotated[
        list[str] | None, typer.Option(help="Import this module of tasks or architectures of your own; repeatable.")
    ] = None,
) -> None:
    """Recall from context against state size, for sequence-mixing layers."""
    if plugin:
        from icl_bench.registry import name_plugins

        name_plugins(plugin)
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
def quickstart(
    store: StoreOption = DEFAULT_STORE,
    report: Annotated[
        Path,
        typer.Option(
            help="The report to write: Markdown, or one page where it ends in .html.", rich_help_panel="Output"
        ),
    ] = Path("report.md"),
    device: DeviceOption = "auto",
) -> None:
    """The main job in about a minute: four architectures on associative recall, ending with a report."""
    from icl_bench.harness.resolve import QUICKSTART

    check_report(report)
    records = execute(QUICKSTART, store, workshop(device, "auto", None, True))
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
    engine: EngineOption = "inline",
    workers: WorkersOption = None,
    timeout: TimeoutOption = None,
    ray_address: RayAddressOption = None,
    slurm: SlurmOption = None,
    store: StoreOption = DEFAULT_STORE,
    report: ReportOption = None,
    log: LogOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train and evaluate one or many architectures on a task.

    Example: icl-bench run assoc-recall --arch power:p=2 --arch linear --seeds 0..2
    """
    from icl_bench.harness.resolve import Request, parse_lrs, parse_seeds

    load_plugins_or_warn()
    check_report(report)
    request = Request(
        task=task,
        archs=arch,
        preset=preset,
        lrs=parse_lrs(lr) if lr else (),
        seeds=parse_seeds(seeds),
        precision=precision,
        settings=settings or (),
    )
    shop = workshop(device, impl, fleet, graphs, Choice(engine, workers, timeout, ray_address, slurm or ()))
    finish(execute(request, store, logged(shop, log, store)), as_json=as_json, report=report)


@app.command()
def compare(
    task: TaskArgument,
    arch: ArchOption,
    state: Annotated[str, typer.Option(help="State to match: elements, as 16384, or bytes of float32, as 64KiB.")],
    match: Annotated[str, typer.Option(help="What to match: state, params or flops.")] = "state",
    cut: Annotated[
        str, typer.Option(help="What is free: width (of keys and values) or degree (the power p).")
    ] = "width",
    preset: PresetOption = "default",
    lr: Annotated[
        str, typer.Option(help="Learning rates tried, extended until the best is interior.")
    ] = "1e-4..1e-1/7",
    tune_seeds: Annotated[str, typer.Option(help="Seeds of the tuning runs.")] = "1000",
    seeds: Annotated[str, typer.Option(help="Fresh seeds that measure.")] = "0..4",
    settings: SetOption = None,
    precision: PrecisionOption = "float32",
    device: DeviceOption = "auto",
    impl: ImplOption = "auto",
    graphs: GraphsOption = True,
    fleet: FleetOption = None,
    engine: EngineOption = "inline",
    workers: WorkersOption = None,
    timeout: TimeoutOption = None,
    ray_address: RayAddressOption = None,
    slurm: SlurmOption = None,
    store: StoreOption = DEFAULT_STORE,
    report: Annotated[
        Path,
        typer.Option(
            help="The report to write: Markdown, or one page where it ends in .html.", rich_help_panel="Output"
        ),
    ] = Path("report.md"),
    log: LogOption = None,
    as_json: JsonOption = False,
) -> None:
    """Architectures at one size: tuned learning rates, fresh seeds, a report.

    Example: icl-bench compare assoc-recall --arch power:p=2 --arch linear --arch window --state 16384
    """
    from icl_bench.harness.study.protocol import Study
    from icl_bench.schema import build

    load_plugins_or_warn()
    check_report(report)
    given = {"by": match, "cut": cut}
    fields = {"lr": lr, "tune_seeds": tune_seeds, "seeds": seeds, "preset": preset, "precision": precision}
    question = f"which architecture recalls more at {state} of {match}?"
    asked = {"name": "compare", "question": question, "tasks": [task], "archs": arch, "sizes": [state], "match": given}
    study = build(Study, {**asked, **fields, "settings": settings or ()}, "compare")
    shop = workshop(device, impl, fleet, graphs, Choice(engine, workers, timeout, ray_address, slurm or ()))
    carry_out(study, store, logged(shop, log, store), report, as_json)


@app.command()
def sweep(
    study: Annotated[str, typer.Argument(help="A study file, or a packaged study (see `icl-bench studies`).")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print how many runs there are and about how long they take.")
    ] = False,
    device: DeviceOption = "auto",
    impl: ImplOption = "auto",
    graphs: GraphsOption = True,
    fleet: FleetOption = None,
    engine: EngineOption = "inline",
    workers: WorkersOption = None,
    timeout: TimeoutOption = None,
    ray_address: RayAddressOption = None,
    slurm: SlurmOption = None,
    store: StoreOption = DEFAULT_STORE,
    report: Annotated[
        Path,
        typer.Option(
            help="The report to write: Markdown, or one page where it ends in .html.", rich_help_panel="Output"
        ),
    ] = Path("report.md"),
    log: LogOption = None,
    as_json: JsonOption = False,
) -> None:
    """Carry out a study: tune, measure, report. The same command again continues it."""
    from icl_bench.harness.study.protocol import load_study, plan
    from icl_bench.runs.store import Store

    load_plugins_or_warn()
    loaded = load_study(study)
    if not dry_run:
        check_report(report)
        shop = workshop(device, impl, fleet, graphs, Choice(engine, workers, timeout, ray_address, slurm or ()))
        carry_out(loaded, store, logged(shop, log, store), report, as_json)
        return
    from icl_bench.commands.session import expected_seconds
    from icl_bench.harness.estimate import in_words

    planned = plan(loaded, Store(store))
    seconds = expected_seconds(planned.left, device, impl, graphs, fleet)
    if as_json:
        archs = [{"task": e.task, "arch": e.arch, "size": e.size} for e in planned.entrants]
        print_json(
            {
                "schema": 1,
                "runs": planned.runs,
                "done": planned.done,
                "seconds": round(seconds, 1),
                "archs": archs,
                "left_out": planned.left_out,
            }
        )
        return
    typer.echo(f"{planned.runs} runs before the grid is extended, {planned.done} of the tuning runs done")
    typer.echo(f"about {in_words(seconds)} for the rest in one process here, from a few steps of each kind")
    for entrant in planned.entrants:
        typer.echo(f"  {entrant.task}  {entrant.arch}" + (f"  at {entrant.size}" if entrant.size else ""))
    for line in planned.left_out:
        typer.echo(f"  left out: {line}")


@app.command()
def studies(as_json: JsonOption = False) -> None:
    """List the packaged studies, one line each."""
    from icl_bench.harness.study.protocol import packaged_studies, parse_study

    texts = packaged_studies()
    rows = [{"name": name, "summary": parse_study(text, name).question} for name, text in texts.items()]
    listing("studies", rows, as_json)


@app.command()
def report(
    source: Annotated[Path, typer.Argument(help="A store of finished runs.")] = DEFAULT_STORE,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The report to write: Markdown, or one page where it ends in .html.")
    ] = Path("report.md"),
) -> None:
    """Write a report, with figures, of every run in a store."""
    from icl_bench.reports.framing import NO_FRAME
    from icl_bench.runs.store import Store
    from icl_bench.runs.store.index import Index, uncollected
    from icl_bench.runs.store.listing import INTERRUPTED, unfinished

    index = Index(Store(source))
    runs, problems = index.outlines()
    cut = sum(row.status == INTERRUPTED for row in unfinished(index.store))
    if not runs and not problems:
        raise StoreError(
            f"a report needs finished runs; {source} has none; make some with `icl-bench run --store {source}`"
        )
    tell_if_not_kept(index)
    with uncollected():
        typer.echo(write_files(runs, problems, output, NO_FRAME._replace(interrupted=cut)))


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
    from icl_bench.commands.accounts import state_table
    from icl_bench.harness.accounting import account

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


app.command()(merge)


def main() -> NoReturn:
    """The installed program: an error that the user can mend is one line and exit status 2; a signal, 130 or 143."""
    listen()
    try:
        app()
    except IclBenchError as error:
        typer.echo(f"Error: {error}", err=True)
        sys.exit(USER_MUST_CHANGE_SOMETHING)
    except Interrupted as cut:
        typer.echo(f"{cut}; the same command continues", err=True)
        sys.exit(cut.status)
    sys.exit(0)
