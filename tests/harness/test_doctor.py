"""Checks of a machine: versions, engines and the store."""

import pytest

from icl_bench.harness import doctor
from icl_bench.harness.doctor import TORCH_RANGE, check_engine, check_package, check_store


@pytest.mark.parametrize(
    ("version", "ok"), [("2.10.1", False), ("2.11", True), ("2.15.9+cu130", True), ("2.16.0", False), ("none", False)]
)
def test_a_version_is_checked_against_the_supported_range(version: str, ok: bool) -> None:
    check = check_package("torch", version, TORCH_RANGE)
    assert check.ok == ok and check.detail == f"{version} (supported: 2.11 up to, not including, 2.16)"


def test_an_engine_names_the_package_or_program_that_is_missing(monkeypatch) -> None:
    assert check_engine("local") == ("engine local", True, "Run fleets in worker processes of this machine.")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert check_engine("slurm")[1:] == (False, "the program sbatch is not on the path of this machine")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert check_engine("ray")[1:] == (False, "ray is not installed; run pip install 'icl-bench[ray]'")


def test_a_store_that_cannot_be_written_is_named(tmp_path) -> None:
    assert check_store(tmp_path / "store").ok
    (tmp_path / "file").touch()
    assert not check_store(tmp_path / "file").ok
