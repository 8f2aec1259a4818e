"""The studies of 2026-11-24, computed anew from their tables of runs: what their corrections quote."""

from pathlib import Path

import pytest

from tests.benchmarks.scripts import load_script

ROOT = Path(__file__).parents[2]


old = load_script("old_studies")


def entries(name: str) -> list:
    return old.measured(ROOT / "docs" / "studies" / f"{name}_files" / "runs.csv")


@pytest.mark.parametrize("name, least", [("power-vs-window", 0.143), ("degree-matched-state", 0.095)])
def test_five_seeds_separate_nothing_over_the_pairs_of_these_studies(name: str, least: float) -> None:
    found = old.pairs(entries(name))
    assert min(p for _, p, _ in found) == pytest.approx(2 / 252)  # complete separation of five against five
    assert min(whole for _, _, whole in found) == pytest.approx(least, abs=5e-4)


def test_the_floors_of_the_records_give_the_printed_capacity() -> None:
    halves = {one.arch.split(",")[0]: old.half(one, one.floors) for one in entries("degree-fixed-width")}
    assert halves == {"power:p=1": "12.1", "power:p=2": "82.1", "power:p=3": "93.1", "power:p=4": "> 128"}
