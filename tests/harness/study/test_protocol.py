"""Studies: safe files, tuned rates, fresh seeds, nothing done twice."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from icl_bench.commands.progress import LineReporter
from icl_bench.errors import IclBenchError, SpecError, UnknownNameError
from icl_bench.harness.engines.inline import InlineEngine
from icl_bench.harness.study.protocol import (
    Study,
    best_rate,
    extended,
    load_study,
    packaged_studies,
    parse_study,
    plan,
    run_study,
)
from icl_bench.harness.training.fleet import Machine
from icl_bench.runs.store import Store

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


class Row:
    """As much of a record as choosing a rate needs."""

    def __init__(self, lr: float, accuracy: float, status: str = "ok") -> None:
        self.result = type("Result", (), {"lr": lr, "status": status})()
        self.metrics = [type("Point", (), {"accuracy": accuracy})()]


def test_tunes_measures_and_does_nothing_twice(study, tmp_path, capsys) -> None:
    from rich.console import Console

    store, engine = Store(tmp_path), InlineEngine(Machine(torch.device("cpu")))
    outcome = run_study(study, store, engine, 8, LineReporter(Console(stderr=True)))
    assert {record.result.seed for record in outcome.measured} == {0, 1, 2}
    assert {record.result.seed for record in outcome.tuning} == {100, 101}
    assert len(outcome.measured) == 6 and not outcome.left_out
    rates = {(record.result.arch, record.result.lr) for record in outcome.measured}
    assert len(rates) == 2
    before = sorted(store.ids())
    again = run_study(study, store, engine, 8, LineReporter(Console(stderr=True)))
    assert sorted(store.ids()) == before and again == outcome
    assert plan(study, store).done == 8


def test_the_best_rate_is_that_of_validation_and_failures_count_as_nothing() -> None:
    rows = [Row(1e-3, 0.5), Row(1e-2, 0.7), Row(1e-2, 0.1), Row(1e-1, 0.9, "diverged"), Row(1.0, 0.9, "oom")]
    assert best_rate(rows) == 1e-3
    assert best_rate([Row(lr, 1.0) for lr in (1e-4, 1e-3, 1e-2)]) == 1e-3


def test_the_grid_grows_until_the_best_is_interior() -> None:
    first = [1e-3, 1e-2]
    assert extended(first, [Row(1e-3, 0.1), Row(1e-2, 0.9)], first) == [1e-3, 1e-2, 0.1]
    assert extended(first, [Row(1e-3, 0.9), Row(1e-2, 0.1)], first) == [1e-4, 1e-3, 1e-2]
    grown = [1e-3, 1e-2, 0.1]
    assert extended(grown, [Row(1e-3, 0.1), Row(1e-2, 0.9), Row(0.1, 0.2)], first) == grown


def test_the_grid_does_not_grow_for_ever() -> None:
    grid, first = [1e-3, 1e-2], [1e-3, 1e-2]
    for _ in range(50):
        grid = extended(grid, [Row(lr, lr) for lr in grid], first)
    assert len(grid) == 6


def test_every_packaged_study_can_be_planned(tmp_path) -> None:
    for name in packaged_studies():
        assert plan(load_study(name), Store(tmp_path)).runs > 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nname: b", "'name' is given twice"),
        ("a: &x 1\nb: *x", "aliases are not allowed"),
        ("!!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("[1, 2]", "a study is a YAML mapping; s.yaml is not"),
        ("1: x", "a study is a YAML mapping"),
        ("a: [", "a study is plain YAML without tags or aliases"),
        ("name: x\nquestion: y\ntasks: [copy]\narchs: []", "s.yaml: archs: .*at least 1 item"),
        (
            "name: x\nquestion: y\ntasks: [copy]\narchs: [linear]\nseeds: 3",
            "s.yaml: seeds: input should be a valid string",
        ),
        (
            "name: x\nquestion: y\ntask: [copy]\narchs: [linear]",
            "s.yaml has no parameter 'task'; did you mean 'tasks'\\?|tasks",
        ),
        ("x: " + "y" * 70_000, "a study file has at most 65536 bytes"),
    ],
)
def test_wrong_study_files_are_one_line(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        parse_study(text, "s.yaml")
    assert "\n" not in str(caught.value)


@given(st.text(max_size=200))
def test_any_text_is_a_study_or_an_error(text: str) -> None:
    try:
        parse_study(text, "s.yaml")
    except IclBenchError as error:
        assert "\n" not in str(error)


def test_unknown_studies(tmp_path) -> None:
    with pytest.raises(UnknownNameError, match=r"no study is named 'power-vs-windw'; did you mean 'power-vs-window'"):
        load_study("power-vs-windw")
    with pytest.raises(SpecError, match=r"a study is a YAML file that can be read; .*none.yaml"):
        load_study(str(tmp_path / "none.yaml"))
