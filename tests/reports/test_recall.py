"""Recalled bits and predicted capacity."""

import math

import pytest

from icl_bench.reports.recall import padded_keys, recalls
from tests.reports.factory import make_record, section_of, with_cells


def test_recalled_bits_and_prediction_come_from_the_cells() -> None:
    section = section_of([make_record(accuracies=(1.0, 1.0, 1.0)), make_record("softmax", accuracies=(1.0, 1.0, 1.0))])
    power, softmax = recalls(section)
    assert power.bits == pytest.approx(16 * 7.906891)  # log2 240
    assert power.predicted == pytest.approx((64 / (2 * 5.480639) - 1) * 96, rel=1e-5)
    assert softmax.predicted is None


def test_errors_are_laid_on_the_answers_where_more_is_scored_than_there_are() -> None:
    run = with_cells(make_record(accuracies=(0.9, 0.9, 0.9)), answers=4, scored=8, alphabet=16)
    bound = 4 * (4 - (-0.2 * math.log2(0.2) - 0.8 * math.log2(0.8)) - 0.2 * math.log2(15))
    (found,) = recalls(section_of([run]))
    assert found.bits == pytest.approx(bound)  # one in ten of eight positions: two in ten of four answers
    assert found.predicted is None  # the load does not count answers
    sampled = with_cells(make_record(accuracies=(1.0, 1.0, 1.0)), answers=100, scored=1, alphabet=16)
    (found,) = recalls(section_of([sampled]))
    assert found.bits == pytest.approx(400)
    assert found.bound == pytest.approx(8 * 40_000 / 4)
    (found,) = recalls(section_of([with_cells(make_record(), answers=None)]))
    assert (found.bits, found.bound) == (None, None)


@pytest.mark.parametrize(
    ("arch", "d_model", "size", "pairs", "padded"),
    [
        ("linear:d_key=99,d_value=8", 64, 256, 121, "rank 64 of d_key = 99"),
        ("power:p=2,d_key=15,d_value=8", 64, 256, 160, None),
        ("power:p=3,d_key=8,d_value=8", 64, 256, 121, None),
        ("power:p=4,d_key=6,d_value=8", 64, 256, 103, None),
        ("linear:d_key=963,d_value=32", 128, 512, 1185, "rank 128 of d_key = 963"),
        ("linear:d_key=963,d_value=32,feature_map=relu", 128, 512, None, None),
    ],
)
def test_keys_wider_than_the_model_predict_no_more_pairs(arch, d_model, size, pairs, padded) -> None:
    run = with_cells(make_record(arch, model={"d_model": d_model}), alphabet=size)
    (found,) = recalls(section_of([run]))
    assert (found.predicted and round(found.predicted)) == pairs
    assert padded_keys(found.entry) == padded
