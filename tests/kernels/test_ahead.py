"""Kernels listed without launches and compiled for a GPU that is not there, in a process without the interpreter."""

import importlib.util

import pytest

from tests.kernels.absent_gpu import run_for_hopper

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
SCRIPT = """
from icl_bench.kernels.triton.common import add_parts

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
compile_source(source)
kernel = getattr(__import__(source.module, fromlist=["_"]), source.name)
jitted = triton.runtime.jit.JITFunction
run = jitted.run
jitted.run = lambda kernel, *given, grid, warmup, **options: run(kernel, *given, grid=grid, warmup=True, **options)
add_parts(parts, parts.dtype)
found["hits"] = hits
print(json.dumps(found))
"""


def test_kernels_are_listed_without_launches_and_found_in_the_cache_afterwards(tmp_path) -> None:
    found = run_for_hopper(SCRIPT, tmp_path)
    assert found["can_list"] and found["zeros"] and found["unwritten"]
    assert len(found["names"]) == 1  # the second call has the same kernel
    assert found["hits"] == [False, True]  # compiled ahead, then found at what would be the first launch
