"""The mixers over the delta rule reach the states at which they are compared."""

import pytest

from icl_bench.errors import SpecError
from icl_bench.harness.matching import Budget, Shape, match
from tests.architectures.test_contract import architecture

NARROW = {"gla", "rwkv-6"}
"""Mixers whose keys have rank d_model: their 4 heads hold at most 4 x 64 x 32 numbers a layer at width 64."""


@pytest.mark.parametrize(
    "name",
    [
        *("comba", "delta-net", "gated-delta-net", "gated-delta-product", "gdn-2", "gla", "gsa", "hgrn2", "kda"),
        *("rwkv-6", "rwkv-7"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("d_model", [64, 256])
def test_the_states_of_comparisons_are_matched(name: str, d_model: int) -> None:
    for target in (2_000, 8_000) if (name in NARROW and d_model == 64) else (2_000, 8_000, 32_000):
        assert match(name, Budget(target), Shape(d_model, layers=2, length=64)).error <= 0.05


def test_value_heads_that_do_not_share_keys_evenly_are_refused() -> None:
    with pytest.raises(SpecError, match="value_heads must be a multiple of heads = 2; got 3; change either"):
        architecture("kda:heads=2,value_heads=3").resolved(12)
