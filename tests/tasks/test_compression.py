import pytest
import torch
from scipy import stats

from icl_bench.errors import SpecError

SIGNIFICANCE = 1e-4
"""Significance of a test on a fixed sample, which either always passes or always fails."""


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("symbols=1", "symbols must be at least 2; got 1; raise symbols"),
        ("symbols=[8|8]", "symbols must differ from each other"),
        ("alphabet=1", "alphabet"),
    ],
)
def test_bad_parameters_are_refused(make, spec, message):
    with pytest.raises(SpecError) as error:
        make(f"compression:{spec}")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_rule_by_reading(draw):
    task, cell, batch = draw("compression", 50, "symbols=16")
    for tokens, positions, targets in zip(*(tensor.tolist() for tensor in batch[:3]), strict=True):
        string, asked = tokens[: cell.load], [int(task.spell(tokens[position])) for position in positions]
        assert sorted(asked) == list(range(cell.load))
        assert [string[place] for place in asked] == targets


def test_symbols_and_places_follow_the_published_law(draw):
    """As in MAD, symbols and so targets are uniform with repetition; unlike there, places are in uniform order."""
    _, _, batch = draw("compression:symbols=31", 4000)
    for tokens in (batch.inputs[:, :31], batch.targets, batch.inputs[:, 0], batch.inputs[:, 30]):
        counts = torch.bincount((tokens - 16).flatten(), minlength=15).numpy()
        assert stats.chisquare(counts).pvalue > SIGNIFICANCE
    first = torch.bincount(batch.inputs[:, 32] - 31, minlength=31).numpy()
    assert stats.chisquare(first).pvalue > SIGNIFICANCE
