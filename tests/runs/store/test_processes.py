"""The marks of processes in names: who still writes, and who is gone."""

import os
import re
import subprocess
import sys

import pytest

from icl_bench.runs.store import processes
from icl_bench.runs.store.processes import HOST, MARK, UNKNOWN, Writer, start_of, writer_mark


def writer_of(mark: str) -> Writer:
    found = re.fullmatch(MARK, mark)
    assert found is not None
    return Writer.of(found, 1)


def test_a_mark_names_its_process() -> None:
    writer = writer_of(writer_mark())
    assert (writer.host, writer.process) == (HOST, os.getpid()) and writer.is_alive(changed=0.0)
    assert writer_mark() != writer_mark()


def test_a_process_that_ended_is_gone() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    writer = Writer(HOST, process.pid, start_of(process.pid))
    assert writer.is_alive(changed=0.0)
    process.communicate(b"\n")
    assert not writer.is_alive(changed=0.0)


@pytest.mark.skipif(start_of(os.getpid()) == UNKNOWN, reason="the system does not tell when a process started")
def test_another_process_of_the_same_id_is_another() -> None:
    assert not Writer(HOST, os.getpid(), "12345678").is_alive(changed=0.0)
    assert Writer(HOST, os.getpid(), UNKNOWN).is_alive(changed=0.0)


@pytest.mark.parametrize("process", [2**31, 10**9, 9_999_999_999])
def test_ids_that_no_process_has(process: int) -> None:
    assert start_of(process) is None


def test_other_hosts_and_older_versions_count_as_alive_while_they_change(monkeypatch) -> None:
    monkeypatch.setattr(processes.time, "time", lambda: 1000.0)
    for writer in (Writer("00000000", 1, "12345678"), writer_of(f"{HOST}-1-0123abcd")):
        assert writer.is_alive(changed=500.0) and not writer.is_alive(changed=300.0)


def test_where_processes_cannot_be_listed_their_ids_decide(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(processes, "PROCESSES", tmp_path)
    assert start_of(os.getpid()) == UNKNOWN and start_of(10**8) is None
