"""The five steps to a new task, followed once outside the package: a distribution that brings a task as a plug-in.

1. The class, registered under its name, with rule, chance, source and an example. 2. `sample`, cells, oracle, floors,
state. 3. The contract suite covers it. 4. Its data is pinned by a digest. 5. Its section of the pages is generated.
"""

import importlib
import json
import sys
from types import ModuleType

import pytest

from docs import pages
from icl_bench.harness.task_conformance import check_task_contract
from icl_bench.registry import PLUGIN_ALLOW_LIST, PLUGIN_MODULES, load_plugins
from icl_bench.tasks import TASKS
from tests.tasks import test_contract as contract
from tests.tasks.conftest import keys_of
from tests.test_cli import TINY

SOURCE = '''
"""Write a string backwards."""

import torch
from pydantic import Field
from torch import Tensor

from icl_bench import random
from icl_bench.tasks.base import TASKS, Batch, TrainingBudget, ContextContents, Task
from icl_bench.tasks.cells import Axis, Cell, IntegerList, ExampleShape
from icl_bench.tasks.vocabulary import QUERY, Vocabulary, letters


@TASKS.register("mirror")
class Mirror(Task):
    """Name the symbols of a string from the last to the first.

    A string of `symbols` letters is followed by as many question marks, which are scored: the first asks for the last
    letter. Counting the letters does not say where they stood.

    Source: none. Chance: 1/alphabet. Repeats: four letters have 65,536 strings.

    >>> task = Mirror(symbols=(3,), alphabet=4)
    >>> batch = task.sample(random.row_keys(torch.tensor(1), torch.arange(1)), task.eval_cells[0])
    >>> batch.inputs.tolist(), batch.targets.tolist()
    ([[17, 19, 18, 3, 3, 3]], [[18, 19, 17]])
    """

    axes = (Axis("symbols", lowest=2),)
    load_name = "symbols"
    budget = TrainingBudget(steps=300, lr=1e-2, params="symbols=4")
    picture = "symbols=8"
    repeats = True

    symbols: IntegerList = (4, 8)
    """Lengths of the string, each a cell."""
    alphabet: int = Field(default=16, ge=2)
    """Number of letters."""

    @property
    def words(self) -> Vocabulary:
        return Vocabulary({"letters": letters(self.alphabet)})

    def shape(self, sizes: tuple[int, ...]) -> ExampleShape:
        (symbols,) = sizes
        return ExampleShape(length=2 * symbols, load=symbols, scored=symbols)

    def sample(self, keys: Tensor, cell: Cell) -> Batch:
        string = random.integers(keys, "letters", cell.load, self.alphabet) + self.words.first("letters")
        inputs = torch.cat([string, torch.full_like(string, QUERY)], dim=1)
        positions = torch.arange(cell.load, cell.length, device=keys.device).expand_as(string)
        return Batch(inputs, positions, string.flip(1), (positions - cell.load).clamp(max=1))

    def oracle(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        return inputs.gather(1, 2 * cell.load - 1 - positions)

    def floor_last_letter(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the last letter of the string."""
        return inputs[:, cell.load - 1 : cell.load].expand_as(positions)

    def contents(self, cell: Cell) -> ContextContents:
        return ContextContents(cell.load, self.alphabet)

    def group_label(self, group: int) -> str:
        return ("last letter", "others")[group]
'''


@pytest.fixture
def mirror(tmp_path, monkeypatch) -> ModuleType:
    """The plug-in, installed in a folder of its own and loaded; nothing of it is left afterwards."""
    (tmp_path / "mirror_task.py").write_text(SOURCE)
    information = tmp_path / "mirror_task-0.1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: mirror-task\nVersion: 0.1\n")
    (information / "entry_points.txt").write_text("[icl_bench]\nmirror = mirror_task\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv(PLUGIN_ALLOW_LIST, "mirror")
    monkeypatch.setattr(TASKS, "_entries", dict(TASKS._entries))
    (plugin,) = load_plugins()
    assert plugin.error is None and plugin.distribution == "mirror-task" and "mirror" in TASKS
    yield sys.modules["mirror_task"]
    del sys.modules["mirror_task"]
    importlib.invalidate_caches()


@pytest.fixture
def command(mirror, command):
    """Return a function that runs a command with the plug-in installed."""
    return command


def test_the_contract_of_tasks_is_checked_by_a_command(command) -> None:
    status, out, _ = command("check-task", "mirror", "--json")
    document = json.loads(out)
    assert status == 0 and document["ok"] and document["task"] == "mirror"
    assert {check["outcome"] for check in document["checks"]} == {"passed"} and len(document["checks"]) > 5


def test_the_contract_of_tasks_holds(mirror, monkeypatch, tmp_path) -> None:
    golden = tmp_path / "golden.json"
    golden.write_text(json.dumps({"mirror": "c0ffee"}))
    monkeypatch.setattr(contract, "GOLDEN", golden)
    with pytest.raises(AssertionError):
        contract.TestTask().test_golden_digest("mirror", keys_of)
    golden.write_text(json.dumps({"mirror": contract.digest(contract.task_of("mirror"), keys_of)}))
    contract.TestTask().test_golden_digest("mirror", keys_of)


def test_its_class_says_what_it_must(mirror) -> None:
    names = contract.TestName()
    names.test_docstring_has_an_example_that_holds("mirror")
    names.test_budget_is_for_the_smallest_cell("mirror")
    names.test_docstring_and_declarations_are_whole("mirror")


def test_its_section_of_the_pages_is_generated(mirror) -> None:
    section = pages.task_section("mirror")
    assert (
        "## mirror" in section
        and "`last-letter`: Name the last letter of the string." in section
        and "symbols=4" in section
    )


def test_commands_know_it(command) -> None:
    status, out, _ = command("tasks", "--json")
    rows = {row["name"]: row["summary"] for row in json.loads(out)["tasks"]}
    assert status == 0 and rows["mirror"] == "Name the symbols of a string from the last to the first."
    status, out, _ = command("show", "mirror")
    assert status == 0 and "→" in out
    status, out, _ = command("run", "mirror:symbols=4", "--arch", "linear", "--json", *TINY)
    assert status == 0 and json.loads(out)["runs"][0]["by_cell"].keys() == {"symbols=4"}


def test_its_refusals_end_with_2(command) -> None:
    status, _, err = command("run", "mirror:symbols=1", "--arch", "linear", *TINY)
    assert status == 2 and "symbols must be at least 2; got 1; raise symbols" in err


FAULTS = {
    "return inputs.gather(1, 2 * cell.load - 1 - positions)": (
        "return inputs.gather(1, positions)",
        "oracle",
        "symbols=4: ",
    ),
    "string.flip(1), (positions": (
        "string, (positions",
        "oracle",
        "the oracle is right everywhere; it is not",
    ),
    "ExampleShape(length=2 * symbols": ("ExampleShape(length=3 * symbols", "shapes and ranges", "RuntimeError: "),
    "string = random.integers(keys,": ("string = random.integers(keys.flip(0),", "examples by keys", "own key"),
    "return inputs[:, cell.load - 1 : cell.load].expand_as(positions)": (
        "return inputs[:, -1:].expand_as(positions)",
        "floors",
        "no blind guess beats the floors",
    ),
    "    repeats = True\n": ("", "no test in training", "set `repeats`"),
    "Chance: 1/alphabet.": ("", "description", "the docstring says Chance:"),
    "return ContextContents(cell.load, self.alphabet)": ("raise ValueError('no idea')", "bits of the state", "no idea"),
}


@pytest.mark.parametrize(
    ("right", "wrong", "found"),
    [
        (
            "string = random.integers",
            "string = 1 / 0 * random.integers",
            "ZeroDivisionError: division by zero (late_task.",
        ),
        ('    load_name = "symbols"\n', "", "'Late' object has no attribute 'load_name'"),
        ('    budget = TrainingBudget(steps=300, lr=1e-2, params="symbols=4")\n', "", "AttributeError: budget"),
        (
            "return ContextContents(cell.load, self.alphabet)",
            "return None",
            "Late gives neither contents nor state_bits",
        ),
    ],
)
def test_a_task_that_fails_in_a_listing_is_one_line(
    command, tmp_path, monkeypatch, right: str, wrong: str, found: str
) -> None:
    assert right in SOURCE
    source = SOURCE.replace(right, wrong).replace("mirror", "late").replace("Mirror", "Late")
    (tmp_path / "late_task.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(TASKS, "_entries", dict(TASKS._entries))
    monkeypatch.setenv(PLUGIN_MODULES, "")
    importlib.invalidate_caches()
    try:
        done = command("--plugin", "late_task", "tasks", "late")
        shown = command("show", "late")
    finally:
        del sys.modules["late_task"]
    assert done.status == 2 and done.err.startswith("Error: late failed: ") and done.err.count("\n") == 1
    assert found in done.err and (found in shown.err or "budget" in found)


@pytest.mark.parametrize("right", FAULTS)
def test_a_fault_of_a_task_fails_the_check_that_it_breaks(right: str, tmp_path, monkeypatch) -> None:
    wrong, name, found = FAULTS[right]
    assert right in SOURCE
    (tmp_path / "faulty_task.py").write_text(SOURCE.replace(right, wrong).replace("mirror", "faulty"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(TASKS, "_entries", dict(TASKS._entries))
    importlib.invalidate_caches()
    importlib.import_module("faulty_task")
    try:
        failed = {check.name: check.found for check in check_task_contract("faulty") if check.outcome == "failed"}
    finally:
        del sys.modules["faulty_task"]
    assert name in failed and found in failed[name], failed
