"""The commands that describe a task or an architecture, and the completion of their names."""

import json
import os
import subprocess
import sys
from typing import Literal

import pytest

from icl_bench.architectures import ARCHITECTURES
from icl_bench.commands.details import arch_card, task_card, type_words
from icl_bench.commands.options import complete_arch, complete_task, registered_names
from icl_bench.schema import parse_spec
from icl_bench.tasks import TASKS


@pytest.mark.parametrize("name", list(TASKS))
def test_every_task_has_a_card(name: str) -> None:
    card = task_card(name)
    assert [one.name for one in card.parameters] == list(TASKS[name].model_fields)
    assert all(one.type and one.default and one.meaning for one in card.parameters)
    assert [row["cell"] for row in card.rows] == [cell.label for cell in TASKS[name]().eval_cells]
    assert card.example is not None and "scored" in card.example.plain
    assert parse_spec(card.command.split()[2]).name == name
    json.dumps(card.document())


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_every_architecture_has_a_card(name: str) -> None:
    card = arch_card(name)
    assert [one.name for one in card.parameters] == list(ARCHITECTURES[name].model_fields)
    assert all(one.type and one.default for one in card.parameters) and len(card.rows) == 2
    assert f"--arch {name} " in card.command


def test_cards_are_of_what_was_typed(command) -> None:
    shown = command("tasks", "copy:symbols=4/6").out
    assert "symbols=4" in shown and "symbols=6" in shown and "integer" in shown and "Try: icl-bench run copy" in shown
    rows = json.loads(command("archs", "power:p=3", "--json").out)["arch"]["rows"]
    assert rows[0]["state elements"] == 105_600
    wrong = command("tasks", "mqar")
    assert wrong.status == 2 and "no task is named 'mqar'; did you mean 'assoc-recall'?" in wrong.err


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (("run", "assoc_recall", "-a", "linear"), "got 'assoc_recall' in 'assoc_recall'; did you mean 'assoc-recall'?"),
        (("run", "copy", "-a", "attention"), "no architecture is named 'attention'; did you mean 'softmax'?"),
        (("run", "copy", "-a", "linear:num_heads=2"), "linear has no parameter 'num_heads'; did you mean 'heads'?"),
        (("run", "copy", "-a", "hgrn2:d_state=2"), "hgrn2 has no parameter 'd_state'; did you mean 'd_key'?"),
        (("run", "copy", "-a", "linear", "--set", "seed=3"), "--set has no field 'seed', which an option sets"),
        (
            ("run", "copy", "-a", "linear", "--set", "steps=3"),
            "--set has no field 'steps'; did you mean 'train.steps'?",
        ),
        (("run", "copy", "-a", "linear", "--set", "train.lr=1,2"), "several rates are given by --lr 1,2"),
        (("run", "copy:symbols=[4,8]", "-a", "linear"), "got '4,8' in 'copy:symbols=[4,8]'; write a list as 4/8/16"),
    ],
)
def test_what_users_of_other_packages_type_is_answered(command, typed: tuple[str, ...], message: str) -> None:
    outcome = command(*typed)
    assert outcome.status == 2 and message in outcome.err and outcome.err.count("\n") == 1


def test_types_are_said_as_a_user_types_them() -> None:
    assert type_words(bool) == "true or false" and type_words(int | None) == "integer or none"
    assert type_words(Literal["a", "b"] | None) == "a or b or none"


def test_completion_knows_the_registered_names() -> None:
    assert registered_names("tasks") == list(TASKS) and registered_names("architectures") == list(ARCHITECTURES)
    assert complete_task("assoc") == ["assoc-recall"]
    assert complete_arch("gated-conv+soft") == ["gated-conv+softmax"]


def test_the_shell_completes_without_torch(tmp_path) -> None:
    code = (
        "import sys\nsys.argv = ['icl-bench']\nfrom icl_bench.cli import main\n"
        "try:\n    main()\nfinally:\n    assert 'torch' not in sys.modules"
    )
    environment = {
        **os.environ, "_ICL_BENCH_COMPLETE": "complete_bash", "COMP_WORDS": "icl-bench run ass", "COMP_CWORD": "2",
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.stdout.split() == ["assoc-recall"], done.stderr
