import itertools

import pytest
import torch

from icl_bench.errors import SpecError
from icl_bench.tasks.state_tracking import ORDER, multiplication


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("group=s4", "group"),
        ("symbols=0", "symbols must be at least 1; got 0"),
        ("symbols=64,extrapolate=64", "symbols and extrapolate must differ from each other; got [64, 64]"),
    ],
)
def test_bad_parameters_are_refused(make, spec, message):
    with pytest.raises(SpecError) as error:
        make(f"state-tracking:{spec}")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("group", ORDER)
def test_tables_are_groups(group):
    """Element 0 is neutral, every row and column is a permutation, and the product is associative."""
    table = torch.tensor(multiplication(group))
    order = ORDER[group]
    assert table.shape == (order, order)
    every = torch.arange(order)
    assert torch.equal(table[0], every)
    assert torch.equal(table[:, 0], every)
    assert torch.equal(table.sort(dim=0).values, every[:, None].expand(order, order))
    assert torch.equal(table.sort(dim=1).values, every.expand(order, order))
    assert torch.equal(table[table], table[every[:, None, None], table])


@pytest.mark.parametrize(
    ("group", "commutes"), [("parity", True), ("z60", True), ("s3", False), ("a5", False), ("s5", False)]
)
def test_which_groups_commute(group, commutes):
    table = torch.tensor(multiplication(group))
    assert torch.equal(table, table.T) == commutes


def test_a5_and_s5_are_not_solvable():
    """Commutators of A5 and of S5 generate all of A5; those of a solvable group generate a smaller group."""
    for group in ("a5", "s5"):
        table = torch.tensor(multiplication(group))
        inverse = (table == 0).int().argmax(dim=1)
        g, h = torch.meshgrid(torch.arange(ORDER[group]), torch.arange(ORDER[group]), indexing="ij")
        assert table[table[inverse[g], inverse[h]], table[g, h]].unique().numel() == 60


@pytest.mark.parametrize("symbols", [1, 2, 3, 31, 32, 33])
def test_rule_by_composing_permutations(draw, symbols):
    _, cell, batch = draw(f"state-tracking:group=s5,symbols={symbols}", 20)
    elements = list(itertools.permutations(range(5)))
    for tokens, positions, targets in zip(*(tensor.tolist() for tensor in batch[:3]), strict=True):
        state = (0, 1, 2, 3, 4)
        assert positions == list(range(cell.length))
        for token, target in zip(tokens, targets, strict=True):
            state = tuple(elements[token - 16][i] for i in state)
            assert elements[target - 16] == state


def test_parity_counts_ones(draw):
    _, _, batch = draw("state-tracking:group=parity,symbols=40", 50)
    assert torch.equal(batch.targets - 16, (batch.inputs - 16).cumsum(dim=1) % 2)
