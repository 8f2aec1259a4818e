"""Memory of a GPU that tests share with each other and with other work."""

import functools
import gc
import time
from collections.abc import Callable
from typing import Any

import torch

GIB = 2**30
LONGEST_WAIT = 60.0
"""Seconds that a test waits until others give memory back."""
PAUSE = 2.0


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


def lacks_memory(error: RuntimeError) -> bool:
    """Return whether an error says that the memory of a GPU is used up; cuBLAS has no type of error for it."""
    return isinstance(error, torch.OutOfMemoryError) or "CUBLAS_STATUS_ALLOC_FAILED" in str(error)
