"""Check which parts of icl-bench can run on this machine."""

import importlib.util
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import torch

from icl_bench.errors import StoreError
from icl_bench.harness.engines.base import ENGINES, install_command, missing_package
from icl_bench.harness.environment import processor_name, versions
from icl_bench.isolation import usable_cores
from icl_bench.runs.store import Store

TORCH_RANGE = ((2, 11), (2, 16))
TRITON_RANGE = ((3, 6), (3, 10))


class MachineCheck(NamedTuple):
    """The outcome of one check."""

    name: str
    ok: bool
    detail: str


def check_machine(store: Path) -> list[MachineCheck]:
    """Check packages, processor, GPU, kernels, engines and store."""
    found = versions()
    cores = f"{os.cpu_count()} cores, {usable_cores()} usable, {torch.get_num_threads()} used by torch"
    return [
        MachineCheck("icl-bench", True, f"{found['icl-bench']} on Python {found['python']}"),
        check_package("torch", found["torch"], TORCH_RANGE),
        check_package("triton", found["triton"], TRITON_RANGE),
        MachineCheck("processor", True, f"{processor_name()}, {cores}"),
        check_gpu(),
        check_triton_kernels(),
        *map(check_engine, ENGINES),
        check_store(store),
    ]


def check_package(package: str, version: str, supported: tuple[tuple[int, int], tuple[int, int]]) -> MachineCheck:
    """Check that the version of a package is in the supported range."""
    low, high = supported
    bounds = f"supported: {low[0]}.{low[1]} up to, not including, {high[0]}.{high[1]}"
    parts = version.split("+")[0].split(".")
    ok = version != "none" and low <= (int(parts[0]), int(parts[1])) < high
    return MachineCheck(package, ok, f"{version} ({bounds})")


def check_gpu() -> MachineCheck:
    """Check that torch sees a CUDA device."""
    if not torch.cuda.is_available():
        return MachineCheck("GPU", False, "torch sees no CUDA device; runs use the CPU")
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    return MachineCheck("GPU", True, f"{torch.cuda.get_device_name(0)}, {memory:.0f} GiB, CUDA {torch.version.cuda}")


def check_triton_kernels() -> MachineCheck:
    """Check that the Triton kernels can run."""
    if importlib.util.find_spec("triton") is None:
        return MachineCheck("Triton kernels", False, "triton is not installed; runs use implementations in torch")
    if not torch.cuda.is_available():
        return MachineCheck("Triton kernels", False, "they need a CUDA device; runs use implementations in torch")
    return MachineCheck("Triton kernels", True, "available")


def check_engine(name: str) -> MachineCheck:
    """Check that the package and the program that an engine needs are there."""
    package, program = missing_package(name), ENGINES[name].program
    if package:
        return MachineCheck(f"engine {name}", False, f"{package} is not installed; run {install_command(name)}")
    if program and shutil.which(program) is None:
        return MachineCheck(f"engine {name}", False, f"the program {program} is not on the path of this machine")
    return MachineCheck(f"engine {name}", True, ENGINES.summary(name))


def check_store(store: Path) -> MachineCheck:
    """Check that the store can be written."""
    try:
        Store(store).check_writable()
    except StoreError as error:
        return MachineCheck("store", False, str(error))
    return MachineCheck("store", True, str(store.resolve()))
