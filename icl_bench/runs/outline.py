"""Finished runs in outline: the few values that a report needs of every run, of which there may be 100,000.

A report sorts and chooses runs by their outlines, and loads only the runs that it measures. Many runs have equal
settings, environments and evaluations: each distinct one is parsed once, from a JSON text, and shared as one object.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple

from pydantic_core import to_json

from icl_bench.runs.declarations import ArchitectureDeclaration, declaration_by_name
from icl_bench.runs.probes import Probes
from icl_bench.runs.rates import validation_accuracy
from icl_bench.runs.record import Environment, Manifest, RunRecord, RunResult, Status

Seeds = tuple[int, int]
"""Seed of the parameters and seed of the data: runs with equal seeds can be compared in pairs."""
Curve = tuple[tuple[int, float], ...]
"""Step and validation accuracy of each validation, in order."""


@dataclass(frozen=True, eq=False)
class Setting:
    """The part of a specification that is equal for runs that differ in seeds and learning rate alone."""

    task: str
    arch: str
    """The task and the architecture, as reports name them."""
    load_name: str
    """The unit of a cell's load."""
    spec: Mapping[str, Any]
    """The specification without seeds and learning rate."""
    declarations: tuple[ArchitectureDeclaration, ...]
    """Declarations of the architectures of the pattern, in order."""

    def spec_of(self, seeds: Seeds, lr: float) -> dict[str, Any]:
        """Return the whole specification of a run with these seeds and this learning rate."""
        return {**self.spec, "seed": seeds[0], "data_seed": seeds[1], "train": {**self.spec["train"], "lr": lr}}


class CellExamples(NamedTuple):
    """The test examples of a cell, as its score describes them; equal for every model that is tested on them."""

    label: str
    load: int
    length: int
    floor: float
    floor_solver: str
    answers: int | None
    alphabet: int | None
    scored: int
    oracle_error: float | None
    references: tuple[tuple[str, float], ...] = ()
    """Accuracy of solvers that keep the whole context, by name."""
    repeated: float | None = None
    """Share of the examples that were trained on; none where they were not counted."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The test of a run at its end, without the model's scores; empty where the run did not end well."""

    cells: tuple[CellExamples, ...]
    controls: tuple[str, ...]
    """Names of the controls of any cell, sorted."""
    groups: tuple[str, ...]
    """Names of the groups of scored positions of any cell, sorted."""
    length: int | None
    """Number of tokens after which the recurrent state is counted; none where it is not counted."""


class Outline(NamedTuple):
    """A finished run in outline."""

    setting: Setting
    environment: Environment
    evaluation: Evaluation
    seeds: Seeds
    lr: float
    """Peak learning rate."""
    validation: float
    """Accuracy at the last validation, by which a learning rate is chosen; 0 for a run that did not end well."""
    id: str
    status: Status
    first_batch: str | None
    """SHA-256 of the first training batch."""


class MeasuredRun(NamedTuple):
    """A finished run with all that reports and exports read of it."""

    spec: Mapping[str, Any]
    """The specification as stored."""
    manifest: Manifest
    result: RunResult
    curve: Curve
    losses: tuple[float, ...]
    """Mean training loss since the validation before, for each validation of the curve."""


ReadProbes = Callable[[RunResult], Probes | None]
"""Function that reads the probes of a run; None for a run that keeps none."""


def no_probes(result: RunResult) -> None:
    """Return None: of runs that are in memory alone, no probes can be read."""


class FinishedRuns(NamedTuple):
    """Outlines of finished runs, and the functions that load one of them."""

    outlines: Sequence[Outline]
    """Every run, in any order."""
    load: Callable[[str], MeasuredRun]
    """Load the run with this id; may raise RecordError."""
    probes: ReadProbes = no_probes
    """Read the probes of a run; may raise RecordError."""

    @classmethod
    def of(cls, records: Iterable[RunRecord], probes: ReadProbes = no_probes) -> "FinishedRuns":
        """Outline records that are already in memory."""
        by_id = {record.result.id: record for record in records}
        parsed: dict[tuple[str, str], Any] = {}
        outlines = [outline_of(record, parsed) for record in by_id.values()]
        return cls(outlines, lambda run_id: measured(by_id[run_id]), probes)

    def each(self) -> Iterator[MeasuredRun]:
        """Load one run after another, in the order of ids, without keeping them."""
        return (self.load(outline.id) for outline in sorted(self.outlines, key=attrgetter("id")))

    def load_all(self) -> list[MeasuredRun]:
        """Load every run, in the order of ids."""
        return list(self.each())


def measured(record: RunRecord) -> MeasuredRun:
    """Return the part of a record that reports read."""
    curve = tuple((point.step, point.accuracy) for point in record.metrics)
    losses = tuple(point.train_loss for point in record.metrics)
    return MeasuredRun(record.spec, record.manifest, record.result, curve, losses)


def shared_texts(record: RunRecord) -> dict[str, str]:
    """Return as JSON, by kind, the parts of a record that many runs have in common."""
    spec, train = dict(record.spec), dict(record.spec["train"])
    del spec["seed"], spec["data_seed"], train["lr"]
    result = record.result
    cells = [{name: getattr(cell, name) for name in CellExamples._fields} for cell in result.cells]
    controls = sorted({name for cell in result.cells for name in cell.controls})
    groups = sorted({name for cell in result.cells for name in cell.groups})
    length = result.state.length if result.state else None
    declared = [declaration.model_dump(mode="json") for declaration in result.declarations]
    return {
        "setting": to_json([result.task, result.arch, result.load_name, {**spec, "train": train}, declared]).decode(),
        "environment": record.manifest.model_dump_json(exclude={"started"}),
        "evaluation": to_json([cells, controls, groups, length]).decode(),
    }


def parse_setting(text: str) -> Setting:
    """Parse a setting from its JSON text."""
    task, arch, load_name, spec, declared = json.loads(text)
    declarations = map(ArchitectureDeclaration.model_validate, declared) if declared else None
    return Setting(task, arch, load_name, spec, tuple(declarations or map(declaration_by_name, spec["arch"])))


def parse_evaluation(text: str) -> Evaluation:
    """Parse an evaluation from its JSON text."""
    cells, controls, groups, length = json.loads(text)
    examples = [CellExamples(**{**cell, "references": tuple(sorted(cell["references"].items()))}) for cell in cells]
    return Evaluation(tuple(examples), tuple(controls), tuple(groups), length)


PARSERS: Mapping[str, Callable[[str], Any]] = {
    "setting": parse_setting,
    "environment": Environment.model_validate_json,
    "evaluation": parse_evaluation,
}
"""Parser of each kind of shared text, in the order of `shared_texts` and of the first fields of `Outline`."""


def outline_of(record: RunRecord, parsed: dict[tuple[str, str], Any]) -> Outline:
    """Outline a record; `parsed` holds the shared objects by kind and text, and gains those that are new."""
    for shared in (texts := shared_texts(record)).items():
        if shared not in parsed:
            parsed[shared] = PARSERS[shared[0]](shared[1])
    setting, environment, evaluation = (parsed[shared] for shared in texts.items())
    result = record.result
    own = (result.lr, validation_accuracy(record), result.id, result.status, result.first_batch)
    return Outline(setting, environment, evaluation, seeds_of(record), *own)


def seeds_of(run: RunRecord | MeasuredRun) -> Seeds:
    """Return the seeds of a run."""
    return run.result.seed, int(run.spec["data_seed"])
