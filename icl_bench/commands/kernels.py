"""The commands of `icl-bench kernels`."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from icl_bench.commands.options import DeviceOption, JsonOption, machine_option, output_option
from icl_bench.commands.output import SOMETHING_FAILED, note, print_json, say
from icl_bench.errors import ArgumentError

if TYPE_CHECKING:
    import torch

    from icl_bench.kernels.measurement.measure import TimedRow

kernels = typer.Typer(no_args_is_help=True, help="Check kernels against float64, and time them beside their peers.")

OpOption = Annotated[
    list[str] | None,
    typer.Option(
        "--op", help="An operator: power, attention, delta, scan or long-convolution; repeatable, all by default."
    ),
]


@kernels.command("check")
def check_kernels(
    op: OpOption = None,
    impl: Annotated[
        list[str] | None, typer.Option("--impl", help="A form: triton, or one in operators of torch; repeatable.")
    ] = None,
    dtype: Annotated[
        list[str] | None, typer.Option("--dtype", help="A type: bfloat16, float16, float32 or float64; repeatable.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Check few lengths; always so on a CPU.")] = False,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Compare outputs, final states and all gradients with float64; exit status 3 if an error exceeds its bound.

    Triton kernels run on a GPU, or on a CPU in Triton's interpreter if TRITON_INTERPRET=1 is set.
    """
    from icl_bench.commands.console import terminal
    from icl_bench.commands.kernel_tables import check_table
    from icl_bench.harness.environment import pick_device
    from icl_bench.kernels.measurement.check import check_operators

    place = pick_device(device)
    findings = check_operators(place, op or (), impl or (), dtype or (), quick, tell)
    if not findings:
        raise ArgumentError("--op, --impl and --dtype must leave something to check; none is left: leave some out")
    broken = [finding for finding in findings if not finding.ok]
    if as_json:
        shared = origin(place)
        print_json({"ok": not broken, "findings": [{**x._asdict(), **shared} for x in findings]})
    else:
        terminal().print(check_table(findings))
        say(f"{len(findings) - len(broken)} of {len(findings)} within their bounds")
    if broken:
        raise typer.Exit(SOMETHING_FAILED)


@kernels.command("bench")
def bench_kernels(
    op: OpOption = None,
    quick: Annotated[bool, typer.Option("--quick", help="Time smaller sizes and fewer lengths.")] = False,
    device: DeviceOption = "auto",
    seconds: Annotated[float, machine_option(min=1, help="Time limit in seconds; what does not fit is skipped.")] = 360,
    cache: Annotated[
        Path | None,
        machine_option(help="Folder of compiled kernels: a later run with it need not compile them again."),
    ] = None,
    compile_only: Annotated[
        bool, machine_option("--compile-only", help="Fill the folder of --cache on a GPU, and time nothing.")
    ] = False,
    figure: Annotated[
        Path | None, output_option(help="Draw times of power and softmax attention by length, as SVG.")
    ] = None,
    rows: Annotated[
        Path | None, output_option(help="Append each row to this file when it is measured, a JSON object a line.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Time this library beside PyTorch, and beside the packages fla-core, mamba-ssm and retention if installed.

    A form of this library is timed only where it passes its check at that size; exit status 3 if one does not. On a
    GPU, rows have the share of the machine's limit, memory at the length and at twice the length, and the time of
    compilation from nothing, or with --cache that of the first run with the folder.
    """
    from icl_bench.commands.console import terminal
    from icl_bench.commands.kernel_tables import bench_tables, speed_curves
    from icl_bench.harness.environment import pick_device
    from icl_bench.kernels.measurement.bench import bench_operators
    from icl_bench.reports.crossover import crossover_figure

    place = pick_device(device)
    shared = origin(place)

    def keep(row: "TimedRow") -> None:
        if rows is not None:
            rows.parent.mkdir(parents=True, exist_ok=True)
            with rows.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**row.document(), **shared}) + "\n")

    found = bench_operators(place, op or (), quick, seconds, tell, keep, cache, compile_only)
    drawn = speed_curves(found)
    if as_json:
        print_json({"rows": [{**row.document(), **shared} for row in found]})
    else:
        terminal().print(bench_tables(found, drawn))
    if figure is not None and drawn:
        figure.parent.mkdir(parents=True, exist_ok=True)
        figure.write_bytes(crossover_figure(drawn))
    if figure is not None:
        tell(f"figure: {figure}" if drawn else "no figure: no length has times of both power and softmax attention")
    if any(row.broken for row in found):
        raise typer.Exit(SOMETHING_FAILED)


def tell(line: str) -> None:
    """Print a line of progress on standard error."""
    note(line)


def origin(place: "torch.device") -> dict[str, Any]:
    """Return what measurements depend on: device, versions, date and revision."""
    from icl_bench.harness.environment import device_name, git_revision, versions
    from icl_bench.kernels.measurement.peers import peer_versions

    date = datetime.now(UTC).isoformat(timespec="seconds")
    found = {**versions(), **peer_versions()}
    return {"device": device_name(place), "versions": found, "date": date, "revision": git_revision()}
