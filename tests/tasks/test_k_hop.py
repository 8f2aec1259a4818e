import itertools

import pytest

from icl_bench.errors import SpecError
from icl_bench.tasks.base import measured_floors
from icl_bench.tasks.k_hop import MISSING, MISSING_GROUP


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("symbols=8,hops=8", "hops + 1 must be at most symbols; got hops + 1 = 9 with symbols = 8; lower"),
        ("symbols=8,hops=1,extrapolate=9", "got hops + 1 = 10"),
        ("hops=-1", "hops must be at least 0; got -1"),
        ("hops=[1|1]", "hops must differ from each other; got [1, 1]"),
        ("alphabet=2", "alphabet"),
    ],
)
def test_bad_parameters_are_refused(make, spec, message):
    with pytest.raises(SpecError) as error:
        make(f"k-hop:{spec}")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("hops", [0, 1, 2, 5, 16])
def test_rule_by_reading(draw, hops):
    task, _, batch = draw(f"k-hop:symbols=60,hops={hops}", 20)
    for tokens, positions, targets, groups in zip(*(tensor.tolist() for tensor in batch), strict=True):
        assert task.spell(tokens[0]) == f"hops={hops}"
        assert all(one != other for one, other in itertools.pairwise(tokens))
        assert positions == list(range(1, 61))
        for start, target, group in zip(positions, targets, groups, strict=True):
            place: int | None = start
            for _ in range(hops):
                earlier = [i for i in range(1, place or 0) if tokens[i] == tokens[place or 0]]
                place = earlier[-1] + 1 if earlier else None
                if place is None:
                    break
            assert target == (MISSING if place is None else tokens[place])
            assert (group == MISSING_GROUP) == (place is None)


@pytest.mark.parametrize(("hops", "floor"), [(4, 0.25), (8, 0.25), (12, 0.37), (16, 0.49)])
def test_majority_floors_are_those_of_the_simulation(draw, hops, floor):
    """A simulation gives the better of the most frequent symbol and `~` at 100 symbols.

    For zero hops it gives .28, by the mode of the whole sequence, which no causal solver knows.
    """
    task, cell, batch = draw(f"k-hop:symbols=100,hops={hops}", 1000)
    floors = measured_floors(task, cell, batch)
    assert abs(max(floors["missing"], floors["most-frequent"]) - floor) < 0.02


def test_early_positions_are_those_within_two_thirds_of_a_deviation_of_the_mean_reach(draw):
    """With five symbols a hop goes back 4 positions, with variance 12: two hops 8 + 2/3 sqrt(24) = 11.3."""
    task, cell, batch = draw("k-hop:symbols=20,hops=2,alphabet=5", 4)
    answers = task.floor_current_symbol(batch.inputs, batch.positions, cell)
    assert (answers == MISSING).tolist() == [[position <= 11 for position in range(1, 21)]] * 4


def test_symbols_are_uniform(draw):
    """Every symbol is equally frequent at every position, within five standard errors over 8000 rows."""
    _, _, batch = draw("k-hop:symbols=20,hops=1,alphabet=5", 8000)
    for symbol in range(5):
        shares = (batch.inputs[:, 1:] == 16 + symbol).double().mean(dim=0)
        assert float((shares - 0.2).abs().max()) < 5 * (0.2 * 0.8 / 8000) ** 0.5
