"""The command that holds tasks against shallow solvers: its table, its document and its exit status."""

import json

import pytest

from icl_bench.commands.output import SOMETHING_FAILED
from icl_bench.tasks.flip_flop import FlipFlop


def test_a_task_that_passes(command) -> None:
    done = command("validate", "depo:nodes=6", "--examples", "100")
    assert done.status == 0 and "one-look-up" in done.out and "below" in done.out


def test_a_task_that_fails_is_told_with_its_solver(command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FlipFlop, "floors", property(lambda task: {"latest-bit": task.floor_latest_bit}))
    done = command("validate", "flip-flop:ignore=0.8", "--examples", "400", "--json")
    (task,) = json.loads(done.out)["tasks"]
    assert done.status == SOMETHING_FAILED and not task["ok"]
    assert "look-up-latest" in {one["solver"] for one in task["cells"][0]["above"]}
    assert "above the stated floor" in command("validate", "flip-flop:ignore=0.8", "--examples", "400").out
