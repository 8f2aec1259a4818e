"""Commands that train: the server of worker processes starts before torch is imported, where workers are asked for."""

import multiprocessing
import subprocess
import sys

import pytest

from icl_bench import isolation
from icl_bench.commands.options import MachineOptions
from icl_bench.commands.session import prepare_workers


@pytest.mark.parametrize(("engine", "starts"), [("local:workers=2", 1), ("local", 1), ("auto", 0), ("inline", 0)])
def test_the_server_starts_where_workers_are_asked_for(engine: str, starts: int, monkeypatch) -> None:
    started: list[str] = []
    monkeypatch.setattr(isolation, "start_server", lambda: started.append(engine))
    prepare_workers(MachineOptions(engine=engine))
    assert len(started) == starts


@pytest.mark.skipif(
    sys.platform != "linux" or "forkserver" not in multiprocessing.get_all_start_methods(), reason="forks no workers"
)
def test_the_server_runs_before_torch_is_imported() -> None:
    program = """
import sys
from icl_bench.isolation import start_server
from multiprocessing import forkserver
start_server()
assert forkserver._forkserver._forkserver_pid and "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
