"""The options that several commands take, each typed once, and groups of them.

A command names a group as one keyword parameter, `machine: MachineOptions`; the decorator `grouped` shows the fields
of the group to Typer as options of the command and hands the command one record.
"""

import inspect
import re
from collections.abc import Callable
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_type_hints

import typer

machine_option = partial(typer.Option, rich_help_panel="Machine")
output_option = partial(typer.Option, rich_help_panel="Output")

DEFAULT_STORE = Path("icl-runs")
REPORT_HELP = "Write a report to this file: Markdown, or one HTML page if the name ends in .html."
report_option = partial(output_option, "--report", "-o", help=REPORT_HELP)

REGISTERED = re.compile(r"\.register\(\"([a-z0-9-]+)\"\)")


def registered_names(package: str) -> list[str]:
    """Return the names that the modules of a package register, from their text: completion must not load torch."""
    files = resources.files("icl_bench").joinpath(package).iterdir()
    texts = [file.read_text() for file in files if file.name.endswith(".py")]
    return sorted(name for text in texts for name in REGISTERED.findall(text))


def complete_task(incomplete: str) -> list[str]:
    """Return the tasks whose names begin so."""
    return [name for name in registered_names("tasks") if name.startswith(incomplete)]


def complete_arch(incomplete: str) -> list[str]:
    """Return the architectures whose names begin so; the last part of a hybrid is completed."""
    front, plus, last = incomplete.rpartition("+")
    return [front + plus + name for name in registered_names("architectures") if name.startswith(last)]


TaskArgument = Annotated[
    str,
    typer.Argument(help="A task: name or name:key=value,... (see `icl-bench tasks`).", autocompletion=complete_task),
]
TasksArgument = Annotated[
    list[str],
    typer.Argument(
        help="One or several tasks: name or name:key=value,... (see `icl-bench tasks`).", autocompletion=complete_task
    ),
]
ArchOption = Annotated[
    list[str],
    typer.Option(
        "--arch", "-a", help="An architecture: name or name:key=value,...; a+b for a hybrid; repeatable.",
        autocompletion=complete_arch,
    ),
]  # fmt: skip
SeedsOption = Annotated[str, typer.Option("--seeds", "-s", help="Seeds: 0, 0,1,5 or a range 0..4.")]
LrOption = Annotated[
    str | None, typer.Option(help="Learning rates: 1e-3, 1e-3,3e-3 or a logarithmic grid 1e-4..3e-2/7.")
]
TargetOption = Annotated[
    float | None,
    typer.Option("--target-flops", min=1, help="Operations of each training, in place of train.steps, such as 1e15."),
]
StoreOption = Annotated[Path, output_option(help="Folder of finished runs.")]
ReportOption = Annotated[Path | None, report_option()]
JsonOption = Annotated[bool, output_option("--json", help="Print one JSON document and nothing else.")]
QuietOption = Annotated[bool, output_option("--quiet", "-q", help="Print no progress.")]
DeviceOption = Annotated[str, machine_option(help="Device: auto, cpu or cuda.")]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Print the number of runs and an estimate of their time, and train nothing.")
]


class SettingOptions(NamedTuple):
    """Options for the model, the training and the evaluation of runs."""

    preset: Annotated[
        str, typer.Option(help="Settings: quick (for two cores), default, or zoology (the published protocol).")
    ] = "default"
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any other field, such as train.steps=2000; repeatable.")
    ] = None
    precision: Annotated[str, typer.Option(help="Arithmetic: float32, bfloat16 or float16.")] = "float32"


class MatchOptions(NamedTuple):
    """Options for the size at which architectures are compared."""

    state: Annotated[str, typer.Option(help="State to match: elements, as 16384, or bytes of float32, as 64KiB.")]
    match: Annotated[str, typer.Option(help="Quantity to match: state, params or flops.")] = "state"
    cut: Annotated[
        str, typer.Option(help="Parameters that are free: width (of keys and values) or degree (the power p).")
    ] = "width"


class MachineOptions(NamedTuple):
    """Options for the device and the engine that train the runs."""

    device: DeviceOption = "auto"
    impl: Annotated[str, machine_option(help="Kernel implementation: auto, reference, triton, ...")] = "auto"
    graphs: Annotated[
        bool, machine_option("--graphs/--no-graphs", help="Capture training steps on a GPU in graphs.")
    ] = True
    accumulate: Annotated[
        int, machine_option(min=1, help="Parts of a training batch that are computed one after the other.")
    ] = 1
    recompute: Annotated[
        bool, machine_option("--recompute", help="Compute activations twice instead of keeping them, for memory.")
    ] = False
    fleet: Annotated[
        int | None, machine_option("--fleet", min=1, help="Runs trained together: 1 on a CPU, 32 on a GPU.")
    ] = None
    engine: Annotated[
        str,
        machine_option(
            help="Engine: auto (this process, or one worker a core for longer work on a CPU), inline, or local, ray or "
            "slurm with options, such as local:workers=4,timeout=600."
        ),
    ] = "auto"


class OutputOptions(NamedTuple):
    """Options for the results of runs."""

    store: StoreOption = DEFAULT_STORE
    log: Annotated[
        list[str] | None, output_option("--log", help="Also log runs to tensorboard, trackio or wandb; repeatable.")
    ] = None
    keep: Annotated[
        str | None,
        output_option(
            help="Files that runs keep: model (its weights), samples (32 answered test examples a cell), probes."
        ),
    ] = None
    as_json: JsonOption = False
    quiet: QuietOption = False
    again: Annotated[bool, output_option("--again", help="Repeat finished runs that ended in an error.")] = False


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command that takes the fields of its groups of options as parameters of its own."""
    given = inspect.signature(command, eval_str=True).parameters
    groups = {name: own.annotation for name, own in given.items() if hasattr(own.annotation, "_fields")}
    parameters: list[inspect.Parameter] = []
    for name, own in given.items():
        if name not in groups:
            parameters.append(own.replace(kind=own.KEYWORD_ONLY))
            continue
        defaults = groups[name]._field_defaults
        for field, hint in get_type_hints(groups[name], include_extras=True).items():
            default = defaults.get(field, own.empty)
            parameters.append(inspect.Parameter(field, own.KEYWORD_ONLY, default=default, annotation=hint))

    def _call(**values: Any) -> None:
        records = {name: group(*(values.pop(field) for field in group._fields)) for name, group in groups.items()}
        command(**values, **records)

    _call.__name__, _call.__doc__, _call.__module__ = command.__name__, command.__doc__, command.__module__
    _call.__annotations__ = {own.name: own.annotation for own in parameters}
    _call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return _call
