"""Figures drawn in other processes: in order, with their errors, and without a process that was lost."""

import os
import time
from functools import partial

import pytest

from icl_bench.reports import drawing
from icl_bench.reports.drawing import drawn_ahead

HERE = os.getpid()


@pytest.fixture(autouse=True)
def three_cores(monkeypatch) -> None:
    monkeypatch.setattr(drawing, "usable_cores", lambda: 3)
    monkeypatch.setattr(drawing.sys, "platform", "linux")


def picture(i: int) -> bytes | None:
    return None if i % 3 == 1 else f"{i} {os.getpid() == HERE}".encode()


def lost(i: int) -> bytes | None:
    if os.getpid() != HERE:
        os._exit(1)
    return picture(i)


def test_figures_come_in_order_from_other_processes() -> None:
    with drawn_ahead([partial(picture, i) for i in range(8)]) as waits:
        assert [wait() for wait in waits] == [None if i % 3 == 1 else f"{i} False".encode() for i in range(8)]


def test_figures_of_a_lost_process_are_drawn_here() -> None:
    with drawn_ahead([partial(lost if i == 4 else picture, i) for i in range(8)]) as waits:
        drawn = [wait() for wait in waits]
    assert drawn[2] == b"2 False" and drawn[4] is None and drawn[7] is None
    assert [one and one.split()[0] for one in drawn] == [b"0", None, b"2", b"3", None, b"5", b"6", None]


def test_figures_that_do_not_come_are_drawn_here(monkeypatch) -> None:
    monkeypatch.setattr(drawing, "PATIENCE", 0.2)

    def late(i: int) -> bytes | None:
        if os.getpid() != HERE and i == 0:
            time.sleep(0.6)
        return picture(i)

    with drawn_ahead([partial(late, i) for i in (0, 2, 3, 5, 6)]) as waits:
        drawn = [waits[0]()]
        time.sleep(0.8)
        drawn += [wait() for wait in waits[1:]]
    assert drawn == [b"0 True", b"2 False", b"3 False", b"5 True", b"6 False"]


def test_an_error_is_raised_here() -> None:
    def broken() -> bytes:
        raise ValueError("no figure")

    with drawn_ahead([partial(picture, 0), broken]) as waits:
        assert waits[0]() == b"0 False"
        with pytest.raises(ValueError, match="no figure"):
            waits[1]()


def test_one_core_draws_here(monkeypatch) -> None:
    monkeypatch.setattr(drawing, "usable_cores", lambda: 1)
    with drawn_ahead([partial(picture, i) for i in (0, 2)]) as waits:
        assert [wait() for wait in waits] == [b"0 True", b"2 True"]
