"""The options that commands share."""

from pathlib import Path
from typing import Annotated

import typer

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
EngineOption = Annotated[
    str, typer.Option(help="What carries runs out: inline, local, ray or slurm.", rich_help_panel="Machine")
]
WorkersOption = Annotated[
    int | None,
    typer.Option(min=1, help="Workers of the engine; one a core, or one a GPU.", rich_help_panel="Machine"),
]
TimeoutOption = Annotated[
    float | None, typer.Option(min=0.1, help="Seconds after which a fleet is ended.", rich_help_panel="Machine")
]
RayAddressOption = Annotated[
    str | None, typer.Option(help="A Ray cluster: auto, or host:port.", rich_help_panel="Machine")
]
SlurmOption = Annotated[
    list[str] | None,
    typer.Option("--slurm", help="A parameter of the jobs, as partition=gpu; repeatable.", rich_help_panel="Machine"),
]
StoreOption = Annotated[Path, typer.Option(help="Folder of finished runs.", rich_help_panel="Output")]
ReportOption = Annotated[
    Path | None,
    typer.Option(
        "--report",
        help="Write a report to this file: Markdown, or one page where it ends in .html.",
        rich_help_panel="Output",
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON document and nothing else.", rich_help_panel="Output")
]
LogOption = Annotated[
    list[str] | None,
    typer.Option("--log", help="Pass runs on to tensorboard, trackio or wandb; repeatable.", rich_help_panel="Output"),
]
DEFAULT_STORE = Path("icl-runs")
