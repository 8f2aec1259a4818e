"""A layer of one's own, from a user's file to a comparison at matched state, as a user types it."""

import json
import sys
from pathlib import Path

import pytest

from icl_bench.errors import OutsideCodeError, SpecError, UnknownSizeError
from icl_bench.harness.matching import Budget, Shape, match
from tests.test_cli import TINY

EXAMPLE = Path(__file__).with_name("gated_delta.py")
SHAPE = Shape(d_model=16, layers=2, length=16)
TASK = "assoc-recall:length=16,pairs=[2|4],vocab=64"


@pytest.fixture
def example(command, tmp_path, monkeypatch):
    """Return `command` in a folder with the example, as `mine.py`."""
    (tmp_path / "mine.py").write_text(EXAMPLE.read_text())
    monkeypatch.syspath_prepend(tmp_path)
    yield command
    sys.modules.pop("mine", None)


@pytest.mark.slow
def test_the_example_passes_every_check(example) -> None:
    checked = example("check-arch", "mine:GatedDelta", "--json")
    outcomes = {check["name"]: check["outcome"] for check in json.loads(checked.out)["checks"]}
    assert checked.status == 0 and set(outcomes.values()) == {"passed"}, checked.out


def test_the_example_is_compared_at_matched_state_with_others(example, tmp_path) -> None:
    archs = ("--arch", "mine:GatedDelta:d_head=?", "--arch", "power:p=2,conv=0", "--arch", "window:conv=0")
    rates = ("--lr", "1e-2", "--seeds", "0")
    outcome = example("compare", TASK, *archs, "--state", "600", *rates, "--json", "--report", "r.md", *TINY)
    runs = {run["arch"].partition(":")[0]: run for run in json.loads(outcome.out)["runs"]}
    assert outcome.status == 0, outcome.err
    assert {run["status"] for run in runs.values()} == {"ok"} and len(runs) == 3
    assert "mine:GatedDelta:d_head=17" in [run["arch"] for run in runs.values()]
    assert all(570 <= run["state"]["elements"] <= 630 for run in runs.values())
    assert runs["mine"]["state"]["bytes"] == 4 * 2 * 17**2
    assert "mine:GatedDelta" in (tmp_path / "r.md").read_text()


@pytest.mark.parametrize(
    ("text", "target", "found"),
    [
        ("mine:GatedDelta:d_head=?", 600, "mine:GatedDelta:d_head=17"),
        ("gated-conv+mine:GatedDelta:d_head=?", 230, "gated-conv+mine:GatedDelta:d_head=14"),
        ("mine:GatedDelta:d_head=3+linear:conv=0,d_key=?,d_value=4", 200, "mine:GatedDelta:d_head=3+linear:"),
        ("window:conv=0+linear:conv=0", 1000, "window:conv=0,w=16+linear:"),
        ("linear:conv=0+window:conv=0,d_value=?", 830, "linear:conv=0+window:conv=0,d_value=8"),
        ("mine:GatedDelta:d_head=5", 50, "mine:GatedDelta:d_head=5"),
        ("power:p=2,conv=0,d_value=?", 560, "power:p=2,conv=0,d_value="),
    ],
)
def test_marked_parameters_and_patterns_are_matched_as_a_whole(example, text: str, target: int, found: str) -> None:
    matched = match(text, Budget(target), SHAPE)
    assert matched.arch.startswith(found) and matched.error <= 0.05, matched


UNKNOWN = """
class Unknown(GatedDelta):
    state_elements = None

class Wrong(GatedDelta):
    def __init__(self, d_model, d_head):
        raise ValueError("never")
"""


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (
            "mine:Unknown:d_head=?",
            UnknownSizeError,
            "the state of mine:Unknown is unknown, so nothing can match it",
        ),
        ("mine:Wrong:d_head=?", OutsideCodeError, r"ValueError: never \(.*mine.py, line \d+\); check them"),
        (
            "mine:GatedDelta",
            SpecError,
            r"leaves nothing free to match with, and has 512 \(state\); type",
        ),
    ],
)
def test_a_layer_that_cannot_be_matched_is_told(example, tmp_path, text: str, error, message: str) -> None:
    (tmp_path / "mine.py").write_text(EXAMPLE.read_text() + UNKNOWN)
    with pytest.raises(error, match=message):
        match(text, Budget(100), SHAPE)


EDITED = """
class Edited(GatedDelta):
    def forward(self, x):
        {body}
"""


def test_an_edited_layer_is_a_new_run_and_an_error_is_repeated_on_request(example, tmp_path, caplog) -> None:
    run = ["run", TASK, "--arch", "mine:Edited", "--json", *TINY]

    def outcome(body: str, *more: str) -> tuple[int, str, str]:
        (tmp_path / "mine.py").write_text(EXAMPLE.read_text() + EDITED.format(body=body))
        done = example(*run, *more)
        (result,) = json.loads(done.out)["runs"]
        return done.status, result["id"], result["status"]

    failing = "assert not __import__('os').path.exists('fail'); return super().forward(x)"
    (tmp_path / "fail").touch()
    status, first, ended = outcome(failing)
    assert (status, ended) == (3, "error")
    (tmp_path / "fail").unlink()
    assert outcome(failing) == (3, first, "error")  # as it is stored
    assert outcome(failing, "--again") == (0, first, "ok")
    assert outcome(failing, "--again") == (0, first, "ok") and not caplog.records
    status, second, ended = outcome("return 2 * super().forward(x)")
    assert second != first and (status, ended) == (0, "ok")
    assert "mine:Edited has another source than in 1 finished runs here: these are new runs" in caplog.text


HOSTILE = """
import os, sys
class Neighbour(GatedDelta):
    def forward(self, x):
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)
        os.write(1, b"noise")
        print("noise")
        return x
class Exits(GatedDelta):
    def forward(self, x):
        sys.exit(0)
class Ends(GatedDelta):
    def forward(self, x):
        os._exit(0)
class Interrupts(GatedDelta):
    def forward(self, x):
        raise KeyboardInterrupt
class Forks(GatedDelta):
    def forward(self, x):
        os.fork()
        return super().forward(x)
class Negative(GatedDelta):
    def state_elements(self, length):
        return -1
class Mute(GatedDelta):
    def __init__(self, d_model):
        raise type("MuteError", (Exception,), {"__str__": lambda self: 1 / 0})
class Lazy(GatedDelta):
    def __init__(self, d_model):
        super().__init__(d_model)
        self.late = torch.nn.LazyLinear(d_model)
class Unready(GatedDelta):
    @property
    def state_elements(self):
        raise RuntimeError("not yet")
class Secret(GatedDelta):
    def parameters(self, recurse=True):
        raise ValueError("not told")
class EndsEarly(GatedDelta):
    def state_elements(self, length):
        os._exit(0)
"""


def test_hostile_layers_are_results_and_their_neighbours_are_as_alone(example, tmp_path) -> None:
    (tmp_path / "mine.py").write_text(EXAMPLE.read_text() + HOSTILE)
    names = ("Exits", "Interrupts", "Neighbour", "Forks", "Ends")
    archs = [part for name in names for part in ("--arch", f"mine:{name}")]
    done = example("run", TASK, *archs, "--arch", "linear", "--json", *TINY)
    alone = example("run", TASK, "--arch", "linear", "--json", *TINY, "--store", "other")
    runs = [(run["arch"].partition(":")[2], run["status"]) for run in json.loads(done.out)["runs"]]
    assert runs == [
        ("Exits", "error"),
        ("Interrupts", "error"),
        ("Neighbour", "ok"),
        ("Forks", "ok"),
        ("Ends", "crashed"),
        ("", "ok"),
    ]
    assert done.status == 3 and "mine:Exits failed: SystemExit: 0 (mine.py, line " in done.err
    assert json.loads(done.out)["runs"][-1]["by_cell"] == json.loads(alone.out)["runs"][0]["by_cell"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "Negative",
            "state_elements(length) returns a whole number from 0 to 10^15; mine:Negative returned -1;",
        ),
        ("EndsEarly", "mine:EndsEarly cannot be built: ended with exit status 0; mend it"),
        ("GatedDelta:d_head=none", "TypeError: "),
        ("Mute", "MuteError: <exception str() failed> (mine.py, line "),
        ("Lazy", "mine:Lazy cannot be built: ValueError: Attempted to use an uninitialized parameter"),
        ("Unready", "mine:Unready cannot be built: RuntimeError: not yet (mine.py, line "),
        ("Secret", "mine:Secret cannot be built: ValueError: not told (mine.py, line "),
        ("Missing", "module 'mine' has no 'Missing'"),
    ],
)
@pytest.mark.parametrize("command_name", ["run", "state", "check-arch"])
def test_a_layer_that_cannot_be_built_is_one_line(example, tmp_path, command_name: str, name: str, text: str) -> None:
    (tmp_path / "mine.py").write_text(EXAMPLE.read_text() + HOSTILE)
    given = {"run": ["run", TASK, "--arch"], "state": ["state"], "check-arch": ["check-arch"]}[command_name]
    done = example(*given, f"mine:{name}")
    assert done.status == 2 and text in done.err and done.err.count("\n") == 1
    assert "Traceback" in example(*given, f"mine:{name}", "--traceback").err or name in (
        "Negative",
        "EndsEarly",
        "Missing",
    )


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("import sys; sys.exit(0)", "module 'broken' cannot be imported: SystemExit: 0 (broken.py, line 1); mend it"),
        ("import os; os._exit(0)", "module 'broken' cannot be imported: SystemExit: 0 (broken.py, line 1); mend it"),
        (
            "raise KeyboardInterrupt",
            "module 'broken' cannot be imported: KeyboardInterrupt (broken.py, line 1); mend it",
        ),
        ("x = (", "module 'broken' cannot be imported: SyntaxError: '(' was never closed (broken.py, line 1); mend it"),
        ("x = '\0'", "module 'broken' cannot be imported: "),
        ("from torch import no_such", "module 'broken' cannot be imported: ImportError: cannot import name 'no_such'"),
        ("1 / 0", "module 'broken' cannot be imported: ZeroDivisionError: division by zero (broken.py, line 1); mend"),
    ],
)
@pytest.mark.parametrize("use", [["run", TASK, "--arch", "broken:Mine"], ["--plugin", "broken", "tasks"]])
def test_a_module_that_cannot_be_imported_is_one_line(example, tmp_path, monkeypatch, use, source, text: str) -> None:
    monkeypatch.setenv("ICL_BENCH_PLUGIN_MODULES", "")
    monkeypatch.setattr("icl_bench.outside.signal.getsignal", lambda number: None)  # as a command handles signals
    (tmp_path / "broken.py").write_text(source)
    done = example(*use)
    assert done.status == 2 and text in done.err and done.err.count("\n") == 1 and not done.out
