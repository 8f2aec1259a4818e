"""Memory of a GPU that tests share with each other and with other work."""

import fcntl
import functools
import gc
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

GIB = 2**30
KEPT_BYTES = 2 * GIB
"""Memory that a worker may keep after a test, for the next one."""
LONGEST_WAIT = 60.0
"""Seconds that a test waits until others give memory back."""
PAUSE = 2.0


@contextmanager
def reserved(gib: int, in_turn: bool = False) -> Iterator[None]:
    """Wait until so much memory is free, for a minute; `in_turn`, one test at a time of all workers is inside.

    Skip the test where the GPU has less in all.
    """
    if torch.cuda.get_device_properties(0).total_memory < gib * GIB:
        pytest.skip(f"needs {gib} GiB of memory on the GPU")
    with (Path(tempfile.gettempdir()) / f"icl-bench-large-tests-{os.getuid()}").open("w") as file:
        if in_turn:
            fcntl.flock(file, fcntl.LOCK_EX)
        wait_for_memory(gib * GIB, time.monotonic() + LONGEST_WAIT)
        yield
        torch.cuda.empty_cache()


def give_back() -> None:
    """Give back what a test has left in the memory that a worker keeps, where it is much: other workers need it."""
    if torch.cuda.is_initialized() and torch.cuda.memory_reserved() > KEPT_BYTES:
        torch.cuda.empty_cache()


def wait_for_memory(size: int, until: float) -> None:
    """Wait until so many bytes of the current GPU are free, or until a time of `time.monotonic`."""
    while torch.cuda.mem_get_info()[0] < size and time.monotonic() < until:
        time.sleep(PAUSE)


def called_again(test: Callable[..., None]) -> Callable[..., None]:
    """Return a test that is called again, for a minute, where it finds too little memory free."""

    @functools.wraps(test)
    def patient(*arguments: Any, **named: Any) -> None:
        until = time.monotonic() + LONGEST_WAIT
        while True:
            try:
                return test(*arguments, **named)
            except RuntimeError as error:
                if not lacks_memory(error) or time.monotonic() >= until:
                    raise
            gc.collect()  # tensors in the frames of the error
            needed = torch.cuda.max_memory_allocated() + GIB
            torch.cuda.empty_cache()
            time.sleep(PAUSE)
            wait_for_memory(needed, until)

    return patient


def lacks_memory(error: BaseException) -> bool:
    """Return whether an error, or one before it, says that the memory of a GPU is used up.

    PyTorch has a type of error for it, libraries and drivers have a text; cuBLAS may name an internal error instead.
    """
    text = str(error)
    if "out of memory" in text or ("CUBLAS_STATUS" in text and torch.cuda.mem_get_info()[0] < GIB):
        return True
    return error.__context__ is not None and lacks_memory(error.__context__)
