"""The map of training over rates and gains: kinds of places, windows, predicted lines, and none without gains."""

import math
from collections.abc import Callable

import pytest
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_rgb

from icl_bench.reports.canvas import figure_settings, svg
from icl_bench.reports.context import NO_STUDY
from icl_bench.reports.explorer.answers import figure_title
from icl_bench.reports.parts.findings import findings
from icl_bench.reports.parts.gains import (
    KINDS,
    Region,
    draw_maps,
    edges,
    gain_table,
    maps_of,
    predicted_gain,
    usable_region,
)
from icl_bench.reports.ranking import rankings
from icl_bench.runs.record import RunRecord
from tests.reports.factory import make_record, section_of

RATES, GAINS = (1e-3, 1e-2, 1e-1), (0.25, 1.0, 4.0)
PARAMS = {"p": 2, "normalizer": "rms", "conv": 4}


def records(validation: Callable[[float, float], float]) -> list[RunRecord]:
    """Two seeds at every rate and gain, diverged where the validation is negative."""
    found = []
    for rate in RATES:
        for gain in GAINS:
            value = validation(rate, gain)
            for seed in range(2):
                status = "diverged" if value < 0 else "ok"
                own = {"model": {"d_model": 64, "gain": gain}, "arch_params": PARAMS, "validation": max(0.0, value)}
                found.append(make_record("power:p=2", seed, rate, floors=[0.1] * 3, status=status, **own))
    return found


def high_gains_fail(rate: float, gain: float) -> float:
    return -1.0 if gain > 1 else 0.12 if rate > 0.05 else 0.9


def test_places_have_the_kind_of_most_seeds() -> None:
    places = maps_of(section_of(records(high_gains_fail)))["power:p=2"]
    assert {at: place.kind for at, place in places.items()} == {
        (rate, gain): "diverged" if gain > 1 else "plateau" if rate > 0.05 else "trained"
        for rate in RATES
        for gain in GAINS
    }


def test_the_table_counts_places_and_measures_the_window() -> None:
    table = gain_table(section_of(records(high_gains_fail)))
    row = dict(zip(table.header, table.rows[0], strict=True))
    assert row["places"] == "9"
    assert [float(row[kind]) for kind in KINDS] == pytest.approx([4 / 9, 0, 2 / 9, 3 / 9], abs=1e-3)
    assert (row["window, decades"], row["at gain"]) == ("≥ 1.00", "0.25")
    assert (row["usable rates"], row["usable gains"]) == ("0.001 to 0.01", "0.25 to 1")


def region(trained: Callable[[float, float], bool]) -> Region | None:
    """The usable region of a map of which these places train."""
    return usable_region(maps_of(section_of(records(lambda *at: 0.9 if trained(*at) else 0.12)))["power:p=2"])


def test_the_usable_region_is_the_largest_rectangle_that_trains() -> None:
    assert region(lambda rate, gain: rate < 0.05 or gain == 4) == Region((1e-3, 1e-2), (0.25, 4.0))
    assert region(lambda rate, gain: gain == 4 or (rate, gain) == (0.1, 1.0)) == Region((1e-3, 1e-1), (4.0, 4.0))
    assert region(lambda rate, gain: rate != 1e-2) == Region((1e-3, 1e-3), (0.25, 4.0))
    assert region(lambda rate, gain: False) is None


def test_the_usable_region_is_framed_at_the_borders_of_its_places() -> None:
    with figure_settings():
        (frame,) = draw_maps(section_of(records(high_gains_fail)), NO_STUDY).axes[0].patches
    borders = edges(RATES)[0], edges(GAINS)[0], edges(RATES)[2], edges(GAINS)[2]
    assert frame.get_bbox().extents == pytest.approx(borders)


def test_a_map_has_a_rectangle_for_each_place_in_the_hue_of_its_kind() -> None:
    section = section_of(records(high_gains_fail))
    with figure_settings():
        figure = draw_maps(section, NO_STUDY)
        axes = figure.axes[0]
        (mesh,) = (one for one in axes.collections if isinstance(one, QuadMesh))
        colours = mesh.get_array().reshape(-1, 3)
        assert len(colours) == 9 and len(axes.lines) == 2
        vermilion = to_rgb(KINDS["diverged"])
        light = [part + (1 - part) * 0.6 for part in vermilion]  # accuracy 0
        assert tuple(colours[-1]) == pytest.approx(light, abs=1e-6)
        assert [text.get_text() for text in figure.legends[0].get_texts()][-3:] == [
            "largest usable region", "predicted limit of the normaliser", "predicted edge of rates",
        ]  # fmt: skip
        assert figure.legends[0].get_patches()[3].get_facecolor()[:3] == pytest.approx(light)
        assert svg(draw_maps(section, NO_STUDY)) == svg(draw_maps(section, NO_STUDY))


def test_the_title_says_where_every_gain_trains() -> None:
    everywhere = section_of(records(lambda rate, gain: 0.9 if rate < 0.05 or gain < 1 else 0.1))
    title = "With power:p=2 most seeds train at every gain over 1.0 decades of learning rates, from 0.001 to 0.01"
    assert figure_title("gains", everywhere) == title
    nowhere = figure_title("gains", section_of(records(high_gains_fail)))
    assert nowhere == "At no learning rate most seeds train at every gain, with any of 1 architecture"


def test_runs_of_one_gain_have_no_map() -> None:
    section = section_of([make_record(lr=rate) for rate in RATES])
    assert gain_table(section).rows == () and draw_maps(section, NO_STUDY) is None


def test_a_report_ranks_architectures_of_unequal_state_at_each_gain() -> None:
    """Entries of equal state differ in the gain alone, so that no group of equal state can be ranked."""
    found = [
        make_record(arch, seed, 1e-2, state=state, model={"d_model": 64, "gain": gain}, arch_params=PARAMS)
        for arch, state in (("power:p=2", 1000), ("power:p=3", 5000))
        for gain in GAINS
        for seed in range(2)
    ]
    section = section_of(found)
    assert len(rankings(section)) == len(GAINS)
    assert all("Question" in text or "Result" in text or "Limits" in text for text in findings(section))


def test_borders_lie_half_a_spacing_from_the_values() -> None:
    assert edges([1.0, 4.0]) == pytest.approx([0.5, 2.0, 8.0])


@pytest.mark.parametrize(
    ("params", "sigma"),
    [
        # at this spread of scores the root mean square of the output, sqrt(T (2p - 1)!!) sigma^p, is .001 or 30
        ({"p": 4, "normalizer": "rms", "conv": 4}, (1e-3 / math.sqrt(128 * 105)) ** 0.25),
        ({"p": 3, "normalizer": "raw", "conv": 0}, (30 / math.sqrt(128 * 15)) ** (1 / 3)),
        ({"p": 6, "normalizer": "sum", "conv": 2}, 0.1),
    ],
)
def test_the_predicted_gain_gives_the_predicted_spread(params: dict, sigma: float) -> None:
    gain = predicted_gain({"arch": [{"params": params}]}, 128)
    variance = {0: 1.0, 2: 0.18, 4: 0.36}[params["conv"]]
    assert gain is not None and gain**2 * variance == pytest.approx(sigma)
    assert predicted_gain({"arch": [{"params": {"w": 4}}]}, 128) is None
