"""Settings for all tests, and a command of `icl-bench` run in the process of a test."""

import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import hypothesis
import pytest

from tests.gpu_memory import called_again, give_back, reserved

hypothesis.settings.register_profile("suite", derandomize=True, deadline=None, max_examples=50)
"""Property tests draw the same examples every time."""
hypothesis.settings.load_profile("suite")


class Outcome(NamedTuple):
    """The exit status of a command, and what it printed."""

    status: int
    out: str
    err: str


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Deal tests of a GPU in turns, one of each function a turn.

    Tests of one function need the same kernels: one after the other they find them compiled, at once all compile them.
    """
    seen: Counter[str] = Counter()
    turns = {}
    for item in items:
        if item.get_closest_marker("gpu") is not None:
            name = item.nodeid.partition("[")[0]
            turns[item], seen[name] = seen[name], seen[name] + 1
    items.sort(key=lambda item: turns.get(item, 0))


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Outcome]:
    """Return a function that runs a command in this process and in the folder `tmp_path`."""
    from icl_bench import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "prepare_process", lambda: None)
    monkeypatch.setattr(cli, "conclude", lambda: None)

    def run(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["icl-bench", *arguments])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        captured = capsys.readouterr()
        return Outcome(int(exit_.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture(autouse=True)
def memory_of_a_gpu(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let a test of a GPU begin when the memory is free that its mark `memory` names, and give back what it leaves."""
    mark = request.node.get_closest_marker("memory")
    with nullcontext() if mark is None else reserved(*mark.args, **mark.kwargs):
        yield
    if request.node.get_closest_marker("gpu") is not None:
        give_back()


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Let a test of a GPU wait for memory that other work has taken."""
    if pyfuncitem.get_closest_marker("gpu") is not None:
        pyfuncitem.obj = called_again(pyfuncitem.obj)
    return (yield)
