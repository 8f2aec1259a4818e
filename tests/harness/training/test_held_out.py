"""The worth of test examples: floors on the examples themselves, references, repeats, and floors of old runs."""

import pytest
import torch

from icl_bench.corpus.tokens import Split
from icl_bench.errors import UnknownNameError
from icl_bench.harness.resolve import make_task, task_component
from icl_bench.harness.training.batches import ExampleStream
from icl_bench.harness.training.held_out import (
    cell_floors,
    floors_by_member,
    remeasure,
    repeated_shares,
)
from icl_bench.runs.outline import FinishedRuns
from icl_bench.runs.store.floors import examples_key
from tests.reports.factory import make_record
from tests.runs.records import BASE

CPU = torch.device("cpu")


def stream(text: str, split: Split, seeds: list[int], label: str | None = None) -> ExampleStream:
    task = make_task(task_component(text))
    return ExampleStream(task, task.cell(label) if label else task.eval_cells[0], split, seeds, CPU)


@pytest.mark.parametrize("seed", range(12))
def test_a_floor_of_two_answers_is_never_below_one_half(seed: int) -> None:
    (found,) = floors_by_member(stream("set-disjointness", "test", [seed]), 31)
    assert 0.5 <= found.floor < 0.9 and found.floor_solver in ("disjoint", "meeting") and found.references == {}


def test_members_of_one_data_seed_share_their_floors() -> None:
    test = stream("assoc-recall:length=64,pairs=8", "test", [3, 4, 3])
    first, other, again = floors_by_member(test, 100)
    assert first == again != other
    assert floors_by_member(stream("assoc-recall:length=64,pairs=8", "test", [4]), 100) == [other]
    assert (first.floor_solver, first.answers, first.alphabet) == ("most-frequent", 8, 64)


def test_solvers_that_keep_the_context_are_no_floor() -> None:
    test = stream("copy", "test", [0])
    found = cell_floors(test.task, test.cell, test.task.sample(test.stream_ids, test.cell))
    assert found.floor < found.references["induction"]


def test_solvers_are_measured_by_group() -> None:
    """The first digit of a phone number needs its name, the later ones follow from those shown; sums over groups."""
    test = stream("phonebook", "test", [0], "entries=6")
    (found,) = floors_by_member(test, 400)
    digits = [found.groups[f"digit {place}"].floor for place in (1, 2, 3)]
    assert digits == sorted(digits) and found.floor == pytest.approx(sum(digits) / 3)
    copies = stream("copy", "test", [0], "symbols=8")
    (found,) = floors_by_member(copies, 200)
    assert found.groups["end"].references == {"induction": 1.0} and found.groups["end"].floor == 1.0
    whole = sum(one.references["induction"] * (2**i if i < 3 else 1) for i, one in enumerate(found.groups.values()))
    assert found.references["induction"] == pytest.approx(whole / 9)  # 1, 2, 4 and 1 letters, then the end


def test_repeats_are_counted_by_content() -> None:
    """All 4-bit strings occur among 1,000; of 40-bit strings none; the own test examples always do."""
    for symbols, expected in ((4, 1.0), (40, 0.0)):
        text = f"state-tracking:symbols={symbols}"
        test, train = (stream(text, split, [0, 1]) for split in ("test", "train"))
        assert repeated_shares(test, 100, train, 1000) == [expected, expected]
        assert repeated_shares(test, 100, train, 0) == [0.0, 0.0]
        assert repeated_shares(test, 50, stream(text, "test", [0, 5]), 50)[0] == 1.0


def test_repeats_are_those_of_a_set_of_rows() -> None:
    test, train = (stream("state-tracking:symbols=10", split, [7]) for split in ("test", "train"))
    rows = {tuple(row) for row in train.first(400).inputs[0].tolist()}
    expected = sum(tuple(row) in rows for row in test.first(300).inputs[0].tolist()) / 300
    assert 0.1 < expected < 0.6 and repeated_shares(test, 300, train, 400) == [pytest.approx(expected)]


def test_old_runs_get_floors_by_todays_solvers_once_for_equal_examples() -> None:
    spec = {**BASE.model_dump(mode="json"), "evaluation": {"examples": 64, "validation": 8, "points": 1}}
    found = [make_record(seed=seed, loads=(4, 8, 16)).model_copy(update={"spec": {**spec, "lr": 1}}) for seed in (0, 1)]
    unknown = make_record(task="no-such-task", seed=2)
    floors, problems = remeasure(FinishedRuns.of([*found, unknown]).outlines)
    assert list(floors) == [examples_key(spec, 0)]
    (measured,) = floors.values()
    test = stream("assoc-recall", "test", [0], "pairs=16")
    assert list(measured) == ["pairs=4", "pairs=8", "pairs=16"] and [measured["pairs=16"]] == floors_by_member(test, 64)
    assert len(problems) == 1 and "no task is named 'no-such-task'" in problems[0]


def test_examples_of_another_version_cannot_be_made() -> None:
    component = task_component("copy").model_copy(update={"version": 0})
    with pytest.raises(UnknownNameError, match="task copy has no version 0; versions: 1"):
        make_task(component)
