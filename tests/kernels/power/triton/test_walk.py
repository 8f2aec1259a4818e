"""States in one walk over a sequence: where it serves, and its kernel compiled for a GPU that is not there."""

import json
import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton")

from icl_bench.kernels.power.triton.problem import has_token_rows, make_problem

SCRIPT = """
import json
import torch, triton
from triton.backends.compiler import GPUTarget
from icl_bench.kernels import ahead
from icl_bench.kernels.power.triton import walk
from icl_bench.kernels.power.triton.problem import TokenWeights, make_problem

class Driver:
    def get_current_target(self): return GPUTarget("cuda", 90, 32)
    def get_current_device(self): return 0
    def get_current_stream(self, device=0): return 0

triton.runtime.driver.set_active(Driver())
found = []
listener = lambda *, src, metadata, metadata_group, times, cache_hit: found.append(metadata_group)
triton.knobs.compilation.listener = listener
sources = []
for width, gated in ((64, False), (64, True), (128, True)):
    k = torch.empty(1, 512, 2, width, dtype=torch.bfloat16)
    problem = make_problem(k, k, k, 2, 1.0, True, 1e-6, 128, False)
    states = torch.empty(2, problem.chunks, problem.elements, dtype=torch.bfloat16)
    numbers = torch.empty(1, 2, 512)
    weights, gates, prefix = (TokenWeights(numbers, numbers), numbers, states) if gated else (None, None, None)
    with ahead.unlaunched(sources.append):
        walk.walk_states(problem, k, k, weights, gates, states, prefix, reverse=gated)
for source in sources:
    try:
        ahead.compile_source(source)
    except AssertionError as error:  # of the launcher, where there is no driver of a GPU
        assert "libcuda" in str(error)
codes = [open(next(path for name, path in group.items() if name.endswith(".ptx"))).read() for group in found]
print(json.dumps([[code.count("wgmma.mma_async"), code.count(".local")] for code in codes]))
"""


def problem(width=64, heads=2, groups=2, key_heads=2, t=512, chunk=128, p=2, value=64, dtype=torch.bfloat16, n=1):
    q, k, v = (
        torch.empty(n, t, count, size, dtype=dtype, device="meta")
        for count, size in ((heads, width), (key_heads, width), (groups, value))
    )
    return make_problem(q, k, v, p, 1.0, True, 1e-6, chunk, False)


def test_it_serves_whole_blocks_of_equal_widths_and_heads_of_their_own():
    assert problem().walkable and problem(width=128, value=128).walkable and problem(t=640, chunk=256).walkable
    others = ({"width": 32, "value": 32}, {"value": 128}, {"p": 3}, {"dtype": torch.float16}, {"t": 576}, {"t": 128})
    shared = ({"heads": 4}, {"key_heads": 1}, {"heads": 1, "key_heads": 1})
    assert not any(problem(**changes).walkable for changes in (*others, *shared, {"t": 2**22, "n": 2**9}))


def test_rows_of_tokens_are_told_from_other_memory():
    joint = torch.empty(2, 8, 3, 4, 16, dtype=torch.bfloat16)
    assert has_token_rows(joint[:, :, 1]) and has_token_rows(joint[0, :, 1][None])
    assert not has_token_rows(joint[:, 1:, 1]) and has_token_rows(joint[:1, 1:, 1])
    assert not has_token_rows(joint[:, :, 1].transpose(1, 2)) and not has_token_rows(joint[:, :, 1, :, ::2])
    assert not has_token_rows(torch.empty(1, 8, 1, 12, dtype=torch.bfloat16))  # rows of 24 bytes


def test_the_kernel_compiles_for_hopper_with_its_products_and_without_spills(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    counts = json.loads(done.stdout.splitlines()[-1])
    assert len(counts) == 3 and all(products > 0 and local == 0 for products, local in counts)
