"""Where a run is made: device, versions, revision."""

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import get_args

import torch

import icl_bench
from icl_bench.errors import SpecError
from icl_bench.kernels.attention import api as attention
from icl_bench.kernels.power import api as power
from icl_bench.runs.record import Manifest

PACKAGES = ("torch", "triton", "numpy", "scipy")
DEVICES = ("auto", "cpu", "cuda")
IMPLS = tuple(dict.fromkeys((*get_args(power.Impl), *get_args(attention.Impl))))


def pick_device(name: str) -> torch.device:
    """The device of that name; `auto` is CUDA where there is one.

    Raises:
        SpecError: where the name is unknown or the device is not there.
    """
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
    """Name of the processor or GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return processor_name()


def processor_name() -> str:
    """Model of the processor, as the kernel or the platform module tells."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of what numbers depend on."""
    found = {"icl-bench": icl_bench.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    found["cuda"] = torch.version.cuda or "none"
    return found


def git_revision() -> str | None:
    """Revision of the checkout that the package lies in, with `+` where it is changed; None outside a checkout."""
    root = Path(icl_bench.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        head = git(root, "rev-parse", "--short=12", "HEAD")
        return head + ("+" if git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def git(root: Path, *arguments: str) -> str:
    """Output of a git command."""
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def make_manifest(device: torch.device, impl: str, fleet_size: int) -> Manifest:
    """The manifest of a run that starts now."""
    return Manifest(
        versions=versions(),
        device=device_name(device),
        threads=torch.get_num_threads(),
        host=f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        revision=git_revision(),
        impl=impl,
        fleet_size=fleet_size,
        command=shlex.join(["icl-bench", *sys.argv[1:]]),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
    )
