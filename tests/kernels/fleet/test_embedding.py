"""Embeddings against their definition in float64."""

import pytest
import torch

from icl_bench.errors import ArgumentError
from icl_bench.kernels.fleet.embedding import embed, embed_beside, find_occurrences
from tests.kernels.numerics import DEVICE, assert_forms_match_reference, draw

TYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)


@TYPES
@pytest.mark.parametrize(("words", "width"), [(5, 3), (16, 16), (70, 130), (2100, 3)])
@pytest.mark.parametrize("known", [False, True])
def test_embedding(words, width, known, dtype):
    ids = torch.randint(words, (2, 5, 17), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    ids[0, 1:4] = words - 1  # one token far more often than the tile holds
    occurrences = find_occurrences(ids, words) if known else None
    run = lambda weight, impl: embed(ids, weight, occurrences, impl=impl)  # noqa: E731
    assert_forms_match_reference(run, [draw(2, words, width, dtype=dtype)], walk=ids[0].numel() ** 0.5)


@TYPES
@pytest.mark.parametrize(("words", "width"), [(5, 3), (70, 130), (2100, 3)])
def test_a_table_with_another_use(words, width, dtype):
    """Both gradients are added before they are rounded, in one part or several."""
    ids = torch.randint(words, (2, 5, 17), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    run = lambda weight, impl: torch.cat([x.flatten(1) for x in embed_beside(ids, weight, impl=impl)], 1)  # noqa: E731
    assert_forms_match_reference(run, [draw(2, words, width, dtype=dtype)], walk=ids[0].numel() ** 0.5)


@pytest.mark.parametrize("impl", ["torch", "triton"])
def test_a_table_whose_rows_are_not_used_has_the_gradient_of_its_other_use(impl):
    ids, weight = torch.zeros(2, 3, dtype=torch.int64, device=DEVICE), draw(2, 5, 4).requires_grad_()
    rows, table = embed_beside(ids, weight, impl=impl)
    pull = draw(2, 5, 4)
    (gradient,) = torch.autograd.grad(table, weight, pull)
    assert rows.shape == (2, 3, 4) and torch.equal(gradient, pull)


def test_shapes_are_checked():
    with pytest.raises(ArgumentError, match=r"ids must be \[M, ...\]"):
        embed(torch.zeros(3, 4, dtype=torch.int64), draw(2, 5, 3))


def test_each_token_is_listed_in_the_order_of_its_place():
    ids = torch.tensor([[[2, 0], [2, 5]], [[1, 1], [0, 1]]])
    occurrences = find_occurrences(ids, 6)
    assert occurrences.order.tolist() == [[1, 0, 2, 3], [2, 0, 1, 3]]
    assert occurrences.starts.tolist() == [[0, 1, 1, 3, 3, 3, *[4] * 11], [0, 1, *[4] * 15]]
    spread = find_occurrences(torch.tensor([[0, 1, 2, 3, 36]]), 37)  # three tiles of 16: 0, 3 and 36, 1, 2
    assert spread.order.tolist() == [[0, 3, 4, 1, 2]]
    assert spread.starts[0, [0, 1, 2, 12, 13, 16, 17, 32, 33, 48]].tolist() == [0, 1, 2, 2, 3, 3, 4, 4, 5, 5]
