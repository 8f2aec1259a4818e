"""Kernels listed without launches and compiled for a GPU that is not there, in a process without the interpreter."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
SCRIPT = """
import json, threading
import torch, triton
from triton.backends.compiler import GPUTarget
from icl_bench.kernels import ahead
from icl_bench.kernels.triton.common import add_parts

class Driver:
    def get_current_target(self): return GPUTarget("cuda", 90, 32)
    def get_current_device(self): return 0
    def get_current_stream(self, device=0): return 0

triton.runtime.driver.set_active(Driver())
found = {"can_list": ahead.can_list()}
parts = torch.ones(1, 2, 16, 16, dtype=torch.bfloat16)
sources = []
with ahead.unlaunched(sources.append):
    added = add_parts(parts, parts.dtype)
    add_parts(parts, parts.dtype)
    found["zeros"] = bool((torch.empty(1000) == 0).all())
found["unwritten"] = bool((added == 0).all())
found["names"] = [source.name for source in sources]
hits = []
triton.knobs.compilation.listener = lambda *, src, metadata, metadata_group, times, cache_hit: hits.append(cache_hit)
source = sources[0]
try:
    ahead.compile_source(source)
except AssertionError as error:  # of the launcher, where there is no driver of a GPU
    found["launcher"] = "libcuda" in str(error)
kernel = getattr(__import__(source.module, fromlist=["_"]), source.name)
jitted = triton.runtime.jit.JITFunction
run = jitted.run
jitted.run = lambda kernel, *given, grid, warmup, **options: run(kernel, *given, grid=grid, warmup=True, **options)
add_parts(parts, parts.dtype)
found["hits"] = hits
print(json.dumps(found))
"""


def test_kernels_are_listed_without_launches_and_found_in_the_cache_afterwards(tmp_path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["can_list"] and found["zeros"] and found["unwritten"] and found.get("launcher", True)
    assert len(found["names"]) == 1  # the second call has the same kernel
    assert found["hits"] == [False, True]  # compiled ahead, then found at what would be the first launch
