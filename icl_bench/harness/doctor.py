"""What this machine can run."""

import importlib.util
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import torch

from icl_bench.errors import StoreError
from icl_bench.harness.engines.choose import SUMMARIES, missing_package
from icl_bench.harness.engines.local import cores
from icl_bench.harness.environment import processor_name, versions
from icl_bench.runs.store import Store

TORCH_RANGE = ((2, 11), (2, 16))
TRITON_RANGE = ((3, 6), (3, 10))


class Check(NamedTuple):
    """One thing looked at."""

    name: str
    ok: bool
    detail: str


def examine(store: Path) -> list[Check]:
    """Look at packages, processor, GPU, kernels, engines and store."""
    found = versions()
    return [
        Check("icl-bench", True, f"{found['icl-bench']} on Python {found['python']}"),
        within("torch", found["torch"], TORCH_RANGE),
        within("triton", found["triton"], TRITON_RANGE),
        Check("processor", True, f"{processor_name()}, {os.cpu_count()} cores, torch uses {torch.get_num_threads()}"),
        gpu(),
        kernels(),
        *map(engine, SUMMARIES),
        writable(store),
    ]


def within(package: str, version: str, supported: tuple[tuple[int, int], tuple[int, int]]) -> Check:
    """Whether a version is in the supported range."""
    low, high = supported
    bounds = f"supported: {low[0]}.{low[1]} up to, not including, {high[0]}.{high[1]}"
    parts = version.split("+")[0].split(".")
    ok = version != "none" and low <= (int(parts[0]), int(parts[1])) < high
    return Check(package, ok, f"{version} ({bounds})")


def gpu() -> Check:
    """Whether torch sees a CUDA device."""
    if not torch.cuda.is_available():
        return Check("GPU", False, "torch sees no CUDA device; runs go to the CPU")
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    return Check("GPU", True, f"{torch.cuda.get_device_name(0)}, {memory:.0f} GiB, CUDA {torch.version.cuda}")


def kernels() -> Check:
    """Whether the Triton kernels can run."""
    if importlib.util.find_spec("triton") is None:
        return Check("Triton kernels", False, "triton is not installed; the plain torch forms serve")
    if not torch.cuda.is_available():
        return Check("Triton kernels", False, "they need a CUDA device; the plain torch forms serve")
    return Check("Triton kernels", True, "available")


def engine(name: str) -> Check:
    """Whether the packages and programs that an engine needs are there."""
    package = missing_package(name)
    if package:
        return Check(f"engine {name}", False, f"{package} is not installed; pip install 'icl-bench[{name}]'")
    if name == "slurm" and shutil.which("sbatch") is None:
        return Check("engine slurm", False, "sbatch is not on the path; it is on login nodes")
    return Check(f"engine {name}", True, SUMMARIES[name] + (f", {cores()} cores" if name == "local" else ""))


def writable(store: Path) -> Check:
    """Whether the store can be written."""
    try:
        Store(store).check_writable()
    except StoreError as error:
        return Check("store", False, str(error))
    return Check("store", True, str(store.resolve()))
