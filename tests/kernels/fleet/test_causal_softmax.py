"""Weights of attention from scores, and the choice of blocks, against their definitions."""

import pytest
import torch

from icl_bench.kernels.fleet.causal_softmax import best_blocks, causal_softmax
from icl_bench.kernels.fleet.records import BlockChoice, SeenKeys
from tests.kernels.numerics import DEVICE, assert_forms_match_reference, draw


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("shape", "keys"),
    [
        ((2, 3, 9, 9), SeenKeys()),
        ((1, 2, 9, 3), SeenKeys(span=3)),
        ((2, 1, 1, 7), SeenKeys(first=6)),
        ((1, 300, 300), SeenKeys()),
    ],
    ids=str,
)
def test_softmax(shape, keys, dtype):
    assert_forms_match_reference(
        lambda scores, impl: causal_softmax(scores, keys, 0.5, impl=impl), [3 * draw(*shape, dtype=dtype)]
    )


@pytest.mark.parametrize("impl", ["torch", "triton"])
def test_rows_that_see_no_key_are_zero(impl):
    weights = causal_softmax(draw(1, 5, 2), SeenKeys(span=2), 1.0, impl=impl)
    assert not weights[0, 0].any()
    torch.testing.assert_close(weights[0, 1:].sum(-1), torch.ones(4, device=DEVICE))


@pytest.mark.parametrize("choice", [BlockChoice(0, 2, 3), BlockChoice(0, 3, 5), BlockChoice(16, 2, 4)], ids=str)
def test_forms_choose_the_same_blocks(choice):
    queries = 1 if choice.first else 19
    tokens = choice.first + queries
    scores = draw(2, 3, queries, tokens // choice.block)
    scores[1] = scores[1].round()  # some are equal
    plain, fused = (best_blocks(scores, choice, -(-tokens // choice.block), impl=impl) for impl in ("torch", "triton"))
    assert torch.equal(plain, fused)
    assert (plain.sum(-1) <= choice.selected).all()
