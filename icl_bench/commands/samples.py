"""The command that prints what a model answered: `icl-bench samples`."""

from typing import TYPE_CHECKING, Annotated

import typer

from icl_bench.commands.options import DEFAULT_STORE, JsonOption, StoreOption
from icl_bench.commands.output import print_json
from icl_bench.commands.runs import RunArgument, open_store
from icl_bench.errors import UnknownNameError

if TYPE_CHECKING:
    from rich.text import Text

    from icl_bench.runs.kept import AnsweredExample, CellSamples, Samples

RIGHT, WRONG = "bold green", "bold red reverse"


def samples(
    run: RunArgument,
    cell: Annotated[str | None, typer.Option(help="Only this cell, by its label.")] = None,
    examples: Annotated[int, typer.Option(min=1, help="Number of examples of each cell.")] = 1,
    wrong: Annotated[bool, typer.Option("--wrong", help="Only examples with a wrong answer.")] = False,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Print test examples with the answers of a run that was trained with --keep samples.

    An answer follows its arrow; ≠ and the right answer follow a wrong one; the probability of the right one is in
    brackets.
    """
    from icl_bench.commands.console import terminal
    from icl_bench.runs.store.kept_records import kept_samples

    opened = open_store(store)
    kept = kept_samples(opened, opened.load(opened.find(run)).result)
    chosen = [one for one in kept.cells if cell in (None, one.label)]
    if not chosen:
        raise UnknownNameError(f"no cell is labelled {cell!r}; cells: {', '.join(one.label for one in kept.cells)}")
    shown = [one.model_copy(update={"examples": picked(one, examples, wrong)}) for one in chosen]
    if as_json:
        print_json({"samples": kept.model_copy(update={"cells": tuple(shown)}).model_dump(mode="json")})
    else:
        terminal().print(samples_text(kept, shown))


def picked(cell: "CellSamples", count: int, wrong: bool) -> "tuple[AnsweredExample, ...]":
    """Return the first examples of a cell, or the first with a wrong answer."""
    return tuple(one for one in cell.examples if not wrong or min(one.hits) < 1)[:count]


def samples_text(kept: "Samples", cells: "list[CellSamples]") -> "Text":
    """Write examples cell by cell, with a line above each cell that counts the right answers of all its examples."""
    from rich.text import Text

    from icl_bench.commands.tables import append_rows
    from icl_bench.escapes import plain

    text = Text(f"{plain(kept.task)}  {plain(kept.arch)}  run {kept.id}")
    whole = {cell.label: cell.examples for cell in kept.cells}
    for cell in cells:
        hits = [hit for example in whole[cell.label] for hit in example.hits]
        kind = f"{sum(hits):.0f} of {len(hits)} answers right" if hits else "no answers"
        text.append(f"\n\n{plain(cell.label)}: {kind} in {len(whole[cell.label])} kept examples")
        for example in cell.examples:
            text.append("\n")
            append_rows(text, example_pieces(example))
    return text


def example_pieces(example: "AnsweredExample") -> list[tuple[str, str]]:
    """Return each token with its style; the model's answer follows at a scored position."""
    from icl_bench.escapes import plain

    width = max(len(plain(token)) for token in example.inputs)
    pieces = [(f"{plain(token):<{width}} ", "") for token in example.inputs]
    chances = example.target_probabilities or [None] * len(example.positions)
    scored = zip(example.positions, example.answers, example.targets, example.hits, chances, strict=True)
    for t, answer, target, hit, chance in scored:
        right = hit >= 1
        expected = "" if right else f"≠{plain(target)}"
        known = "" if chance is None else f"({chance:.2f})"
        pieces[t] = f"{plain(example.inputs[t])}→{plain(answer)}{expected}{known} ", RIGHT if right else WRONG
    return pieces
