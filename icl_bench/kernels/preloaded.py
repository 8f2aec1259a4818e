"""All Triton kernels and what Triton needs to find them in its cache, for a process that is about to train.

Its first steps then launch them at once. No GPU is used.
"""

import importlib.util
from pkgutil import walk_packages

import icl_bench.kernels
from icl_bench.kernels.digested import wait_for_digest

LEFT_OUT = "icl_bench.kernels.measurement."
"""Beginning of the names of modules that no training needs."""

if importlib.util.find_spec("triton") is not None:
    for module in walk_packages(icl_bench.kernels.__path__, "icl_bench.kernels."):
        if ".triton." in module.name and not module.name.startswith(LEFT_OUT):
            importlib.import_module(module.name)
wait_for_digest()
