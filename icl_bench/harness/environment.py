"""The environment of a run: device, kernel implementation, package versions and revision of the code."""

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import icl_bench
from icl_bench.errors import SpecError
from icl_bench.kernels.measurement.operators import OPERATORS
from icl_bench.runs.record import Manifest, command_line

NUMERIC_PACKAGES = ("torch", "triton", "numpy", "scipy")
"""Packages that can change numbers."""
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


def usable_cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def visible_gpus() -> list[str]:
    """Return the GPUs that this process sees, as CUDA_VISIBLE_DEVICES names them."""
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return [name for name in visible.split(",") if name]
    return [str(i) for i in range(torch.cuda.device_count())]


@contextmanager
def environment_variable(name: str, value: str) -> Iterator[None]:
    """Set an environment variable inside the block."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def versions() -> dict[str, str]:
    """Return the versions of everything that can change numbers, by name; `none` for a missing package."""
    found = {"icl-bench": icl_bench.__version__, "python": platform.python_version()}
    for package in NUMERIC_PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    found["cuda"] = torch.version.cuda or "none"
    return found


def git_revision() -> str | None:
    """Return the git revision of the package, with `+` if the checkout has changes; None outside a checkout."""
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
        started=datetime.now(UTC).isoformat(timespec="seconds"),
    )
