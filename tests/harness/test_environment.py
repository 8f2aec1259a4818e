"""The environment of a run: what a manifest costs and holds; memory that stays with a process while it computes."""

import platform
import resource
import subprocess
from pathlib import Path

import pytest
import torch

from icl_bench.harness import environment
from icl_bench.harness.environment import git_revision, kept_heap, make_manifest


def test_a_process_asks_git_and_its_packages_once(monkeypatch) -> None:
    first = make_manifest(torch.device("cpu"), "auto", 1)
    monkeypatch.setattr(environment, "version", lambda package: "another")
    monkeypatch.setattr(environment, "git", lambda root, *arguments: "another")
    again = make_manifest(torch.device("cpu"), "auto", 1)
    assert (again.versions, again.revision) == (first.versions, first.revision)


def test_without_git_there_is_no_revision(monkeypatch) -> None:
    def missing(*arguments, **named):
        raise subprocess.CalledProcessError(128, "git")

    monkeypatch.setattr(environment, "git", missing)
    assert git_revision.__wrapped__() is None


def resident_bytes() -> int:
    """Return the memory that this process occupies."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps its own rules")
def test_freed_memory_stays_in_the_block_and_goes_back_at_its_end() -> None:
    with kept_heap(torch.device("cpu")):
        tensors = [torch.ones(1 << 24) for _ in range(4)]  # 64 MiB each
        full = resident_bytes()
        del tensors
        assert resident_bytes() > full - (32 << 20)
    assert resident_bytes() < full - (224 << 20)
