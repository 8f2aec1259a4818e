"""Retired versions of the data of a task: found by `name@1`, equal to what they were, and told apart in records."""

import json

import pytest
import torch

from icl_bench import random
from icl_bench.errors import DuplicateNameError, SpecError, UnknownNameError
from icl_bench.harness.resolve import Request, expand_request, make_task, task_component
from icl_bench.harness.training.batches import ExampleStream
from icl_bench.runs.store.agreement import is_label
from icl_bench.schema import canonical_json
from icl_bench.tasks import TASKS
from icl_bench.tasks.copy import Copy

CPU = torch.device("cpu")


class FormerCopy(Copy):
    """Copy as it was before a made-up change of its data."""

    data_version = 1
    retired = "made up for a test"


def digest(text: str) -> str:
    task = make_task(task_component(text))
    return ExampleStream(task, task.eval_cells[0], "test", [0], CPU).digests(20)[0]


@pytest.fixture
def changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give `copy` a second version of its data, and keep the first one."""
    monkeypatch.setattr(TASKS, "_retired", dict(TASKS._retired))
    monkeypatch.setattr(Copy, "data_version", 2)
    monkeypatch.setattr(FormerCopy, "__module__", Copy.__module__)  # a task from outside has a source in its records
    TASKS.register_retired("copy")(FormerCopy)


def test_old_data_stay_and_new_data_differ(request: pytest.FixtureRequest) -> None:
    before = digest("copy:symbols=8")
    old = expand_request(Request("copy:symbols=8", ("linear",)))
    request.getfixturevalue("changed")
    assert digest("copy@1:symbols=8") == before != digest("copy:symbols=8") == digest("copy@2:symbols=8")
    assert [run.id for run in expand_request(Request("copy@1:symbols=8", ("linear",)))] == [run.id for run in old]
    assert expand_request(Request("copy:symbols=8", ("linear",)))[0].id != old[0].id


def test_records_name_the_version(changed) -> None:
    former, present = task_component("copy@1:symbols=8"), task_component("copy@2:symbols=8")
    assert (former.version, former.label) == (1, "copy@1:symbols=8")
    assert (present.version, present.label) == (2, "copy:symbols=8")
    assert TASKS.name_of(type(make_task(former))) == "copy" and TASKS.versions("copy") == [FormerCopy, Copy]
    one, two = (canonical_json([json.loads(each.model_dump_json())]) for each in (former, present))
    assert is_label(former.label, one) and is_label("copy", one) and not is_label(former.label, two)


def test_a_card_says_why_a_version_is_retired(changed, command) -> None:
    assert "Retired: made up for a test" in command("tasks", "copy@1").out
    assert "Retired" not in command("tasks", "copy").out


def test_versions_that_nobody_makes(changed) -> None:
    with pytest.raises(UnknownNameError, match=r"copy has no version 3; versions: 1 \(made up for a test\), 2$"):
        task_component("copy@3")
    with pytest.raises(UnknownNameError, match=r"depo has no version 2; versions: 1$"):
        task_component("depo@2")
    with pytest.raises(SpecError, match="a version is a number from 1 up, name@1; got 'x' in 'copy@x'"):
        task_component("copy@x")
    with pytest.raises(SpecError, match="a name is lower-case letters"):
        expand_request(Request("copy", ("linear@1",)))


def test_what_cannot_be_retired(changed, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DuplicateNameError, match="copy has version 1"):
        TASKS.register_retired("copy")(FormerCopy)
    monkeypatch.setattr(FormerCopy, "data_version", 3)
    with pytest.raises(SpecError, match="older than version 2 of copy; got 3"):
        TASKS.register_retired("copy")(FormerCopy)
    monkeypatch.setattr(FormerCopy, "retired", "")
    with pytest.raises(SpecError, match="a retired version says why"):
        TASKS.register_retired("copy")(FormerCopy)


def test_the_stream_of_a_version_is_its_own() -> None:
    assert random.stream("copy", 1, "symbols=8", 0, "test") != random.stream("copy", 2, "symbols=8", 0, "test")
