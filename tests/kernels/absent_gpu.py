"""Scripts that list and compile kernels for a Hopper GPU that is not there, in a process without the interpreter."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

START = """
import json
import torch, triton
from triton.backends.compiler import GPUTarget
from icl_bench.kernels import ahead

class Driver:
    def get_current_target(self): return GPUTarget("cuda", 90, 32)
    def get_current_device(self): return 0
    def get_current_stream(self, device=0): return 0

triton.runtime.driver.set_active(Driver())

def compile_source(source):
    try:
        ahead.compile_source(source)
    except AssertionError as error:  # of the launcher, where there is no driver of a GPU
        assert "libcuda" in str(error)
"""


def run_for_hopper(script: str, cache: Path, *words: str) -> Any:
    """Run a script after START with a cache of kernels of its own and these words as arguments.

    Return what its last line prints, as JSON.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(cache), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", START + script, *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])
