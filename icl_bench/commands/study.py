"""The commands that tune, then measure: `compare`, `sweep` and `studies`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from icl_bench.commands import options
from icl_bench.commands.output import check_report, default_report, print_json, print_listing, say
from icl_bench.commands.session import complete_study, estimate_left, load_plugins_or_warn, prepare_engine
from icl_bench.errors import SpecError, StateBudgetError

if TYPE_CHECKING:
    from icl_bench.harness.estimate import Estimate
    from icl_bench.harness.study.file import Study
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
    seeds: Annotated[str, typer.Option("--seeds", "-s", help="Fresh seeds of the runs that measure.")] = "0..4",
    dry_run: options.DryRunOption = False,
    machine: options.MachineOptions,
    output: options.OutputOptions,
    report: Annotated[Path | None, options.report_option(show_default="compare-TASK-SIZE.md")] = None,
) -> None:
    """Compare architectures of equal size: tune learning rates, measure with fresh seeds, write a report.

    Example: icl-bench compare assoc-recall --arch power:p=2 --arch linear --arch window --state 4096
    """
    if not dry_run:
        prepare_engine(machine)
    from icl_bench.harness.matching import parse_state
    from icl_bench.harness.resolve import parse_lrs, parse_seeds
    from icl_bench.harness.study.file import Study
    from icl_bench.schema import build, parse_spec

    load_plugins_or_warn()
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
    study = build(Study, fields, "compare")
    if dry_run:
        show_plan(study, (), machine, output)
        return
    file = report or default_report("compare", parse_spec(task, versioned=True).name, target.state)
    check_report(file)
    complete_study(study, machine, output, file)


@options.grouped
def sweep(
    study: Annotated[str, typer.Argument(help="A study file, or a packaged study (see `icl-bench studies`).")],
    *,
    dry_run: options.DryRunOption = False,
    parts: Annotated[
        str | None,
        typer.Option(help="Run these parts alone, 1,2,7 or 1..3 as --dry-run numbers them, and those they start from."),
    ] = None,
    dirty: Annotated[
        bool, typer.Option("--dirty", help="Run a packaged study from a checkout with uncommitted changes.")
    ] = False,
    finished: Annotated[
        bool, typer.Option("--finished", help="Train nothing; report the architectures that the store has finished.")
    ] = False,
    machine: options.MachineOptions,
    output: options.OutputOptions,
    report: Annotated[Path | None, options.report_option(show_default="sweep-NAME.md")] = None,
) -> None:
    """Run a study: tune, measure, write a report. The same command again continues an interrupted study."""
    if not (dry_run or finished):
        prepare_engine(machine)
    from icl_bench.harness.study.file import load_study, packaged_studies
    from icl_bench.harness.study.protocol import parse_parts

    load_plugins_or_warn()
    loaded = load_study(study)
    numbers = parse_parts(parts) if parts else ()
    if not dry_run:
        file = report or default_report("sweep", loaded.name)
        check_report(file)
        if study in packaged_studies() and not dirty and not finished:
            check_revision(study)
        complete_study(loaded, machine, output, file, numbers, finished)
        return
    show_plan(loaded, numbers, machine, output)


def check_revision(study: str) -> None:
    """Refuse to run a packaged study from a checkout with uncommitted changes; raises SpecError."""
    from icl_bench.harness.environment import git_revision

    revision = git_revision()
    if revision is not None and revision.endswith("+"):
        raise SpecError(
            f"runs of a packaged study name a revision that holds their code; {study} would run at {revision}, with "
            "changes; commit them, or add --dirty"
        )


def show_plan(
    study: "Study", numbers: "Sequence[int]", machine: options.MachineOptions, output: options.OutputOptions
) -> None:
    """Print what a study, or these parts of it, would run, and an estimate of the time; train nothing.

    Raise StateBudgetError if no architecture can be matched.
    """
    from icl_bench.harness.study.protocol import chosen_parts, plan_study
    from icl_bench.runs.store import Store

    planned = plan_study(study, Store(output.store))
    if not planned.parts:
        raise StateBudgetError(f"a study needs an architecture that can be matched; {planned.left_out[0]}")
    chosen = chosen_parts([one.part for one in planned.parts], numbers)
    planned = planned._replace(parts=[one for one in planned.parts if one.part in chosen])
    left = [[spec for phase in one.left for spec in phase] for one in planned.parts]
    print_plan(planned, estimate_left(left, machine, output), output.as_json)


def print_plan(planned: "StudyPlan", estimates: "Sequence[Estimate]", as_json: bool) -> None:
    """Print the runs of each part of a study, an estimate of their time, and the architectures it compares."""
    from icl_bench.harness.estimate import in_words

    if as_json:
        parts = [
            {"part": one.part.title, "runs": one.runs, "done": one.done, "seconds": round(own.seconds, 1)}
            for one, own in zip(planned.parts, estimates, strict=True)
        ]
        archs = [
            {"part": one.part.title, "task": each.task, "arch": each.arch, "size": each.size and str(each.size)}
            for one in planned.parts
            for each in one.part.contenders
        ]
        seconds = round(sum(own.seconds for own in estimates), 1)
        counts = {"runs": planned.runs, "done": planned.done, "seconds": seconds}
        print_json({**counts, "parts": parts, "archs": archs, "left_out": planned.left_out})
        return
    for number, (one, own) in enumerate(zip(planned.parts, estimates, strict=True), start=1):
        say(f"part {number}{one.part.title and ': '}{one.part.title}")
        say(f"  {one.runs} runs before the grid grows; {one.done} of the tuning runs are done")
        say(f"  about {in_words(own.seconds)} {own.place} for the rest, {own.source}")
        for each in one.part.contenders:
            say(f"    {each.task}  {each.arch}" + (f"  at {each.size}" if each.size else ""))
    for line in planned.left_out:
        say(f"  left out: {line}")


def studies(as_json: options.JsonOption = False) -> None:
    """List the packaged studies, one line each."""
    from icl_bench.harness.study.file import packaged_studies, parse_study

    texts = packaged_studies()
    rows = [{"name": name, "summary": parse_study(text, name).question} for name, text in texts.items()]
    print_listing("studies", rows, as_json)
