"""What the server of workers holds: all that a worker imports, Triton's digest where there is a GPU, and no GPU."""

import importlib.util
import subprocess
import sys

import pytest

SCRIPT = """
import gc, sys
from pathlib import Path
from icl_bench import isolation
isolation.GPU_DRIVER = Path(sys.argv[1])
import icl_bench.harness.preloaded
import torch
assert "icl_bench.harness.engines.worker" in sys.modules and "typer" in sys.modules
assert gc.isenabled() and not torch.cuda.is_initialized()
digests = 0
if "triton" in sys.modules:
    from triton.runtime.cache import triton_key
    digests = triton_key.cache_info().currsize
print(digests, "icl_bench.kernels.preloaded" in sys.modules)
"""


@pytest.mark.parametrize("driver", ["here", "absent"])
def test_the_server_holds_what_workers_need(driver: str, tmp_path) -> None:
    (tmp_path / "here").touch()
    words = [sys.executable, "-c", SCRIPT, str(tmp_path / driver)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    has_digest = driver == "here" and importlib.util.find_spec("triton") is not None
    assert done.stdout.split() == [str(int(has_digest)), "False"]
