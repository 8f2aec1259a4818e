"""Kinds of fleets whose kernels lie in Triton's cache on this machine; loads neither torch nor Triton."""

import os
from pathlib import Path

from icl_bench.isolation import GPU_DRIVER


def known_fleets() -> Path:
    """Return the folder in Triton's cache that has an empty file for each kind of fleet whose kernels are there."""
    return Path(os.environ.get("TRITON_CACHE_DIR") or Path.home() / ".triton" / "cache") / "icl-bench-fleets"


def is_cold() -> bool:
    """Return whether this machine has a GPU, and no kernels of any fleet."""
    return GPU_DRIVER.exists() and not known_fleets().is_dir()
