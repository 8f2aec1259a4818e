"""Triton's digest of its own library, taken in a thread from the import of this module on.

Triton finds no kernel in its cache without the digest, and reads some hundred megabytes for it, a megabyte at a time,
without Python's lock: while this process imports torch, it costs no time. Nothing of torch is imported here.
"""

import importlib.util
import sys
import threading

TURN_SECONDS = 1e-4
"""Seconds that another thread may compute in Python while this one waits for the lock.

It waits twice for each megabyte: with the 5e-3 of Python the digest would take longer than an import of torch.
"""


def take_digest() -> None:
    """Let Triton take the digest, which it keeps."""
    import triton  # noqa: F401  # the package first, as in backends.py
    from triton.runtime.cache import triton_key

    triton_key()


TAKING = threading.Thread(target=take_digest, name="take_digest")
if importlib.util.find_spec("triton") is not None:
    sys.setswitchinterval(TURN_SECONDS)
    TAKING.start()


def wait_for_digest() -> None:
    """Wait until the digest is taken, as a process does that forks others; at once without Triton."""
    if TAKING.ident is not None:
        TAKING.join()
