"""Commands that train: what they begin before torch is imported, and what they load while runs train."""

import gc
import multiprocessing
import subprocess
import sys
import threading

import pytest

from icl_bench import isolation
from icl_bench.commands import session
from icl_bench.commands.options import MachineOptions, OutputOptions
from icl_bench.commands.session import loading_reports, make_executor, prepare_engine
from icl_bench.harness import compiled, early_workers


@pytest.mark.parametrize(("engine", "starts"), [("local:workers=2", 1), ("local", 1), ("auto", 0), ("inline", 0)])
def test_the_server_starts_where_workers_are_asked_for(engine: str, starts: int, tmp_path, monkeypatch) -> None:
    """Workers of GPUs, which take longer, are begun where the machine has a driver."""
    started: list[str] = []
    monkeypatch.setattr(isolation, "start_server", lambda: started.append("server"))
    monkeypatch.setattr(early_workers, "begin_workers", lambda: started.append("workers"))
    monkeypatch.setattr(session, "load_gpu", lambda: None)
    monkeypatch.setattr(compiled, "is_cold", lambda: False)
    for driver, device, begun in ((tmp_path, "auto", 2), (tmp_path, "cpu", 1), (tmp_path / "none", "cuda", 1)):
        monkeypatch.setattr(isolation, "GPU_DRIVER", driver)
        prepare_engine(MachineOptions(engine=engine, device=device))
        assert started == ["server", "workers"][: starts * begun]
        started.clear()


@pytest.mark.parametrize(
    ("engine", "device", "loads"),
    [("auto", "auto", True), ("inline:at_once=2", "cuda", True), ("auto", "cpu", False), ("ray", "cuda", False)],
)
def test_the_gpu_is_made_ready_where_fleets_use_it_here(engine: str, device: str, loads: bool, monkeypatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    loaded = threading.Event()
    monkeypatch.setattr(session, "load_gpu", loaded.set)
    prepare_engine(MachineOptions(engine=engine, device=device))
    assert loaded.wait(20 if loads else 0.05) == loads


def test_ranks_of_torchrun_leave_the_first_gpu_alone(monkeypatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    loaded = threading.Event()
    monkeypatch.setattr(session, "load_gpu", loaded.set)
    prepare_engine(MachineOptions(device="cuda"))
    assert not loaded.wait(0.05)


def test_garbage_is_collected_as_ever_while_runs_train(tmp_path) -> None:
    prepare_engine(MachineOptions(device="cpu"))
    assert gc.get_threshold()[0] > session.COLLECT_AT
    make_executor(MachineOptions(device="cpu"), OutputOptions(tmp_path, quiet=True)).engine.close()
    assert gc.get_threshold()[0] == session.COLLECT_AT
    gc.unfreeze()


def test_reports_load_while_a_block_takes_long(monkeypatch) -> None:
    loaded, names = threading.Event(), []

    def load(name: str) -> None:
        names.append(name)
        if len(names) == len(session.REPORT_MODULES):
            loaded.set()

    monkeypatch.setattr(session, "import_module", load)
    with loading_reports():
        pass
    assert not loaded.wait(0.05)
    monkeypatch.setattr(session, "LOAD_REPORTS_AFTER", 0.0)
    with loading_reports():
        assert loaded.wait(20)
    assert names == ["icl_bench.reports.report", "scipy.stats"]


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
