"""The command that trains published runs again: `icl-bench verify`."""

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from icl_bench.commands import options
from icl_bench.commands.output import SOMETHING_FAILED, print_json, say
from icl_bench.commands.session import load_plugins_or_warn, make_executor

if TYPE_CHECKING:
    from icl_bench.harness.reproduction import NoiseFloor, RedoneRun

MEANING = {
    "equal": "equal in every number",
    "within": "within the noise floor",
    "differs": "differs",
    "undecided": "differs, and no noise floor is known",
}


@options.grouped
def verify(
    source: Annotated[Path, typer.Argument(help="A store, or a Markdown report with its runs.csv beside it.")],
    *,
    redo: Annotated[
        int, typer.Option(min=1, help="Number of runs to train again, the first in the order of ids, and their fleets.")
    ] = 1,
    cheapest: Annotated[
        bool, typer.Option("--cheapest", help="Take the runs of the least estimated work instead of the first ids.")
    ] = False,
    spread: Annotated[
        bool,
        typer.Option("--spread", help="Take one run of each task, architecture and budget before the second of any."),
    ] = False,
    keep_noise: Annotated[
        bool, typer.Option("--keep-noise", help="Add differences on another machine to the noise floor of the study.")
    ] = False,
    machine: options.MachineOptions,
    as_json: options.JsonOption = False,
) -> None:
    """Train runs of a published study or store again, and say whether they agree; exit status 3 if one does not.

    On the same machine a run must be equal bit for bit, in its whole fleet; elsewhere, within the noise floor. Every
    verdict is printed, and its difference kept, when the fleet of the run has ended; a command that is interrupted
    prints those that it has.
    """
    from icl_bench.harness.reproduction import Source, redo_fleets

    load_plugins_or_warn()
    published = Source(source)
    fleets, noise = published.pick(redo, cheapest, spread), published.noise
    rows: list[dict[str, Any]] = []

    def judge(one: "RedoneRun") -> None:
        rows.append(describe_redone(one, noise.without(one.record.result.id).largest))
        if keep_noise:
            published.keep_noise([one])
        if not as_json:
            say_redone(rows[-1])

    asked, floor = sum(map(len, fleets)), noise.largest
    if not as_json:
        say(describe_noise(noise))
    with TemporaryDirectory() as folder:
        executor = make_executor(machine, options.OutputOptions(Path(folder)))
        try:
            with closing(executor.engine):
                redo_fleets(fleets, executor, judge)
        finally:
            agree = 0 < asked == sum(row["verdict"] in ("equal", "within") for row in rows)
            if as_json:
                print_json({"source": str(source), "agree": agree, "noise_floor": floor, "asked": asked, "runs": rows})
            else:
                say(*verdict_lines(rows, asked, agree))
    if not agree:
        raise typer.Exit(SOMETHING_FAILED)


def verdict_lines(rows: list[dict[str, Any]], asked: int, agree: bool) -> tuple[str, str]:
    """Return what is said of all runs that were trained again."""
    equal = sum(row["verdict"] == "equal" for row in rows)
    counts = f"{len(rows)} of {asked} runs trained again, {equal} equal in every number"
    return counts, "the runs agree" if agree else "not all runs are shown to agree"


def describe_noise(noise: "NoiseFloor") -> str:
    """Say what is known of the noise of a study: one bimodal run among the repetitions makes the largest one wide."""
    found = sorted(noise.differences)
    if not found:
        return "no noise floor is known"
    count = f"{len(found)} differences" if len(found) > 1 else "1 difference"
    return f"noise floor: {found[-1]:.4f} in accuracy, the largest of {count}, whose median is {median(found):.4f}"


def say_redone(row: Mapping[str, Any]) -> None:
    """Print the verdict on a run trained again."""
    say(f"{row['id']}  {row['arch']} seed {row['seed']} lr {row['lr']:.3g}: {MEANING[row['verdict']]}")
    say(f"  accuracy {row['published']:.4f} as published, {row['redone']:.4f} now ({row['device']})")


def describe_redone(one: "RedoneRun", floor: float | None) -> dict[str, Any]:
    """Return the fields of a run trained again that are printed."""
    result, published = one.record.result, one.published
    return {
        "id": result.id,
        "task": result.task,
        "arch": result.arch,
        "seed": result.seed,
        "lr": result.lr,
        "status": {"published": published.status, "redone": result.status},
        "published": published.accuracy,
        "redone": result.accuracy,
        "difference": one.difference,
        "device": one.record.manifest.device,
        "same_machine": one.same_machine,
        "verdict": one.verdict(floor),
    }
