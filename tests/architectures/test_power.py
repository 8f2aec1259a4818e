"""Sizes of power attention by hand."""

import pytest

from icl_bench.harness.resolve import arch_components, make_arch


@pytest.mark.parametrize(
    ("p", "normalizer", "entries"), [(1, "rms", 3 * 5), (2, "rms", 6 * 5), (2, "sum", 6 * 6), (3, "rms", 10 * 5)]
)
def test_state_and_operations_by_hand(p: int, normalizer: str, entries: int) -> None:
    """Of three key channels there are 3, 6 and 10 products of one, two and three; a sum of scores is a sixth column.

    Two key heads write a state each, and four query heads read one: an entry is a multiply-add, two operations.
    """
    text = f"power:p={p},heads=4,kv_heads=2,d_key=3,d_value=5,normalizer={normalizer},conv=0"
    (component,) = arch_components(text, 16)
    layer = make_arch(component)
    assert layer.core_size(64).sums == 2 * entries
    assert layer.core_flops(16, 64) == (0.0, 2 * (2 + 4) * entries)
