"""The commands that tune, then measure: `compare`, `sweep` and `studies`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from icl_bench.commands import options
from icl_bench.commands.output import check_report, print_json, print_listing
from icl_bench.commands.session import complete_study, estimate_seconds, load_plugins_or_warn
from icl_bench.errors import SpecError

if TYPE_CHECKING:
    from icl_bench.harness.study.protocol import StudyPlan


@options.grouped
def compare(
    task: options.TaskArgument,
    arch: options.ArchOption,
    *,
    target: options.MatchOptions,
    setting: options.SettingOptions,
    lr: Annotated[
        str, typer.Option(help="Learning rates to try; the grid is extended until the best rate is inside it.")
    ] = "1e-4..1e-1/7",
    tune_seeds: Annotated[str, typer.Option(help="Seeds of the runs that choose the learning rate.")] = "1000..1002",
    seeds: Annotated[str, typer.Option(help="Fresh seeds of the runs that measure.")] = "0..4",
    machine: options.MachineOptions,
    output: options.OutputOptions,
    report: options.NeededReportOption = Path("report.md"),
) -> None:
    """Compare architectures of equal size: tune learning rates, measure with fresh seeds, write a report.

    Example: icl-bench compare assoc-recall --arch power:p=2 --arch linear --arch window --state 16384
    """
    from icl_bench.harness.matching import parse_state
    from icl_bench.harness.resolve import parse_lrs, parse_seeds
    from icl_bench.harness.study.file import Study
    from icl_bench.schema import build

    load_plugins_or_warn()
    check_report(report)
    fields = {
        "name": "compare",
        "question": f"which architecture recalls more at {target.state} of {target.match}?",
        "tasks": (task,),
        "archs": tuple(arch),
        "sizes": (parse_state(target.state),),
        "match": {"by": target.match, "cut": target.cut},
        "lr": parse_lrs(lr),
        "tune_seeds": parse_seeds(tune_seeds),
        "seeds": parse_seeds(seeds),
        "preset": setting.preset,
        "precision": setting.precision,
        "settings": tuple(setting.settings or ()),
    }
    complete_study(build(Study, fields, "compare"), machine, output, report)


@options.grouped
def sweep(
    study: Annotated[str, typer.Argument(help="A study file, or a packaged study (see `icl-bench studies`).")],
    *,
    dry_run: options.DryRunOption = False,
    parts: Annotated[
        int | None, typer.Option(min=1, help="Run the first parts of the study alone: rungs and values of its axes.")
    ] = None,
    dirty: Annotated[
        bool, typer.Option("--dirty", help="Run a packaged study from a checkout with uncommitted changes.")
    ] = False,
    machine: options.MachineOptions,
    output: options.OutputOptions,
    report: options.NeededReportOption = Path("report.md"),
) -> None:
    """Run a study: tune, measure, write a report. The same command again continues an interrupted study."""
    from icl_bench.harness.study.file import load_study, packaged_studies
    from icl_bench.harness.study.protocol import plan_study
    from icl_bench.runs.store import Store

    load_plugins_or_warn()
    loaded = load_study(study)
    if not dry_run:
        check_report(report)
        if study in packaged_studies() and not dirty:
            check_revision(study)
        complete_study(loaded, machine, output, report, parts)
        return
    planned = plan_study(loaded, Store(output.store))
    planned = planned._replace(parts=planned.parts[:parts])
    print_plan(planned, [estimate_seconds(part.left, machine) for part in planned.parts], output.as_json)


def check_revision(study: str) -> None:
    """Refuse to run a packaged study from a checkout with uncommitted changes; raises SpecError."""
    from icl_bench.harness.environment import git_revision

    revision = git_revision()
    if revision is not None and revision.endswith("+"):
        raise SpecError(
            f"runs of a packaged study name a revision that holds their code; {study} would run at {revision}, with "
            "changes; commit them, or add --dirty"
        )


def print_plan(planned: "StudyPlan", seconds: list[float], as_json: bool) -> None:
    """Print the runs of each part of a study, an estimate of their seconds, and the architectures it compares."""
    from icl_bench.harness.estimate import in_words

    if as_json:
        parts = [
            {"part": one.part.title, "runs": one.runs, "done": one.done, "seconds": round(own, 1)}
            for one, own in zip(planned.parts, seconds, strict=True)
        ]
        archs = [
            {"part": one.part.title, "task": each.task, "arch": each.arch, "size": each.size and str(each.size)}
            for one in planned.parts
            for each in one.part.contenders
        ]
        counts = {"runs": planned.runs, "done": planned.done, "seconds": round(sum(seconds), 1)}
        print_json({**counts, "parts": parts, "archs": archs, "left_out": planned.left_out})
        return
    for number, (one, own) in enumerate(zip(planned.parts, seconds, strict=True), start=1):
        typer.echo(f"part {number}{one.part.title and ': '}{one.part.title}")
        typer.echo(f"  {one.runs} runs before the grid grows; {one.done} of the tuning runs are done")
        typer.echo(f"  about {in_words(own)} for the rest, estimated from a few steps of each kind in one process here")
        for each in one.part.contenders:
            typer.echo(f"    {each.task}  {each.arch}" + (f"  at {each.size}" if each.size else ""))
    for line in planned.left_out:
        typer.echo(f"  left out: {line}")


def studies(as_json: options.JsonOption = False) -> None:
    """List the packaged studies, one line each."""
    from icl_bench.harness.study.file import packaged_studies, parse_study

    texts = packaged_studies()
    rows = [{"name": name, "summary": parse_study(text, name).question} for name, text in texts.items()]
    print_listing("studies", rows, as_json)
