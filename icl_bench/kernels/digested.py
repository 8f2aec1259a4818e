"""Triton's digest of its own library, taken in a thread from the import of this module on.

Triton finds no kernel in its cache without the digest, and reads some hundred megabytes for it, without Python's lock:
while this process imports torch, it costs no time. Nothing of torch is imported here.
"""

import importlib.util
import threading


def take_digest() -> None:
    """Let Triton take the digest, which it keeps."""
    import triton  # noqa: F401  # the package first, as in backends.py
    from triton.runtime.cache import triton_key

    triton_key()


TAKING = threading.Thread(target=take_digest, name="take_digest")
"""The thread; a process that forks others waits for its end."""

if importlib.util.find_spec("triton") is not None:
    TAKING.start()
