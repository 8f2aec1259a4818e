"""The command line `icl-bench`: wires the commands together, and turns errors and signals into exit statuses."""

import sys
from typing import Annotated, NoReturn

import typer

from icl_bench import __version__
from icl_bench.commands.catalogue import archs, check_arch, doctor, plugins, show, state, tasks
from icl_bench.commands.kernels import kernels
from icl_bench.commands.output import USER_MUST_CHANGE_SOMETHING
from icl_bench.commands.run import quickstart, run
from icl_bench.commands.runs import merge, report, runs
from icl_bench.commands.study import compare, studies, sweep
from icl_bench.commands.verify import verify
from icl_bench.errors import IclBenchError
from icl_bench.harness.interruption import Interrupted, listen

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"max_content_width": 110},
)
LISTED = (
    *(quickstart, run, compare, sweep, studies, report, verify),
    *(tasks, archs, plugins, show, state, check_arch, doctor, merge),
)
for command in LISTED:
    app.command()(command)
app.add_typer(kernels, name="kernels")
app.add_typer(runs, name="runs")


@app.callback(invoke_without_command=True)
def start(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
    plugin: Annotated[
        list[str] | None,
        typer.Option(help="Import this module, which registers tasks, architectures or engines; repeatable."),
    ] = None,
) -> None:
    """Measure recall from context against state size, for sequence-mixing layers."""
    if plugin:
        from icl_bench.registry import add_plugin_modules

        add_plugin_modules(plugin)
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main() -> NoReturn:
    """Run the command line and exit: status 2 after an error that the user can mend, 130 or 143 after a signal."""
    listen()
    try:
        app()
    except IclBenchError as error:
        typer.echo(f"Error: {error}", err=True)
        sys.exit(USER_MUST_CHANGE_SOMETHING)
    except Interrupted as interruption:
        typer.echo(f"{interruption}; the same command continues", err=True)
        sys.exit(interruption.status)
    sys.exit(0)
