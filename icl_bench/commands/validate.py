"""The command that holds tasks against shallow solvers."""

from typing import TYPE_CHECKING, Annotated

import typer

from icl_bench.commands.options import JsonOption, complete_task
from icl_bench.commands.output import SOMETHING_FAILED, print_json
from icl_bench.commands.session import load_plugins_or_warn

if TYPE_CHECKING:
    from icl_bench.harness.validation.gate import CellVerdict

TRAINED_PER_TESTED = 5
"""Training examples on which solvers count, for each test example."""


def validate(
    tasks: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TASK]...", help="Tasks: name or name:key=value,...; all by default.", autocompletion=complete_task
        ),
    ] = None,
    trained: Annotated[
        bool, typer.Option("--trained", help="Also train a window of 1 and a bag of tokens, a minute a task on a core.")
    ] = False,
    examples: Annotated[int, typer.Option(min=100, help="Test examples of a cell.")] = 4000,
    as_json: JsonOption = False,
) -> None:
    """Check that no shallow solver beats the stated floors of tasks; exit status 3 if one does.

    Recency, first, majority, frequency, position, n-grams, copies, look-ups and truncated views, in every group of
    every cell, beyond sampling error.
    """
    from icl_bench.commands.console import terminal
    from icl_bench.commands.tables import verdict_table
    from icl_bench.harness.environment import one_thread, pick_device
    from icl_bench.harness.resolve import make_task, task_component
    from icl_bench.harness.validation.gate import Sample, names_answers, validate_task
    from icl_bench.harness.validation.trained import train_solvers
    from icl_bench.tasks import TASKS

    load_plugins_or_warn()
    sample = Sample(TRAINED_PER_TESTED * examples, examples)
    found: dict[str, list[CellVerdict]] = {}
    with one_thread(pick_device("cpu")):
        for name in tasks or [name for name in TASKS if names_answers(TASKS[name]())]:
            task = make_task(task_component(name))
            found[name] = validate_task(task, sample, train_solvers(name) if trained else {})
    failed = [name for name, cells in found.items() if any(cell.above for cell in cells)]
    if as_json:
        print_json({"ok": not failed, "examples": examples, "tasks": [document(*item) for item in found.items()]})
    else:
        terminal().print(verdict_table(found))
    if failed:
        raise typer.Exit(SOMETHING_FAILED)


def document(task: str, cells: "list[CellVerdict]") -> dict[str, object]:
    """Return the verdicts on a task for a JSON document."""
    plain = [{**cell._asdict(), "above": [one._asdict() for one in cell.above]} for cell in cells]
    return {"task": task, "ok": not any(cell.above for cell in cells), "cells": plain}
