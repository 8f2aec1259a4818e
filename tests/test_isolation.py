"""Calls in processes of their own: answers, errors, ends, and a limit of time."""

import os
import signal
import sys
import time

import pytest

from icl_bench import isolation
from icl_bench.errors import OutsideCodeError, SpecError
from icl_bench.isolation import isolated, isolated_once, isolating


def process_id() -> int:
    return os.getpid()


def told(text: str) -> str:
    print("noise")  # noqa: T201
    os.write(1, b"more noise\n")
    return text


def refuse() -> None:
    raise SpecError("a rule; got 3; change it")


def end(status: int) -> None:
    os._exit(status)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def sleep() -> None:
    time.sleep(60)


def test_calls_stay_here_outside_of_the_block_and_leave_inside(capfd) -> None:
    assert isolated("x", process_id) == os.getpid()
    with isolating():
        assert isolated("x", process_id) != os.getpid()
        assert isolated("x", told, "answer") == "answer"
        assert isolated_once("x", process_id) == isolated_once("x", process_id)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("function", "arguments", "error", "text"),
    [
        (refuse, (), SpecError, "a rule; got 3; change it"),
        (end, (0,), OutsideCodeError, "the call failed: ended with exit status 0; mend it"),
        (kill, (), OutsideCodeError, "the call failed: ended by SIGKILL; mend it"),
        (sleep, (), OutsideCodeError, "the call failed: it did not come back within 0.5 s; mend it"),
    ],
)
def test_a_call_that_does_not_answer_is_one_line(function, arguments, error, text: str) -> None:
    limit = 0.5 if function is sleep else None
    with isolating(), pytest.raises(error, match=text):
        isolated("the call failed", function, *arguments, seconds=limit)


@pytest.mark.skipif(sys.platform != "linux", reason="a file of Linux")
def test_such_a_process_ends_first_where_memory_runs_out() -> None:
    with isolating():
        assert isolated("x", isolation.OWN_SCORE.read_text).strip() == "1000"
