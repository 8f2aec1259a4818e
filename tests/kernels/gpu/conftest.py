"""What tests on a GPU share with each other: a spoiled context fails one test alone, and large tests take turns."""

import fcntl
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.gpu_memory import GIB, LONGEST_WAIT, wait_for_memory

KEPT_BYTES = 2 * GIB
"""Memory that a worker may keep after a test, for the next one."""


@pytest.fixture(autouse=True)
def returned_memory() -> Iterator[None]:
    """Give back what a test has left in the memory that a worker keeps, where it is much: other workers need it."""
    yield
    if torch.cuda.is_initialized() and torch.cuda.memory_reserved() > KEPT_BYTES:
        torch.cuda.empty_cache()


@pytest.fixture(autouse=True)
def in_turn(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let one test at a time, of all workers, take the tens of GiB that its mark `memory` names, and give them back."""
    mark = request.node.get_closest_marker("memory")
    if mark is None:
        yield
        return
    (gib,) = mark.args
    if torch.cuda.get_device_properties(0).total_memory < gib * GIB:
        pytest.skip(f"needs {gib} GiB of memory on the GPU")
    with (Path(tempfile.gettempdir()) / f"icl-bench-large-tests-{os.getuid()}").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        wait_for_memory(gib * GIB, time.monotonic() + LONGEST_WAIT)
        yield
        torch.cuda.empty_cache()


def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """End a worker with a spoiled context: pytest-xdist counts the test as failed and goes on in a fresh worker."""
    if call.excinfo is None or not hasattr(item.config, "workerinput") or not torch.cuda.is_available():
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        print(f"{item.nodeid}: {error}", file=sys.__stderr__, flush=True)
        os._exit(1)
