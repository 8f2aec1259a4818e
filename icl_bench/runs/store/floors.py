"""Floors that were measured after the runs: one file of a store, which reports use in place of those in its records.

A result never changes. When a task learns of a better trivial solver, its floors of old runs are measured anew on the
same test examples and kept here, by the test examples to which they belong.
"""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from icl_bench.runs.outline import CellExamples, Evaluation, FinishedRuns, MeasuredRun, Outline, seeds_of
from icl_bench.runs.record import SCHEMA, Alphabet, Answers, GroupScore, RunRecord, Share
from icl_bench.runs.store import files
from icl_bench.runs.store.files import Folder
from icl_bench.runs.store.parsing import parse_model
from icl_bench.schema import Frozen, content_hash

FLOORS_NAME = "floors.json"
RunT = TypeVar("RunT", RunRecord, MeasuredRun)


class GroupFloors(Frozen):
    """The accuracy of solvers that learn nothing on the scored positions of one group."""

    floor: Share
    """Accuracy of the trivial solver that is best in the group."""
    references: Mapping[str, Share]
    """Accuracy of solvers that keep the whole context, by name."""


class CellFloors(Frozen):
    """The accuracy of solvers that learn nothing on the test examples of a cell."""

    floor: Share
    """Accuracy of the best trivial solver."""
    floor_solver: str
    """Name of that solver."""
    references: Mapping[str, Share]
    """Accuracy of solvers that keep the whole context, by name."""
    answers: Answers | None
    """Number of independent answers in a context; none if the answers depend on each other."""
    alphabet: Alphabet | None
    """Number of equally likely values of each of these answers."""

    groups: Mapping[str, GroupFloors] = {}
    """The same by group of scored positions."""

    def scores(self, groups: Mapping[str, GroupScore]) -> dict[str, Any]:
        """Return the fields of a cell's score that this states, for a cell with these groups."""
        known = {name: self.groups[name].model_dump() for name in groups if name in self.groups}
        renewed = {name: score.model_copy(update=known.get(name, {})) for name, score in groups.items()}
        return {**self.model_dump(), "groups": renewed}


FloorsByExamples = Mapping[str, Mapping[str, CellFloors]]
"""Floors by `examples_key` and label of a cell."""


class FloorsFile(Frozen):
    """The file of floors."""

    schema_version: int = SCHEMA
    """Version of this layout."""
    floors: Mapping[str, Mapping[str, CellFloors]]
    """Floors by `examples_key` and label of a cell."""


def examples_key(spec: Mapping[str, Any], data_seed: int) -> str:
    """Return the key of the test examples of a run: a hash of its task, their number and the seed of the data."""
    return content_hash([spec["task"], spec["evaluation"]["examples"], data_seed], "icl-bench/examples/v1")


def write_floors(root: Path, floors: FloorsByExamples) -> Path:
    """Write the file of floors of a store anew; raise StoreError if it cannot be written."""
    path = root / FLOORS_NAME
    with files.writing(path), Folder(root).opened() as folder:
        folder.replace(FLOORS_NAME, FloorsFile(floors=floors).model_dump_json().encode())
    return path


def read_floors(root: Path) -> FloorsByExamples:
    """Read the floors of a store, none without a file; raise RecordError if the file is damaged."""
    with suppress(FileNotFoundError), Folder(root).opened() as folder:
        if folder.kind(FLOORS_NAME) is not None:
            return parse_model(FloorsFile, folder.read(FLOORS_NAME), root / FLOORS_NAME, canonical=False).floors
    return {}


def with_floors(runs: FinishedRuns, floors: FloorsByExamples) -> FinishedRuns:
    """Return runs whose scores have these floors, where they are known."""
    if not floors:
        return runs
    known: dict[tuple[Evaluation, str], Evaluation] = {}

    def renewed(outline: Outline) -> Outline:
        key = examples_key(outline.setting.spec, outline.seeds[1])
        place = (outline.evaluation, key)
        if place not in known:
            cells = tuple(renewed_examples(cell, floors.get(key, {})) for cell in outline.evaluation.cells)
            one = outline.evaluation
            known[place] = Evaluation(cells, one.controls, one.groups, one.length)
        return outline._replace(evaluation=known[place])

    outlines = [*map(renewed, runs.outlines)]
    return runs._replace(outlines=outlines, load=lambda run_id: renewed_run(runs.load(run_id), floors))


def renewed_examples(cell: CellExamples, floors: Mapping[str, CellFloors]) -> CellExamples:
    """Return the description of test examples with the floors of its cell."""
    if (new := floors.get(cell.label)) is None:
        return cell
    new_fields = {**new.model_dump(exclude={"groups"}), "references": tuple(sorted(new.references.items()))}
    return cell._replace(**new_fields)


def renewed_run(run: RunT, floors: FloorsByExamples) -> RunT:
    """Return a run whose scores have these floors, where they are known."""
    if not floors:
        return run
    known = floors.get(examples_key(run.spec, seeds_of(run)[1]), {})
    cells = tuple(
        cell.model_copy(update=known[cell.label].scores(cell.groups)) if cell.label in known else cell
        for cell in run.result.cells
    )
    result = run.result.model_copy(update={"cells": cells})
    return run._replace(result=result) if isinstance(run, MeasuredRun) else run.model_copy(update={"result": result})
