"""The occurrences of tokens in a batch."""

import torch

from icl_bench.kernels.fleet.occurrences import find_occurrences


def test_each_token_is_listed_in_order():
    ids = torch.tensor([[[2, 0], [2, 5]], [[1, 1], [0, 1]]])
    occurrences = find_occurrences(ids, 6)
    assert occurrences.order.tolist() == [[1, 0, 2, 3], [2, 0, 1, 3]]
    assert occurrences.starts.tolist() == [[0, 1, 1, 3, 3, 3, 4], [0, 1, 4, 4, 4, 4, 4]]
