"""Sizes of power attention by hand, and its indifference to the length of queries."""

import pytest
import torch

from icl_bench.harness.resolve import arch_components, make_arch
from icl_bench.kernels.power.api import power_attention


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


@pytest.mark.parametrize(("p", "normalize"), [(2, "sum"), (4, "sum"), (2, "none"), (3, "none"), (5, "none")])
def test_queries_of_length_1_change_nothing_under_a_sum_or_a_norm(p: int, normalize: str) -> None:
    """Scores are so large that the constants of both, 1e-6, are below rounding."""
    torch.manual_seed(p)
    q, k, v = (1e3 * torch.randn(2, 9, 2, 4, dtype=torch.float64) for _ in range(3))
    outputs = [
        power_attention(one, k, v, p=p, normalize=normalize) for one in (q, 1e3 * q / q.norm(dim=-1, keepdim=True))
    ]
    if normalize == "none":
        outputs = [y / y.square().mean(-1, keepdim=True).sqrt() for y in outputs]
    torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-9)
