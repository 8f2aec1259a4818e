"""Finished runs in outline: what a report asks of every run, be there 100,000; the whole record it asks of a few.

What many runs share (their setting, their environment, what they were evaluated on) is one object for all of them, made
from a text that the index keeps once.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from icl_bench.runs.rates import validation_accuracy
from icl_bench.runs.record import Environment, RunRecord, Status
from icl_bench.schema import canonical_json

Seeds = tuple[int, int]
"""Seed of the parameters and seed of the data: equal ones make runs comparable in pairs."""


@dataclass(frozen=True, eq=False)
class Setting:
    """What runs share that differ in their seeds and their learning rate alone."""

    task: str
    """The task, as reports name it."""
    arch: str
    """The architecture, as reports name it."""
    load_name: str
    """What the load of a cell counts."""
    spec: Mapping[str, Any]
    """The specification without seeds and learning rate."""

    def spec_of(self, seeds: Seeds, lr: float) -> dict[str, Any]:
        """The whole specification of a run."""
        seed, data_seed = seeds
        return {**self.spec, "seed": seed, "data_seed": data_seed, "train": {**self.spec["train"], "lr": lr}}


class Examples(NamedTuple):
    """What the score of a cell says of its examples, whatever the model."""

    label: str
    load: int
    length: int
    floor: float
    floor_solver: str
    answers: int | None
    alphabet: int | None
    scored: int
    oracle_error: float | None


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What runs were asked in the end, whatever they answered; nothing where they did not end well."""

    cells: tuple[Examples, ...]
    """The examples of each cell."""
    controls: tuple[str, ...]
    """Controls of any cell, in the order of the alphabet."""
    groups: tuple[str, ...]
    """Groups of scored positions of any cell, in the order of the alphabet."""
    length: int | None
    """Tokens after which the recurrent state is counted; none where it is not."""


class Texts(NamedTuple):
    """What a run shares with others, as JSON."""

    setting: str
    environment: str
    evaluation: str


class Outline(NamedTuple):
    """A finished run in outline."""

    key: int
    """Number of the run in its index, for whoever reads it."""
    read: Callable[["Outline"], RunRecord]
    """Reads the whole record."""
    setting: Setting
    environment: Environment
    evaluation: Evaluation
    seeds: Seeds
    lr: float
    """Peak learning rate."""
    validation: float
    """Accuracy at the last validation, as it counts in the choice of a learning rate."""
    id: str
    """The run's identity."""
    status: Status
    """How it ended."""
    first_batch: str | None
    """SHA-256 of the first training batch."""

    @property
    def record(self) -> RunRecord:
        """The whole record."""
        return self.read(self)


def texts_of(record: RunRecord) -> Texts:
    """What a run shares with others."""
    spec, train = dict(record.spec), dict(record.spec["train"])
    del spec["seed"], spec["data_seed"], train["lr"]
    result = record.result
    cells = [[getattr(cell, name) for name in Examples._fields] for cell in result.cells]
    controls = sorted({name for cell in result.cells for name in cell.controls})
    groups = sorted({name for cell in result.cells for name in cell.groups})
    length = result.state.length if result.state else None
    return Texts(
        canonical_json([result.task, result.arch, result.load_name, {**spec, "train": train}]),
        record.manifest.model_dump_json(exclude={"started"}),
        canonical_json([cells, controls, groups, length]),
    )


def parse_setting(text: str) -> Setting:
    """A setting from its text."""
    return Setting(*json.loads(text))


def parse_evaluation(text: str) -> Evaluation:
    """An evaluation from its text."""
    cells, controls, groups, length = json.loads(text)
    return Evaluation(tuple(Examples(*cell) for cell in cells), tuple(controls), tuple(groups), length)


PARSERS: Mapping[str, Callable[[str], Any]] = {
    "setting": parse_setting,
    "environment": Environment.model_validate_json,
    "evaluation": parse_evaluation,
}
"""How each of `Texts` is read."""


def outlines(runs: Iterable[RunRecord | Outline]) -> list[Outline]:
    """Runs in outline, those that are whole too."""
    made: dict[tuple[str, str], Any] = {}
    return [run if isinstance(run, Outline) else outline_of(run, made) for run in runs]


def outline_of(record: RunRecord, made: dict[tuple[str, str], Any]) -> Outline:
    """A record in outline; `made` holds what records share, by kind and text, and is added to."""
    texts = texts_of(record)
    for shared in zip(Texts._fields, texts, strict=True):
        if shared not in made:
            made[shared] = PARSERS[shared[0]](shared[1])
    setting, environment, evaluation = (made[shared] for shared in zip(Texts._fields, texts, strict=True))
    result = record.result
    return Outline(
        key=0,
        read=lambda _: record,
        setting=setting,
        environment=environment,
        evaluation=evaluation,
        seeds=seeds_of(record),
        lr=result.lr,
        validation=validation_accuracy(record),
        id=result.id,
        status=result.status,
        first_batch=result.first_batch,
    )


def seeds_of(run: RunRecord) -> Seeds:
    """The seeds of a run."""
    return run.result.seed, int(run.spec["data_seed"])
