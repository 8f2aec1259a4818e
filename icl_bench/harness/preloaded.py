"""Modules that a worker needs, loaded once by the server, so that the processes forked from it begin at once.

On a machine with a GPU Triton's digest is taken meanwhile. No GPU is used.
"""

import gc
from importlib import import_module

from icl_bench.isolation import GPU_DRIVER

gc.disable()  # all objects stay, and a tenth of the time would be collections
if GPU_DRIVER.exists():
    import_module("icl_bench.kernels.digested")
for name in ("icl_bench.harness.engines.worker", "typer"):  # the second is what the console script imports
    import_module(name)
if GPU_DRIVER.exists():
    import_module("icl_bench.kernels.digested").wait_for_digest()
gc.enable()
