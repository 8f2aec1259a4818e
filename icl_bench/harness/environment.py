"""The environment of a run: device, kernel implementation, package versions and revision of the code."""

import ctypes
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import icl_bench
from icl_bench.errors import SpecError
from icl_bench.kernels.measurement.operators import OPERATORS
from icl_bench.runs.record import Manifest, command_line

NUMERIC_PACKAGES = ("torch", "triton", "numpy", "scipy")
"""Packages that can change numbers."""
THREADS = "OMP_NUM_THREADS"
"""Environment variable by which a user sets the number of threads of torch."""
TRIM_THRESHOLD, MOST_MAPPINGS, MOST_HEAPS = -1, -4, -8
"""Parameters of glibc's mallopt: free bytes at the end of the heap before they are returned to the system, blocks that
have mappings of their own, which are returned when they are freed, and heaps, of which threads may have several."""
DEVICES = ("auto", "cpu", "cuda")
IMPLS = tuple(dict.fromkeys(impl for operator in OPERATORS.values() for impl in operator.impls))


def pick_device(name: str) -> torch.device:
    """Return the device `name`; `auto` is CUDA if torch sees it, else the CPU; raise SpecError if it is missing."""
    if name not in DEVICES:
        raise SpecError(f"--device is one of {', '.join(DEVICES)}; got {name!r}; choose one of them")
    if name == "cuda" and not torch.cuda.is_available():
        raise SpecError("--device cuda needs a CUDA device that torch can see; found none; use --device cpu")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


def check_impl(name: str) -> None:
    """Refuse a kernel implementation that no operator has; raises SpecError."""
    if name not in IMPLS:
        raise SpecError(f"--impl is one of {', '.join(IMPLS)}; got {name!r}; choose one of them")


def device_name(device: torch.device) -> str:
    """Return the name of the GPU, or of the processor for a CPU device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()


def processor_name() -> str:
    """Return the model of the processor."""
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.is_file() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """Compute in one thread on a CPU inside the block, unless OMP_NUM_THREADS is set.

    Threads that wait for each other on busy cores cost nine times the work (docs/log.md).
    """
    before = torch.get_num_threads()
    if device.type == "cpu" and THREADS not in os.environ:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def kept_heap(device: torch.device) -> Iterator[None]:
    """Keep freed memory inside the block for the next tensors, on a CPU with glibc; return it at the end.

    By default malloc returns large tensors to the system as soon as they are freed, and the system clears every page of
    the next ones: a fifth of the processor time of a training step.
    """
    if device.type != "cpu" or platform.libc_ver()[0] != "glibc":
        yield
        return
    library = ctypes.CDLL(None)
    library.mallopt(TRIM_THRESHOLD, -1)
    library.mallopt(MOST_MAPPINGS, 0)
    library.mallopt(MOST_HEAPS, 1)
    try:
        yield
    finally:
        library.mallopt(TRIM_THRESHOLD, 128 << 10)  # the defaults of glibc
        library.mallopt(MOST_MAPPINGS, 1 << 16)
        library.mallopt(MOST_HEAPS, 0)
        library.malloc_trim(0)


def visible_gpus() -> list[str]:
    """Return the GPUs that this process sees, as CUDA_VISIBLE_DEVICES names them."""
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return [name for name in visible.split(",") if name]
    return [str(i) for i in range(torch.cuda.device_count())]


@cache
def versions() -> Mapping[str, str]:
    """Return the versions of everything that can change numbers, by name; `none` for a missing package."""
    found = {"icl-bench": icl_bench.__version__, "python": platform.python_version()}
    for package in NUMERIC_PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    found["cuda"] = torch.version.cuda or "none"
    return found


@cache
def git_revision() -> str | None:
    """Return the git revision of the package, with `+` if the checkout has changes; None outside a checkout.

    It is asked for once, when the process has loaded its code; each later run of the process has the same.
    """
    root = Path(icl_bench.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        head = git(root, "rev-parse", "--short=12", "HEAD")
        return head + ("+" if git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def git(root: Path, *arguments: str) -> str:
    """Run a git command and return its output."""
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def make_manifest(device: torch.device, impl: str, fleet_size: int) -> Manifest:
    """Return the manifest of a run that starts now."""
    return Manifest(
        versions=versions(),
        device=device_name(device),
        threads=torch.get_num_threads(),
        host=f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        revision=git_revision(),
        impl=impl,
        fleet_size=fleet_size,
        command=command_line(),
        started=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )
