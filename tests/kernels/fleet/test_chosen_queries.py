"""Attention of chosen queries against its definition in float64, and against attention of all queries."""

import pytest
import torch

from icl_bench.errors import ArgumentError, KernelUnavailableError
from icl_bench.kernels.attention.api import attention
from icl_bench.kernels.fleet.chosen_queries import attend_at
from icl_bench.kernels.fleet.records import ScoreRule
from icl_bench.kernels.fleet.rows import take_rows
from icl_bench.kernels.power.api import power_attention
from tests.kernels.numerics import DEVICE, assert_forms_match_reference, assert_gradients_lie_side_by_side, draw

RULES = {
    "softmax": ScoreRule(0.25),
    "window": ScoreRule(0.25, window=5),
    "linear": ScoreRule(0.25, p=1, normalized=False),
    "square": ScoreRule(0.25, p=2, eps=0.1),
    "cube": ScoreRule(0.25, p=3, normalized=False),
    "fourth": ScoreRule(0.25, p=4, eps=0.1),
    "series": ScoreRule(0.25, p=2, eps=1e-12, series=True),
}


def places(n: int, time: int, chosen: int) -> torch.Tensor:
    """Positions in any order, the last one several times."""
    positions = torch.randint(time, (n, chosen), generator=torch.Generator().manual_seed(0))
    positions[0, : min(chosen, 3)] = time - 1
    return positions.to(DEVICE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize(("time", "chosen", "key", "value"), [(70, 20, 12, 16), (64, 3, 16, 20), (1, 1, 3, 5)])
def test_chosen_queries(time, chosen, key, value, rule, dtype):
    positions = places(2, time, chosen)
    run = lambda q, k, v, impl: attend_at(q, k, v, positions, rule, impl=impl)  # noqa: E731
    inputs = [draw(2, time, 2, width, dtype=dtype, seed=i) for i, width in enumerate((key, key, value))]
    # A gradient adds those of all chosen queries, each p times a difference of numbers of the size of 1.
    assert_forms_match_reference(run, inputs, walk=(rule.p or 1) * chosen**0.5)


@pytest.mark.parametrize("rule", [rule for rule in RULES.values() if not rule.series], ids=str)
def test_they_are_rows_of_attention_of_all_queries(rule):
    q, k, v = (draw(2, 40, 2, 8, dtype=torch.float64, seed=i) for i in range(3))
    positions = places(2, 40, 7)
    if rule.p is None:
        every = attention(q, k, v, window=rule.window, scale=rule.scale, impl="reference")
    else:
        kind = "sum" if rule.normalized else "none"
        every = power_attention(q, k, v, p=rule.p, scale=rule.scale, normalize=kind, eps=rule.eps, impl="reference")
    rows = take_rows(every.flatten(-2)[None], positions[None], impl="torch")[0].unflatten(-1, (2, 8))
    torch.testing.assert_close(attend_at(q, k, v, positions, rule, impl="reference"), rows)


def test_gradients_of_heads_side_by_side_are_so():
    positions = places(2, 70, 9)
    operator = lambda q, k, v: attend_at(q, k, v, positions, RULES["softmax"], impl="triton")  # noqa: E731
    assert_gradients_lie_side_by_side(operator, 70)


def test_arguments_are_checked():
    q = draw(2, 5, 1, 4)
    with pytest.raises(ArgumentError, match=r"positions .*\[N, S\]"):
        attend_at(q, q, q, places(3, 5, 2), RULES["softmax"])
    with pytest.raises(KernelUnavailableError, match="64 positions"):
        attend_at(q, q, q, places(2, 5, 65), RULES["softmax"], impl="triton")
