"""The protocol of studies: tuned rates, fresh seeds, nothing done twice."""

import contextlib
import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from icl_bench.commands.progress import LineReporter
from icl_bench.errors import SpecError
from icl_bench.harness.engines.executor import Chain, Executor
from icl_bench.harness.engines.inline import InlineEngine
from icl_bench.harness.estimate import Forecast
from icl_bench.harness.study.file import Study, load_study, packaged_studies, parse_study
from icl_bench.harness.study.protocol import (
    finished_study,
    parse_parts,
    plan_study,
    planned_runs,
    run_study,
    study_parts,
)
from icl_bench.harness.training.trainer import Machine
from icl_bench.runs.record import RunRecord
from icl_bench.runs.spec import RunSpec
from icl_bench.runs.store import Store
from tests.runs import records

STUDIES = Path(__file__).parents[3] / "docs" / "studies"
PUBLISHED = sorted(path.parent.name.removesuffix("_files") for path in STUDIES.glob("*_files/runs.csv"))
TINY = ["train.steps=4", "train.batch=4", "model.d_model=16", "evaluation.examples=8", "evaluation.validation=8"]
TEXT = """
name: small
question: Does it run?
tasks: ["assoc-recall:length=16,pairs=2,vocab=64"]
archs: [linear, "window:conv=0"]
sizes: [512]
lr: 1e-3..1e-2/2
tune_seeds: "100,101"
seeds: 0..2
settings: [{settings}]
"""


@pytest.fixture
def study() -> Study:
    return parse_study(TEXT.format(settings=", ".join([*TINY, "evaluation.points=1"])), "small.yaml")


def test_tunes_measures_and_does_nothing_twice(study, tmp_path, capsys) -> None:
    from rich.console import Console

    store, engine = Store(tmp_path), InlineEngine(Machine(torch.device("cpu")))
    executor = Executor(store, engine, 8, LineReporter(Console(stderr=True), Forecast("cpu")))
    outcome = run_study(study, executor)
    assert {record.result.seed for record in outcome.measured} == {0, 1, 2}
    assert {record.result.seed for record in outcome.tuning} == {100, 101}
    assert len(outcome.measured) == 6 and not outcome.left_out
    rates = {(record.result.arch, record.result.lr) for record in outcome.measured}
    assert len(rates) == 2
    before = sorted(store.ids())
    again = run_study(study, executor)
    assert sorted(store.ids()) == before and again == outcome
    assert plan_study(study, store).done == 8
    assert finished_study(study, store) == outcome
    store.remove(next(one.result.id for one in outcome.measured if one.result.arch.startswith("window")))
    part = finished_study(study, store)
    assert part.measured == [one for one in outcome.measured if one.result.arch.startswith("linear")]
    assert part.tuning == [one for one in outcome.tuning if one.result.arch.startswith("linear")]
    assert part.left_out == ["1 of 2 architectures have not finished: window:conv=0,w=8"]


@dataclass
class Pretended:
    """An executor that trains nothing: `accuracy` says what a run reaches; it notes the runs of each call."""

    accuracy: Callable[[RunSpec], float]
    calls: list[list[RunSpec]] = field(default_factory=list)
    store: Store = Store(Path("nowhere"))  # noqa: RUF009
    later: list[tuple[int, int]] = field(default_factory=list)
    """Rank of each call, and number of runs that were known to follow."""

    def follow(self, chains: Sequence[Chain]) -> None:
        for chain in chains:
            records = None
            with contextlib.suppress(StopIteration):
                while True:
                    ask = chain.send(records)
                    self.calls.append(list(ask.runs))
                    self.later.append((ask.rank, len(ask.later)))
                    records = [self.record(spec) for spec in ask.runs]

    def record(self, spec: RunSpec) -> RunRecord:
        reached = self.accuracy(spec)
        metrics = (records.POINT.model_copy(update={"accuracy": reached}),)
        plain = spec.model_dump(mode="json")
        return RunRecord(spec=plain, manifest=records.MANIFEST, result=records.result(spec, reached), metrics=metrics)


def pretend(text: str, accuracy: Callable[[RunSpec], float], parts: Sequence[int] = ()):
    """Run a study on pretended runs; the floor of these is .5."""
    study = parse_study(BASE + text, "s.yaml")
    executor = Pretended(accuracy)
    return run_study(study, executor, parts), executor


BASE = "name: x\nquestion: y\ntasks: [copy]\narchs: [linear]\nlr: 1e-4..1e-1/4\n"


def peak(at: float) -> Callable[[RunSpec], float]:
    """Return an accuracy that falls with the distance of the learning rate from `at`, by .2 a decade."""
    return lambda spec: max(0.5, 0.99 - 0.2 * abs(math.log10(spec.train.lr / at)))


def test_the_grid_is_refined_by_half_its_spacing_around_the_best_rate() -> None:
    outcome, _ = pretend("", peak(3.2e-3))
    assert {one.result.lr for one in outcome.tuning} == {1e-4, 1e-3, 1e-2, 1e-1, 3.16228e-3, 3.16228e-2}
    assert {one.result.lr for one in outcome.measured} == {3.16228e-3}


def test_each_call_is_told_how_many_runs_are_known_to_follow() -> None:
    _, executor = pretend("axes: {model.d_model: [32, 16]}\n", lambda spec: 0.5)
    assert executor.later == [(0, 5), (0, 0), (1, 5), (1, 0)]
    _, executor = pretend("ladder: [1, 4]\n", lambda spec: 0.5)
    assert executor.later == [(0, 5 + 9 + 5), (0, 9 + 5), (1, 5), (1, 0)]


def test_tuning_where_no_seed_leaves_the_floor_ends_with_the_first_grid() -> None:
    outcome, executor = pretend("", lambda spec: 0.5)
    assert len(outcome.tuning) == 4 * 3 and len(executor.calls) == 2


def test_a_study_of_the_first_protocol_neither_refines_nor_adds_seeds() -> None:
    text = 'protocol: 1\ntune_seeds: "1000"\n'
    outcome, _ = pretend(text, lambda spec: 0.5 if spec.seed == 2 else peak(1e-2)(spec))
    assert len(outcome.tuning) == 4 and [one.result.seed for one in outcome.measured] == [0, 1, 2, 3, 4]


def test_the_worst_tuning_seed_decides_and_a_lost_seed_counts_most() -> None:
    """At 1e-2 two seeds solve all and one is lost; at 1e-3 all are good."""
    reached = lambda spec: {1e-3: 0.8, 1e-2: 0.5 if spec.seed == 1001 else 1.0}.get(spec.train.lr, 0.5)  # noqa: E731
    assert {one.result.lr for one in pretend("", reached)[0].measured} == {1e-3}
    old = 'protocol: 1\ntune_seeds: "1000..1002"\n'
    assert {one.result.lr for one in pretend(old, reached)[0].measured} == {1e-2}


def test_bimodal_contenders_are_measured_with_ten_seeds_and_others_with_five() -> None:
    lost = lambda spec: 0.5 if spec.seed == 1 and spec.arch[0].name == "linear" else peak(1e-2)(spec)  # noqa: E731
    study = parse_study(BASE.replace("[linear]", "[linear, softmax]") + "tune_seeds: 5,6,7\n", "s.yaml")
    executor, again = Pretended(lost), Pretended(lost)
    outcome = run_study(study, executor)
    seeds = {"linear": [], "softmax": []}
    for one in outcome.measured:
        seeds[one.spec["arch"][0]["name"]].append(one.result.seed)
    assert seeds["softmax"] == [0, 1, 2, 3, 4] and sorted(seeds["linear"]) == [*range(5), *range(8, 13)]
    assert run_study(study, again) == outcome and again.calls == executor.calls


def test_parts_run_rung_by_rung_and_a_higher_rung_starts_around_the_rate_of_the_lower() -> None:
    text = "ladder: [1, 4]\naxes: {model.d_model: [32, 16], model.layers: [2]}\n"
    outcome, executor = pretend(text, peak(1e-2))
    ranks = {
        (call[0].model.d_model, call[0].train.steps): rank
        for call, (rank, _) in zip(executor.calls, executor.later, strict=True)
    }
    assert ranks == {(32, 300): 0, (16, 300): 1, (32, 1200): 2, (16, 1200): 3}
    higher = {one.result.lr for one in outcome.tuning if one.spec["train"]["steps"] == 1200}
    assert higher == {1e-3, 3.16228e-3, 1e-2, 3.16228e-2, 1e-1}
    assert all(one.spec["train"]["warmup"] == 0.1 for one in outcome.tuning)
    assert not outcome.left_out


def test_rungs_above_the_refined_ones_keep_half_decades_and_still_grow_at_an_end() -> None:
    best = lambda spec: peak(1e-2 if spec.train.steps == 300 else 1e-4)(spec)  # noqa: E731
    outcome, _ = pretend("ladder: [1, 4]\nrefined_rungs: 1\n", best)
    steps_of = lambda one: one.spec["train"]["steps"]  # noqa: E731
    rates = {steps: {one.result.lr for one in outcome.tuning if steps_of(one) == steps} for steps in (300, 1200)}
    assert 3.16228e-3 in rates[300] and rates[1200] == {1e-5, 1e-4, 1e-3, 1e-2, 1e-1}
    assert {one.result.lr for one in outcome.measured if steps_of(one) == 1200} == {1e-4}


def test_rungs_above_the_tuned_ones_are_measured_at_the_rate_of_the_rung_below(tmp_path: Path) -> None:
    outcome, _ = pretend("ladder: [1, 4, 16]\ntuned_rungs: 1\n", peak(1e-2))
    assert {one.spec["train"]["steps"] for one in outcome.tuning} == {300}
    rates = {(one.spec["train"]["steps"], one.result.lr) for one in outcome.measured}
    assert rates == {(300, 1e-2), (1200, 1e-2), (4800, 1e-2)}
    two = BASE.replace("[linear]", "[linear, softmax]") + "ladder: [1, 4, 16]\ntuned_rungs: 2\n"
    plan = plan_study(parse_study(two, "s.yaml"), Store(tmp_path))
    assert [len(part.left[0]) > 0 for part in plan.parts] == [True, True, False]


def test_a_part_runs_with_the_part_below_it_and_the_report_is_told_of_the_others() -> None:
    text = "ladder: [1, 4]\naxes: {model.d_model: [32, 16]}\n"
    outcome, executor = pretend(text, peak(1e-2), parts=[4])
    shapes = [(call[0].model.d_model, call[0].train.steps) for call in executor.calls]
    assert list(dict.fromkeys(shapes)) == [(16, 300), (16, 1200)]
    message = "2 of 4 parts have not run, of these first part 1, model.d_model=32, train.steps=300"
    assert outcome.left_out == [message]
    with pytest.raises(SpecError, match="this study has parts 1 to 4; got 5"):
        pretend(text, peak(1e-2), parts=[1, 5])


@pytest.mark.parametrize("text", ["", "0..", "..3", "-1", "1,,2", "1.5", "1..99999999", "²"])
def test_numbers_of_parts_are_refused_in_a_line(text: str) -> None:
    with pytest.raises(SpecError, match="--parts takes numbers such as"):
        parse_parts(text)


def test_tasks_and_sizes_are_parts_of_their_own() -> None:
    text = BASE.replace("tasks: [copy]", "tasks: [copy, assoc-recall]") + "sizes: [512, 2048]\n"
    parts, left_out = study_parts(parse_study(text, "s.yaml"))
    assert [part.title for part in parts] == [f"{t}, {s} state" for t in ("copy", "assoc-recall") for s in (512, 2048)]
    assert all({one.size for one in part.contenders} == {int(part.title.split()[-2])} for part in parts)
    text = BASE + "sizes: [65536]\naxes: {model.d_model: [8, 128]}"
    parts, left_out = study_parts(parse_study(text, "s.yaml"))
    assert len(parts) == len(left_out) == 1 and left_out[0].startswith("model.d_model=8: keys of a matched state")


def test_a_reason_that_holds_for_several_tasks_is_told_once() -> None:
    text = BASE.replace("tasks: [copy]", "tasks: [copy, assoc-recall]") + "sizes: [65536]\nsettings: [model.d_model=8]"
    parts, left_out = study_parts(parse_study(text, "s.yaml"))
    assert not parts and len(left_out) == 1


def test_a_plan_lists_the_parts(tmp_path) -> None:
    study = parse_study(BASE + "ladder: [1, 4]\naxes: {model.d_model: [32, 16]}\n", "s.yaml")
    planned = plan_study(study, Store(tmp_path))
    titles = [one.part.title for one in planned.parts]
    assert titles == [f"model.d_model={width}, train.steps={steps}" for steps in (300, 1200) for width in (32, 16)]
    assert [one.runs for one in planned.parts] == [4 * 3 + 5] * 2 + [3 * 3 + 5] * 2 and planned.runs == 62


def test_every_packaged_study_can_be_planned(tmp_path) -> None:
    for name in packaged_studies():
        assert plan_study(load_study(name), Store(tmp_path)).runs > 0


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_study_still_asks_for_the_runs_of_its_report(name: str) -> None:
    with (STUDIES / f"{name}_files" / "runs.csv").open() as lines:
        published = {row["id"] for row in csv.DictReader(lines)}
    study = load_study(name)
    if study.tasks[0].startswith("text:"):
        pytest.skip("ids of its runs hold the corpus of the machine that ran them")
    lowest = [each for part in study_parts(study)[0] if not part.below for each in part.contenders]
    planned = [planned_runs(study, each, 0) for each in lowest]  # higher rungs start elsewhere
    asked = [{spec.id for spec in tuning or measuring} for tuning, measuring in planned]  # one rate needs no tuning
    assert asked[0] and asked[0] <= published
    assert all(own <= published or not own & published for own in asked)  # those that have not run yet
