"""The command line `icl-bench`: wires the commands together, and turns errors and signals into exit statuses."""

import signal
import sys
import traceback
import warnings
from types import TracebackType
from typing import Annotated, Any, NoReturn, TextIO

import typer

from icl_bench import __version__
from icl_bench.commands.catalogue import archs, check_arch, check_task, doctor, plugins, show, state, tasks
from icl_bench.commands.corpus import corpus
from icl_bench.commands.kernels import kernels
from icl_bench.commands.output import USER_MUST_CHANGE_SOMETHING, WHOLE_TRACEBACKS, note, note_trace, say
from icl_bench.commands.run import quickstart, run
from icl_bench.commands.runs import merge, report, runs
from icl_bench.commands.samples import samples
from icl_bench.commands.streams import open_streams
from icl_bench.commands.study import compare, studies, sweep
from icl_bench.commands.validate import validate
from icl_bench.commands.verify import verify
from icl_bench.commands.view import view
from icl_bench.errors import IclBenchError, OutsideCodeError
from icl_bench.harness.interruption import Interrupted, conclude, listen, raise_if_interrupted
from icl_bench.isolation import isolating

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"max_content_width": 110, "help_option_names": ["-h", "--help"]},
)
LISTED = (
    *(quickstart, run, compare, sweep, studies, report, view, samples, verify),
    *(tasks, archs, plugins, show, state, check_arch, check_task, validate, doctor, merge),
)
for command in LISTED:
    app.command()(command)
app.add_typer(corpus, name="corpus")
app.add_typer(kernels, name="kernels")
app.add_typer(runs, name="runs")

USAGE_ERROR: Any = typer.BadParameter.__base__
"""The error of wrong options and arguments; Typer exports only this one kind of it."""


@app.callback(invoke_without_command=True)
def start(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
    plugin: Annotated[
        list[str] | None,
        typer.Option(help="Import this module, which registers tasks, architectures or engines; repeatable."),
    ] = None,
    whole: Annotated[
        bool, typer.Option(WHOLE_TRACEBACKS, help="Print whole tracebacks of code of your own; may stand anywhere.")
    ] = False,
) -> None:
    """Measure recall from context against state size, for sequence-mixing layers."""
    if plugin:
        from icl_bench.registry import add_plugin_modules

        add_plugin_modules(plugin)
    if version:
        say(__version__)
        raise typer.Exit


def main() -> NoReturn:
    """Run the command line and exit: status 2 after an error that the user can mend, 128 + n after signal n."""
    try:
        prepare_process()
        try:
            status = run_command()
        finally:
            conclude()
            raise_if_interrupted()  # a library whose import the signal cut short may have raised something else
    except Interrupted as interruption:
        if interruption.number != signal.SIGPIPE:  # then nobody reads
            note(f"{interruption}; the same command continues")
        status = interruption.status
    sys.exit(status)


def prepare_process() -> None:
    """Handle signals, guard the standard streams, and print warnings and tracebacks through the door of notes."""
    listen()
    open_streams()
    sys.excepthook = print_traceback
    warnings.showwarning = print_warning


def run_command() -> int:
    """Run the command that was typed, and return its exit status; --traceback may stand anywhere in it."""
    command = typer.main.get_command(app)
    given = [argument for argument in sys.argv[1:] if argument != WHOLE_TRACEBACKS]
    try:
        with isolating():
            return int(command.main(given, standalone_mode=False) or 0)
    except IclBenchError as error:
        note_trace(error.trace if isinstance(error, OutsideCodeError) else "")
        note(f"Error: {error}")
    except USAGE_ERROR as error:
        if text := error.format_message():  # there is none after the help that a command without arguments prints
            place = error.ctx.command_path if error.ctx else "icl-bench"
            note(f"Error: {text.rstrip('.')}; see `{place} --help`")
    return USER_MUST_CHANGE_SOMETHING


def print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the traceback of an error that nobody expected, without characters that could control the terminal."""
    for line in "".join(traceback.format_exception(kind, error, trace)).splitlines():
        note(line)


def print_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: TextIO | None = None,
    line: str | None = None,
) -> None:  # fmt: skip
    """Print a warning of Python on one line."""
    note(f"warning: {message} ({category.__name__})")
