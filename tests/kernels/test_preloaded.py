"""What a process holds that has loaded all kernels."""

import importlib.util
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
SCRIPT = """
import sys
import icl_bench.kernels.preloaded
from triton.runtime.cache import triton_key
import torch
loaded = [name for name in sys.modules if name.startswith("icl_bench.kernels.") and ".triton." in name]
print(len(loaded), triton_key.cache_info().hits + triton_key.cache_info().currsize, torch.cuda.is_initialized())
"""


def test_all_kernels_and_the_key_of_triton_are_there_and_no_gpu_was_used() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    kernels, keys, used = done.stdout.split()
    assert int(kernels) > 50 and keys == "1" and used == "False"
