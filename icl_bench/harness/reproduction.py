"""Runs of a published study, trained again: equal bit for bit, within the study's noise floor, or different.

A run is equal to the published one on the same machine, software and revision, in a fleet of the same runs. Elsewhere
it may differ in rounding, which training amplifies: it then counts as reproduced if its accuracy differs by no more
than the noise floor, the largest difference seen when runs of the study were repeated on another machine. The noise
floor is a file beside the published runs; without one nothing but equality can be claimed.
"""

import csv
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from pydantic import ValidationError

from icl_bench.errors import StoreError
from icl_bench.harness.engines.executor import Ask, Chain, Executor
from icl_bench.harness.estimate import rough_seconds
from icl_bench.harness.resolve import make_arch, split_pattern
from icl_bench.harness.study.file import Study, load_study, packaged_studies
from icl_bench.harness.study.protocol import Contender, runs_of, study_parts
from icl_bench.runs.outline import Outline
from icl_bench.runs.rates import SCORED
from icl_bench.runs.record import RunRecord
from icl_bench.runs.spec import RunSpec
from icl_bench.runs.store import Store
from icl_bench.runs.store.files import Folder, replace_file
from icl_bench.runs.store.index import Index
from icl_bench.runs.store.merge import first_difference
from icl_bench.schema import Frozen
from icl_bench.tasks import TASKS

Subject = TypeVar("Subject")
FORMER_COLUMNS = {"architecture": "arch", "learning_rate": "lr", "parameters": "params"}
"""Names of columns of reports by those that they had before 2026-11-29."""
Verdict = Literal["equal", "within", "differs", "undecided"]
"""`equal` in every number; `within` the noise floor; `differs` by more, or at all on the same machine; `undecided`:
differs on another machine, and no noise floor is known."""
STUDY_HEADING = re.compile(r"^# icl-bench study: ([a-z0-9-]+)$", re.MULTILINE)
SAME = ("versions", "device", "threads", "host", "revision", "impl", "fleet_size")
"""Fields of a manifest that are equal where a run can be repeated bit for bit."""


class PublishedRun(NamedTuple):
    """A run as it was published, in a store or in the rows of a report."""

    spec: RunSpec
    status: str
    by_cell: Mapping[str, float]
    """Test accuracy by cell."""
    record: RunRecord | None = None
    """Its whole record; none for a row of a report."""

    @property
    def accuracy(self) -> float:
        """Mean test accuracy over cells; 0 without cells."""
        return sum(self.by_cell.values()) / len(self.by_cell) if self.by_cell else 0.0


class RedoneRun(NamedTuple):
    """A published run and its repetition."""

    published: PublishedRun
    record: RunRecord
    same_machine: bool
    """True if the repetition had to be equal: machine, software, revision and fleet are the same."""

    @property
    def equal(self) -> bool:
        """True if all published numbers are equal."""
        if self.published.record is not None:
            return first_difference(self.published.record, self.record) is None
        result = self.record.result
        return (result.status, result.by_cell) == (self.published.status, dict(self.published.by_cell))

    @property
    def difference(self) -> float:
        """Absolute difference of the mean test accuracies."""
        return abs(self.record.result.accuracy - self.published.accuracy)

    def verdict(self, floor: float | None) -> Verdict:
        """Judge the repetition by the noise floor of the study, None if it is not known."""
        if self.equal:
            return "equal"
        if self.same_machine:
            return "differs"
        if floor is None:
            return "undecided"
        same_status = self.record.result.status == self.published.status
        return "within" if same_status and self.difference <= floor else "differs"


class Repetition(Frozen):
    """A run of a study that was repeated on another machine."""

    id: str
    """Id of the run."""
    device: str
    """Device of the repetition."""
    published: float
    """Mean test accuracy as published."""
    repeated: float
    """Mean test accuracy of the repetition."""


class NoiseFloor(Frozen):
    """The repetitions of runs of a study on other machines, as `noise.json` keeps them."""

    repetitions: tuple[Repetition, ...] = ()
    """Repetitions, one for each run and device."""

    @property
    def largest(self) -> float | None:
        """Largest difference in accuracy between a run and its repetition; none without repetitions."""
        return max(self.differences, default=None)

    @property
    def differences(self) -> list[float]:
        """Difference in accuracy between each run and its repetition."""
        return [abs(one.published - one.repeated) for one in self.repetitions]

    def without(self, run_id: str) -> "NoiseFloor":
        """Return the noise floor that judges a run: a repetition of itself is no evidence for it."""
        return NoiseFloor(repetitions=tuple(one for one in self.repetitions if one.id != run_id))


class Source:
    """Published runs: a store, or a Markdown report of a packaged study with the rows beside it.

    Raises:
        StoreError: The path is neither, or a row is no run of its study.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = Store(path) if path.is_dir() else None
        self.folder = path if path.is_dir() else path.with_name(f"{path.stem}_files")
        if not path.exists() or not (self.folder / ("runs" if self.store else "runs.csv")).exists():
            raise StoreError(
                f"published runs are a store, or a report with its runs.csv beside it; {path} is neither; give the "
                "folder of a store or a Markdown report"
            )

    @property
    def noise(self) -> NoiseFloor:
        """The noise floor that is kept beside the runs; empty if there is none."""
        try:
            with Folder(self.folder).opened() as folder:
                known = folder.kind("noise.json") is not None
                return NoiseFloor.model_validate_json(folder.read("noise.json")) if known else NoiseFloor()
        except ValidationError:
            raise StoreError(f"{self.folder / 'noise.json'} is damaged; remove it and measure it again") from None

    def keep_noise(self, redone: Iterable[RedoneRun]) -> None:
        """Add the repetitions that were made on other machines to the noise floor."""
        known = {(one.id, one.device): one for one in self.noise.repetitions}
        for one in redone:
            if not one.same_machine:
                device, accuracy = one.record.manifest.device, one.record.result.accuracy
                known[one.record.result.id, device] = Repetition(
                    id=one.record.result.id, device=device, published=one.published.accuracy, repeated=accuracy
                )
        kept = NoiseFloor(repetitions=tuple(known[key] for key in sorted(known)))
        replace_file(self.folder / "noise.json", kept.model_dump_json(indent=2).encode())

    def pick(self, count: int, cheapest: bool = False, spread: bool = False) -> list[list[PublishedRun]]:
        """Pick scored runs until there are `count`, each with all runs of its fleet.

        Runs go in the order of their ids, which are hashes; with `cheapest`, those of the least estimated work go
        first; with `spread`, one run of each task, architecture and budget goes before the second of any. The fleets of
        a store are those that trained; a report does not tell them, and runs that can train together do.
        """
        if self.store is None:
            return fleets_of_report(report_runs(self.path, self.folder / "runs.csv", count, cheapest, spread))
        outlines = [one for one in Index(self.store).runs()[0].outlines if one.status in SCORED]
        work: dict[int, float] = {}
        for one in outlines if cheapest else ():
            if id(one.setting) not in work:
                work[id(one.setting)] = rough_seconds(spec_of_record(self.store.load(one.id)), "cuda")
        fleets: list[list[PublishedRun]] = []
        picked: set[str] = set()
        ordered = sorted(outlines, key=lambda one: (work.get(id(one.setting), 0.0), one.id))
        for one in in_turn(ordered, lambda one: id(one.setting)) if spread else ordered:
            if len(picked) < count and one.id not in picked:
                fleets.append(fleet_of(self.store, one, outlines))
                picked.update(run.spec.id for run in fleets[-1])
        return fleets


def fleet_of(store: Store, chosen: Outline, outlines: Sequence[Outline]) -> list[PublishedRun]:
    """Return a run and, behind it, the runs that trained in one fleet with it."""
    own = store.load(chosen.id)
    started, mates = own.manifest.started, []
    for one in outlines:
        if one.setting is chosen.setting and one.environment is chosen.environment and one.id != chosen.id:
            record = store.load(one.id)
            mates += [record] if record.manifest.started == started else []
    return [
        PublishedRun(spec_of_record(record), record.result.status, record.result.by_cell, record)
        for record in (own, *mates)
    ]


def versions_of(task: str) -> list[int]:
    """Return the versions of the data of a task that can be made."""
    return [each.data_version for each in TASKS.versions(task)]


def spec_of_record(record: RunRecord) -> RunSpec:
    """Return the specification of a record; raise StoreError if this version of the package would run another."""
    document, result = dict(record.spec), record.result
    labels = split_pattern(result.arch)
    if len(labels) != len(document["arch"]):
        labels = [part["name"] for part in document["arch"]]
    document["task"] = {**document["task"], "label": result.task}
    document["arch"] = [{**part, "label": label} for part, label in zip(document["arch"], labels, strict=True)]
    try:
        spec = RunSpec.model_validate(document)
    except ValidationError:
        spec = None
    current = spec is not None and spec.id == result.id and spec.task.version in versions_of(spec.task.name)
    if spec is None or not current or any(make_arch(part).version != part.version for part in spec.arch):
        raise StoreError(
            f"a run is repeated by a version of icl-bench that makes the same data and models; {result.id} is of "
            "another; check out its revision"
        )
    return spec


class ReportRows:
    """The scored rows of a report of a packaged study, by run."""

    def __init__(self, study: Study, rows: Path) -> None:
        self.study, self.path = study, rows
        self.contenders = [each for part in study_parts(study)[0] for each in part.contenders]
        self.found: dict[tuple[str, ...], tuple[Contender, RunSpec]] = {}
        own: dict[str, list[dict[str, str]]] = {}
        with rows.open(newline="") as lines:
            for plain in csv.DictReader(lines):
                row = {FORMER_COLUMNS.get(name, name): value for name, value in plain.items()}
                own.setdefault(row["id"], []).append(row)
        self.by_id = {run_id: own[run_id] for run_id in sorted(own) if own[run_id][0]["status"] in SCORED}

    def kind(self, run_id: str) -> tuple[str, str, str]:
        """Return task, architecture and number of steps of a run."""
        row = self.by_id[run_id][0]
        return row["task"], row["arch"], row["steps"]

    def spec(self, run_id: str) -> RunSpec:
        """Return the specification of a run; raise StoreError if no contender of the study has it."""
        row, kind = self.by_id[run_id][0], self.kind(run_id)
        place = ([float(row["lr"])], [int(row["seed"])])
        likely = [self.found[kind][0]] if kind in self.found else []
        for each in (*likely, *self.contenders):
            for spec in runs_of(self.study, each, *place):
                if spec.id == run_id:
                    self.found.setdefault(kind, (each, spec))
                    return spec
        raise StoreError(f"the rows of a report are runs of its study; {run_id} in {self.path} is not; give its store")

    def work(self, run_id: str) -> float:
        """Return the estimated work of a run, that of the first one of its task, architecture and number of steps."""
        kind = self.kind(run_id)
        return rough_seconds(self.found[kind][1] if kind in self.found else self.spec(run_id), "cuda")

    def published(self, run_id: str) -> PublishedRun:
        """Return a run with the numbers of its rows."""
        own = self.by_id[run_id]
        by_cell = {row["cell"]: float(row["accuracy"]) for row in own if row["cell"]}
        return PublishedRun(self.spec(run_id), own[0]["status"], by_cell)


def in_turn(ordered: Iterable[Subject], kind_of: Callable[[Subject], Hashable]) -> list[Subject]:
    """Return the first of each kind, then the second of each, and so on.

    >>> in_turn("aabbbc", str)
    ['a', 'b', 'c', 'a', 'b', 'b']
    """
    seen: Counter[Hashable] = Counter()
    turns: dict[int, list[Subject]] = {}
    for one in ordered:
        kind = kind_of(one)
        turns.setdefault(seen[kind], []).append(one)
        seen[kind] += 1
    return [one for turn in turns.values() for one in turn]


def report_runs(report: Path, rows: Path, count: int, cheapest: bool, spread: bool) -> list[PublishedRun]:
    """Return the first scored runs that a report of a packaged study lists, in the order that `Source.pick` tells."""
    heading = STUDY_HEADING.search(report.read_text())
    if heading is None or heading[1] not in packaged_studies():
        raise StoreError(f"a report is verified by its packaged study; {report} is a report of none; give its store")
    known = ReportRows(load_study(heading[1]), rows)
    order = sorted(known.by_id, key=lambda run_id: (known.work(run_id), run_id)) if cheapest else list(known.by_id)
    order = in_turn(order, known.kind) if spread else order
    return [known.published(run_id) for run_id in order[:count]]


def fleets_of_report(runs: Sequence[PublishedRun]) -> list[list[PublishedRun]]:
    """Group the runs that can train together, in their order."""
    fleets: dict[str, list[PublishedRun]] = {}
    for run in runs:
        fleets.setdefault(run.spec.fleet_key(), []).append(run)
    return list(fleets.values())


def redo_fleets(
    fleets: Sequence[Sequence[PublishedRun]], executor: Executor, judge: Callable[[RedoneRun], None]
) -> None:
    """Train fleets again, side by side as the engine allows, and hand over each run as soon as its fleet has ended."""

    def redo(fleet: Sequence[PublishedRun], place: int) -> Chain:
        specs = sorted((run.spec for run in fleet), key=lambda spec: (spec.train.lr, spec.seed))
        records = {record.result.id: record for record in (yield Ask(specs, place, whole=True))}
        for run in fleet:
            record = records[run.spec.id]
            judge(RedoneRun(run, record, is_same_machine(run.record, record)))

    size = max(map(len, fleets), default=1)
    replace(executor, fleet_size=size).follow([redo(fleet, place) for place, fleet in enumerate(fleets)])


def is_same_machine(published: RunRecord | None, redone: RunRecord) -> bool:
    """Return whether machine, software, revision and fleet of two runs are known to be the same."""
    if published is None:
        return False
    return all(getattr(published.manifest, name) == getattr(redone.manifest, name) for name in SAME)
