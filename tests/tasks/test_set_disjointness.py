import math

import pytest
import torch
from scipy import stats

from icl_bench.errors import SpecError
from icl_bench.tasks.vocabulary import SEP


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("alphabet=12", "first + second must be at most alphabet; got first + second = 16 with alphabet = 12; lower"),
        ("first=0", "first must be at least 1; got 0"),
        ("second=[4|4]", "second must differ from each other"),
    ],
)
def test_bad_parameters_are_refused(make, spec, message):
    with pytest.raises(SpecError) as error:
        make(f"set-disjointness:{spec}")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("first", "second"), [(5, 3), (1, 6), (300, 300)])
def test_rule_by_reading(draw, first, second):
    task, cell, batch = draw(f"set-disjointness:first={first},second={second},alphabet=700", 100)
    for tokens, positions, targets in zip(*(tensor.tolist() for tensor in batch[:3]), strict=True):
        middle = tokens.index(SEP)
        one, other = set(tokens[:middle]), set(tokens[middle + 1 : -1])
        assert (len(one), len(other)) == (first, second)
        assert len(one & other) == (task.spell(targets[0]) == "yes")
        assert positions == [cell.length - 1]


def test_answers_are_balanced(draw):
    _, _, batch = draw("set-disjointness:first=4,second=4", 10_000)
    assert stats.binomtest(int(batch.groups.sum()), 10_000).pvalue > 1e-4


def test_both_ways_to_draw_meet_the_law(draw):
    """Up to 24 elements are drawn one by one, more by a shuffle; every element is equally likely at every place."""
    for second in (16, 17):
        _, _, batch = draw(f"set-disjointness:first=8,second={second},alphabet=32", 8000)
        for place in (0, 7):
            counts = torch.bincount(batch.inputs[:, place] - 16, minlength=32).numpy()
            assert stats.chisquare(counts).pvalue > 1e-4


def test_state_is_that_of_the_first_set(make):
    task = make("set-disjointness:first=[2|8],second=4,alphabet=20")
    assert [task.state_bits(cell) for cell in task.eval_cells] == [math.log2(190), math.log2(125970)]


def test_the_order_of_a_set_is_no_content(draw):
    task, cell, batch = draw("set-disjointness:first=3,second=4", 50)
    mirrored = torch.cat([batch.inputs[:, :3].flip(1), batch.inputs[:, 3:4], batch.inputs[:, 4:8].flip(1)], dim=1)
    forms, other = (
        task.canonical(torch.cat([one, batch.inputs[:, -1:]], dim=1), cell) for one in (batch.inputs[:, :-1], mirrored)
    )
    assert torch.equal(forms, other) and len(forms.unique(dim=0)) == 50
