"""The rates between which half of the seeds train."""

from icl_bench.reports.parts.half_rates import half_table
from icl_bench.reports.text import NONE
from tests.reports.factory import make_record, section_of

RATES = (1e-3, 1e-2, 1e-1)
PARAMS = {"p": 2, "normalizer": "rms", "conv": 4}


def table(best: dict[tuple[float, int], tuple[float, ...]]):
    """Return the rows of runs that train at the given rates, by gain and seed."""
    records = [
        make_record(
            "power:p=2", seed, rate, floors=[0.1] * 3, status="ok", arch_params=PARAMS,
            model={"d_model": 64, "gain": gain}, validation=0.9 if rate in rates else 0.1,
        )
        for (gain, seed), rates in best.items()
        for rate in RATES
    ]  # fmt: skip
    made = half_table(section_of(records))
    return [dict(zip(made.header, row, strict=True)) for row in made.rows]


def test_an_edge_is_the_median_of_those_of_the_seeds_midway_between_rates() -> None:
    rows = {(gain, seed): RATES[1:2] for gain in (0.5, 2.0) for seed in range(3)}
    first, second = table(rows | {(2.0, 0): (), (2.0, 1): (), (0.5, 2): RATES})
    assert (first["gain"], first["seeds"], first["train at some rate"]) == ("0.5", "3", "3")
    assert first["least rate"] == "0.0032 [≤ 0.001, 0.0032]" and first["largest rate"] == "0.032 [0.032, ≥ 0.1]"
    assert second["train at some rate"] == "1" and second["least rate"] == f"{NONE} [0.0032, {NONE}]"
    assert second["largest rate"] == f"{NONE} [{NONE}, 0.032]" and second["level of the intervals"] == "75 %"


def test_runs_of_one_gain_have_no_table() -> None:
    assert table({(1.0, seed): RATES for seed in range(2)}) == []
