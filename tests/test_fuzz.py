"""Hostile specs, study files and records give one line and exit status 2, or a record that is skipped and named.

The short tests try a few hundred inputs; the slow ones try 10,000, and `benchmarks/fuzz.py` any number.
"""

from pathlib import Path

import pytest

from tests import fuzzing


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch) -> Path:
    """The current folder of all commands, in which nothing may be left."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def assert_survived(found: fuzzing.Found) -> int:
    """Check that nothing was wrong, and return the number of inputs."""
    ends = list(found)
    assert [end for end in ends if end[1]] == []
    return len(ends)


def fuzz_texts(work: Path, count: int) -> None:
    assert_survived(fuzzing.fuzz_specs(count, 1))
    assert list(work.iterdir()) == []
    assert_survived(fuzzing.fuzz_requests(count, 2))
    assert {path.name for path in work.iterdir()} <= {"icl-runs"}


def test_texts_of_commands(work) -> None:
    fuzz_texts(work, 120)


def test_study_files(work, tmp_path) -> None:
    assert_survived(fuzzing.fuzz_studies(tmp_path, 50, 3))
    assert list(work.iterdir()) == []


def test_records_whose_digests_fit(work, tmp_path) -> None:
    assert_survived(fuzzing.fuzz_records(tmp_path, 60, 4))
    assert list(work.iterdir()) == []


def test_records_that_must_be_refused(tmp_path) -> None:
    assert list(fuzzing.accepted_records(tmp_path)) == []


def test_kept_examples_whose_digests_fit(tmp_path) -> None:
    assert_survived(fuzzing.fuzz_samples(tmp_path / "samples", 20, 11))


def test_things_in_wrong_places(tmp_path) -> None:
    assert_survived(fuzzing.fuzz_places(tmp_path, 20, 5))


def test_checkpoints_whose_digests_fit(tmp_path) -> None:
    assert_survived(fuzzing.fuzz_checkpoints(tmp_path, 6, 6))


@pytest.mark.slow
def test_ten_thousand_hostile_inputs(work, tmp_path) -> None:
    fuzz_texts(work, 2500)
    assert_survived(fuzzing.fuzz_studies(tmp_path, 2500, 7))
    assert_survived(fuzzing.fuzz_records(tmp_path, 2000, 8))
    assert_survived(fuzzing.fuzz_samples(tmp_path / "samples", 200, 12))
    assert_survived(fuzzing.fuzz_places(tmp_path / "places", 400, 9))
    assert_survived(fuzzing.fuzz_checkpoints(tmp_path / "checkpoints", 100, 10))
