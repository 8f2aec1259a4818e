"""A context of a GPU that a test on it spoils fails this test alone."""

import os
import sys

import pytest
import torch


def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """End a worker with a spoiled context: pytest-xdist counts the test as failed and goes on in a fresh worker."""
    if call.excinfo is None or not hasattr(item.config, "workerinput") or not torch.cuda.is_available():
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        print(f"{item.nodeid}: {error}", file=sys.__stderr__, flush=True)
        os._exit(1)
