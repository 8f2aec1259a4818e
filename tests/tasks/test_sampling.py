import pytest
import torch
from scipy import stats

from icl_bench import random
from icl_bench.tasks.sampling import (
    continue_latest,
    distinct_ranks,
    find_latest,
    first_true,
    latest_same,
    latest_true,
    mode_so_far,
    most_frequent,
    octave,
    octave_label,
)


@pytest.mark.parametrize(("size", "count"), [(4, 4), (20, 6)])
def test_distinct_ranks_are_uniform(size, count):
    """All ordered pairs of two draws are equally likely; sizes may differ by row."""
    keys = random.row_keys(torch.tensor(5), torch.arange(40_000))
    drawn = distinct_ranks(random.uniform(keys, "elements", count), size)
    assert (drawn.sort(dim=1).values.diff(dim=1) > 0).all()
    by_row = distinct_ranks(random.uniform(keys, "elements", count), torch.full((len(keys),), size))
    assert torch.equal(drawn, by_row)
    for first, second in ((0, 1), (1, count - 1), (count - 2, count - 1)):
        pairs = torch.bincount(drawn[:, first] * size + drawn[:, second], minlength=size**2).view(size, size)
        different = pairs[~torch.eye(size, dtype=torch.bool)]
        assert stats.chisquare(different.numpy()).pvalue > 1e-4


def test_octaves_begin_at_powers_of_two():
    distances = torch.tensor([1, 2, 3, 4, 7, 8, 2**30 - 1, 2**30])
    assert octave(distances).tolist() == [0, 1, 1, 2, 2, 3, 29, 30]
    assert [octave_label(group, "gap") for group in range(3)] == ["gap 1", "gap 2-3", "gap 4-7"]


def test_searches_look_back_from_each_position():
    mask = torch.tensor([[False, True, False, True, False]])
    assert first_true(mask, 2).tolist() == [[1, 3]]
    assert latest_true(mask).tolist() == [[-1, 1, 1, 3, 3]]
    tokens = torch.tensor([[5, 6, 5, 5, 6]])
    assert latest_same(tokens).tolist() == [[-1, -1, 0, 2, 1]]
    assert mode_so_far(tokens, 5, 2).tolist() == [[5, 5, 5, 5, 5]]


def test_most_frequent_of_the_allowed():
    choices = torch.tensor([[7, 5, 7, 5, 9]])
    allowed = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 0, 1, 1], [0, 0, 1, 0, 1], [0, 0, 0, 0, 1]]).bool()[None]
    assert most_frequent(choices, allowed).tolist() == [[7, 5, 7, 9]]


def test_latest_place_of_a_code():
    assert find_latest(torch.tensor([[3, 1, 3, 2]]), torch.tensor([[3, 1, 0, 4]])).tolist() == [[2, 1, -1, -1]]


def test_a_context_is_continued_by_its_longest_suffix_that_occurs():
    string = torch.tensor([[4, 1, 2, 3, 1, 2, 5, 2]])
    contexts = torch.tensor([[[1, 2], [3, 1], [9, 2], [9, 3], [9, 9], [5, 2]]])
    # 1 2 last before 5; 3 1 before 2; 2 last before 5; 3 before 1; 9 nowhere; 5 2 ends the string, 2 before that
    assert continue_latest(string, contexts).tolist() == [[5, 2, 5, 1, 4, 5]]
