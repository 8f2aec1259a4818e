"""All that a worker needs, loaded once by the server, so that the processes forked from it begin at once.

On a machine with a GPU that is all Triton kernels too, and what Triton finds them in its cache by. No GPU is used.
"""

import gc
from importlib import import_module

from icl_bench.isolation import GPU_DRIVER

COMMON = ("icl_bench.harness.engines.worker", "typer")
"""Modules of every worker, and what the console script imports."""
FIRST_FOR_GPUS, LAST_FOR_GPUS = ("icl_bench.kernels.digested",), ("icl_bench.kernels.preloaded",)
"""Modules before and after these on a machine with a GPU; the first one begins a thread, the last one waits for it."""

gc.disable()  # all objects stay, and a tenth of the time would be collections
for name in (*FIRST_FOR_GPUS, *COMMON, *LAST_FOR_GPUS) if GPU_DRIVER.exists() else COMMON:
    import_module(name)
gc.enable()
