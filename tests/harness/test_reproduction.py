"""Published runs trained again: what counts as agreement, and from where runs are taken."""

import json
from pathlib import Path

import pytest

from icl_bench.commands.verify import describe_noise
from icl_bench.errors import StoreError
from icl_bench.harness.reproduction import (
    NoiseFloor,
    PublishedRun,
    RedoneRun,
    Repetition,
    Source,
    is_same_machine,
    spec_of_record,
)
from icl_bench.harness.study.file import load_study
from icl_bench.runs.record import RunRecord
from icl_bench.runs.store import Store
from tests.runs import records

STUDIES = Path(__file__).parents[2] / "docs" / "studies"
TASK = "assoc-recall:length=16,pairs=[2|4],vocab=64"
TINY = ["--set", "train.steps=6", "--set", "train.batch=4", "--set", "model.d_model=16", "--device", "cpu"]
SMALL = [*TINY, "--set", "evaluation.examples=8", "--set", "evaluation.validation=4"]


def record(accuracy: float) -> RunRecord:
    result = records.result(records.BASE, accuracy)
    plain = records.BASE.model_dump(mode="json")
    return RunRecord(spec=plain, manifest=records.MANIFEST, result=result, metrics=(records.POINT,))


def redone(before: float, now: float, same_machine: bool = False) -> RedoneRun:
    old = record(before)
    return RedoneRun(PublishedRun(records.BASE, "ok", old.result.by_cell, old), record(now), same_machine)


def test_on_the_same_machine_only_equal_numbers_agree_and_elsewhere_those_within_the_noise_floor() -> None:
    assert redone(0.5, 0.5).verdict(None) == redone(0.5, 0.5, same_machine=True).verdict(0.0) == "equal"
    assert redone(0.5, 0.501, same_machine=True).verdict(0.1) == "differs"
    assert redone(0.5, 0.52).verdict(0.1) == "within" and redone(0.5, 0.52).verdict(0.01) == "differs"
    assert redone(0.5, 0.52).verdict(None) == "undecided"


def test_a_row_of_a_report_is_compared_by_status_and_accuracy_by_cell() -> None:
    row = PublishedRun(records.BASE, "ok", {"pairs=2": 0.5})
    assert RedoneRun(row, record(0.5), False).verdict(None) == "equal"
    assert RedoneRun(row._replace(status="diverged"), record(0.5), False).verdict(1.0) == "differs"


def test_a_machine_is_the_same_only_with_software_revision_and_fleet() -> None:
    old = record(0.5)
    assert is_same_machine(old, old) and not is_same_machine(None, old)
    for change in ({"versions": {"torch": "3"}}, {"device": "x"}, {"revision": "0"}, {"fleet_size": 2}):
        other = old.model_copy(update={"manifest": old.manifest.model_copy(update=change)})
        assert not is_same_machine(old, other)


def test_the_noise_floor_is_the_largest_difference_on_another_machine(tmp_path) -> None:
    source = Source(records.filled(tmp_path / "icl-runs", 0, 1).root)
    assert source.noise == NoiseFloor() and source.noise.largest is None
    source.keep_noise([redone(0.5, 0.53), redone(0.5, 0.9, same_machine=True)])
    assert source.noise.repetitions == (Repetition(id=records.BASE.id, device="d", published=0.5, repeated=0.53),)
    assert source.noise.largest == pytest.approx(0.03)
    source.keep_noise([redone(0.5, 0.51)])
    assert source.noise.largest == pytest.approx(0.01)
    assert source.noise.without(records.BASE.id).largest is None and source.noise.without("another") == source.noise
    three = [Repetition(id=str(i), device="d", published=0.5, repeated=one) for i, one in enumerate((0.9, 0.5, 0.51))]
    told = "noise floor: 0.4000 in accuracy, the largest of 3 differences, whose median is 0.0100"
    assert describe_noise(NoiseFloor(repetitions=tuple(three))) == told
    assert describe_noise(NoiseFloor()) == "no noise floor is known"
    (source.folder / "noise.json").write_text("{}x")
    with pytest.raises(StoreError, match=r"noise\.json is damaged; remove it"):
        _ = source.noise


def test_a_record_gives_back_its_specification_and_refuses_other_versions() -> None:
    old = record(0.5)
    assert spec_of_record(old).id == records.BASE.id
    task = {**old.spec["task"], "version": 99}
    with pytest.raises(StoreError, match="a run is repeated by a version of icl-bench that makes the same data"):
        spec_of_record(old.model_copy(update={"spec": {**old.spec, "task": task}}))


def test_runs_of_a_packaged_report_are_found_by_their_ids() -> None:
    runs = [run for fleet in Source(STUDIES / "degree-fixed-width.md").pick(2) for run in fleet]
    assert len(runs) == 2 and runs[0].spec.id < runs[1].spec.id
    run = runs[0]
    assert run.spec.train.steps == 2000 and run.spec.train.recipe == 1 and set(run.by_cell) >= {"pairs=8", "pairs=128"}
    assert run.spec.task.label == load_study("degree-fixed-width").tasks[0]


def test_the_cheapest_runs_of_a_report_have_the_least_work_and_train_together() -> None:
    fleets = Source(STUDIES / "linear-vs-power.md").pick(12, cheapest=True)
    runs = [run for fleet in fleets for run in fleet]
    assert len(runs) == 12 and {run.spec.train.steps for run in runs} == {2000}
    assert {run.spec.model.layers for run in runs} == {1} and len({run.spec.arch_label for run in runs}) == len(fleets)
    assert all(len({run.spec.fleet_key() for run in fleet}) == 1 for fleet in fleets)


def test_the_cheapest_fleets_of_a_store_go_first(command, tmp_path) -> None:
    for steps in ("8", "2", "4"):
        assert command("run", TASK, "--arch", "linear", *SMALL, "--set", f"train.steps={steps}").status == 0
    picked = Source(tmp_path / "icl-runs").pick(2, cheapest=True)
    assert [fleet[0].spec.train.steps for fleet in picked] == [2, 4]


def test_spread_runs_are_of_different_tasks_and_architectures(command, tmp_path) -> None:
    fleets = Source(STUDIES / "suite.md").pick(6, spread=True)
    assert [len(fleet) for fleet in fleets] == [1] * 6
    assert len({(run.spec.task.label, run.spec.arch_label) for fleet in fleets for run in fleet}) == 6
    assert command("run", TASK, "--arch", "linear", "--arch", "power:p=2", "--seeds", "0..3", *SMALL).status == 0
    first, second, *_ = Source(tmp_path / "icl-runs").pick(5, spread=True)  # a fleet has 4 runs at most
    assert {first[0].spec.arch_label, second[0].spec.arch_label} == {"linear", "power:p=2"}


@pytest.mark.parametrize("name", ["none.md", "."])
def test_what_is_no_source_is_refused(tmp_path, name: str) -> None:
    with pytest.raises(StoreError, match=r"published runs are a store, or a report with its runs\.csv beside it"):
        Source(tmp_path / name)


@pytest.mark.parametrize("heading", ["# icl-bench study: mine", "# icl-bench report: copy"])
def test_a_report_of_no_packaged_study_is_verified_by_its_store(tmp_path, heading: str) -> None:
    (tmp_path / "mine.md").write_text(heading)
    (tmp_path / "mine_files").mkdir()
    (tmp_path / "mine_files" / "runs.csv").write_text("id\n")
    with pytest.raises(StoreError, match=r"mine\.md is a report of none; give its store"):
        Source(tmp_path / "mine.md").pick(1)


def test_a_store_verifies_on_the_machine_that_made_it_in_whole_fleets(command, tmp_path) -> None:
    made = command("run", TASK, "--arch", "linear", "--arch", "power", "--seeds", "0,1", "--fleet", "2", *SMALL)
    assert made.status == 0
    fleets = Source(tmp_path / "icl-runs").pick(9)
    assert [len(fleet) for fleet in fleets] == [2, 2] and len(Source(tmp_path / "icl-runs").pick(2)) == 1
    before = sorted(Store(tmp_path / "icl-runs").ids())
    outcome = command("verify", "icl-runs", "--redo", "4", "--device", "cpu", "--json")
    document = json.loads(outcome.out)
    assert outcome.status == 0 and document["agree"] and document["noise_floor"] is None
    assert [run["verdict"] for run in document["runs"]] == ["equal"] * 4
    assert all(run["same_machine"] for run in document["runs"]) and sorted(Store(tmp_path / "icl-runs").ids()) == before


def test_fleets_that_start_in_one_second_are_told_apart(command, tmp_path) -> None:
    assert command("run", TASK, "--arch", "linear", "--seeds", "0..3", "--fleet", "1", *SMALL).status == 0
    assert [len(fleet) for fleet in Source(tmp_path / "icl-runs").pick(4)] == [1] * 4


def test_a_run_that_differs_ends_with_status_3(command, tmp_path, monkeypatch) -> None:
    from icl_bench.harness.training import optimiser

    command("run", TASK, "--arch", "linear", *SMALL)
    monkeypatch.setattr(optimiser, "adamw_step", lambda *arguments, **options: None)
    outcome = command("verify", "icl-runs", "--device", "cpu")
    assert outcome.status == 3 and "differs" in outcome.out and "not all runs are shown to agree" in outcome.out


def test_an_interrupted_command_prints_the_verdicts_that_it_has_and_keeps_their_noise(
    command, tmp_path, monkeypatch
) -> None:
    from icl_bench.harness import reproduction
    from icl_bench.harness.interruption import Interrupted

    command("run", TASK, "--arch", "linear", "--arch", "power", *SMALL)
    whole = reproduction.is_same_machine
    calls: list[bool] = []

    def stop_at_the_second(*records: RunRecord) -> bool:
        calls.append(whole(*records))
        if len(calls) == 2:
            raise Interrupted(15)
        return False

    monkeypatch.setattr(reproduction, "is_same_machine", stop_at_the_second)
    outcome = command("verify", "icl-runs", "--redo", "2", "--device", "cpu", "--keep-noise", "--json")
    document = json.loads(outcome.out)
    assert outcome.status == 143 and document["asked"] == 2 and not document["agree"]
    assert [run["verdict"] for run in document["runs"]] == ["equal"]
    assert [one.id for one in Source(tmp_path / "icl-runs").noise.repetitions] == [document["runs"][0]["id"]]
