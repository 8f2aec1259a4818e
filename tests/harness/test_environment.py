"""The environment of a run: what a manifest costs and holds."""

import subprocess

import torch

from icl_bench.harness import environment
from icl_bench.harness.environment import git_revision, make_manifest


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
