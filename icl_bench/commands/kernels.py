"""The commands of `icl-bench kernels`."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from icl_bench.commands.session import print_json, stdout_console
from icl_bench.errors import ArgumentError

if TYPE_CHECKING:
    import torch

SOMETHING_BROKEN = 3

kernels = typer.Typer(no_args_is_help=True, help="Check kernels against float64, and time them beside their peers.")

OpOption = Annotated[str | None, typer.Option(help="An operator: power or attention; both by default.")]
DeviceOption = Annotated[str, typer.Option(help="Where to run: auto, cpu or cuda.", rich_help_panel="Machine")]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON document and nothing else.", rich_help_panel="Output")
]


@kernels.command()
def check(
    op: OpOption = None,
    impl: Annotated[
        list[str] | None, typer.Option("--impl", help="A form: triton, chunked, quadratic, torch, sdpa; repeatable.")
    ] = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option("--dtype", help="A type: bfloat16, float16, float32 or float64; repeatable."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Few lengths, as always on a CPU.")] = False,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Compare outputs, final states and all gradients with float64; exit status 3 where a bound is broken.

    Triton runs on a GPU, or on a CPU in its interpreter where TRITON_INTERPRET=1 is set.
    """
    from icl_bench.harness.environment import pick_device
    from icl_bench.kernels.measurement.check import check as check_kernels
    from icl_bench.reports.kernels import check_table

    place = pick_device(device)
    findings = check_kernels(place, op, impl or (), dtype or (), quick, tell)
    if not findings:
        raise ArgumentError("--op, --impl and --dtype must leave something to check; none is left: leave some out")
    broken = [finding for finding in findings if not finding.ok]
    if as_json:
        shared = origin(place)
        print_json({"schema": 1, "ok": not broken, "findings": [{**x._asdict(), **shared} for x in findings]})
    else:
        stdout_console().print(check_table(findings))
        typer.echo(f"{len(findings) - len(broken)} of {len(findings)} within their bounds")
    if broken:
        raise typer.Exit(SOMETHING_BROKEN)


@kernels.command()
def bench(
    op: OpOption = None,
    quick: Annotated[bool, typer.Option("--quick", help="Smaller sizes and fewer lengths.")] = False,
    device: DeviceOption = "auto",
    seconds: Annotated[
        float, typer.Option(min=1, help="Time for all; what comes later is not measured.", rich_help_panel="Machine")
    ] = 360,
    figure: Annotated[
        Path | None,
        typer.Option(help="Draw where power attention overtakes softmax, as SVG.", rich_help_panel="Output"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Time this library, PyTorch's attention, and the packages retention and fla-core where installed.

    A form of this library is timed only where it passes its check at that size; exit status 3 where one does not.
    """
    from icl_bench.harness.environment import pick_device
    from icl_bench.kernels.measurement.bench import bench as bench_kernels
    from icl_bench.reports.crossover import crossover_figure, curves
    from icl_bench.reports.kernels import bench_tables

    place = pick_device(device)
    rows = bench_kernels(place, op, quick, seconds, tell)
    drawn = curves(rows)
    if as_json:
        shared = origin(place)
        print_json({"schema": 1, "rows": [{**row.document(), **shared} for row in rows]})
    else:
        stdout_console().print(bench_tables(rows, drawn))
    if figure is not None and drawn:
        figure.parent.mkdir(parents=True, exist_ok=True)
        figure.write_bytes(crossover_figure(drawn))
    if figure is not None:
        tell(f"figure: {figure}" if drawn else "no figure: no length has times of both power and softmax attention")
    if any(row.broken for row in rows):
        raise typer.Exit(SOMETHING_BROKEN)


def tell(line: str) -> None:
    """Progress, on standard error."""
    typer.echo(line, err=True)


def origin(place: "torch.device") -> dict[str, Any]:
    """What numbers depend on: device, versions, date and revision."""
    from icl_bench.harness.environment import device_name, git_revision, versions
    from icl_bench.kernels.measurement.contenders import peer_versions

    date = datetime.now(UTC).isoformat(timespec="seconds")
    found = {**versions(), **peer_versions()}
    return {"device": device_name(place), "versions": found, "date": date, "revision": git_revision()}
