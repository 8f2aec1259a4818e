import pytest
import torch
from scipy import stats

from icl_bench.errors import SpecError
from icl_bench.tasks.base import PAD, QUERY, measured_floors


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("symbols=33", "symbols must be at most length / 2 = 32, a place and a query each; got 33; raise length to 66"),
        ("extrapolate=16,symbols=9", "raise length to 18"),
        ("length=[64|64]", "length must differ from each other"),
        ("symbols=0", "symbols must be at least 1"),
        ("alphabet=1", "alphabet"),
    ],
)
def test_bad_parameters_are_refused(make, spec, message):
    with pytest.raises(SpecError) as error:
        make(f"selective-copy:{spec}")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_rule_by_reading(draw):
    _, cell, batch = draw("selective-copy", 50, "length=64,symbols=8")
    for tokens, positions, targets in zip(*(tensor.tolist() for tensor in batch[:3]), strict=True):
        assert [token for token in tokens[:56] if token != PAD] == targets
        assert tokens[56:] == [QUERY] * 8
        assert positions == list(range(56, cell.length))


def test_places_are_uniform(draw):
    """Each of the 15 ways to put two symbols in six places."""
    _, _, batch = draw("selective-copy:length=8,symbols=2", 9000)
    occupied = ((batch.inputs[:, :6] != PAD).long() * 2 ** torch.arange(6)).sum(dim=1)
    counts = occupied.unique(return_counts=True)[1]
    assert counts.numel() == 15
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4


def test_floor_nears_chance_with_many_kinds(draw):
    """Naming one symbol of 16 is right there, and elsewhere by chance; the most frequent one a little more often."""
    task, cell, batch = draw("selective-copy:symbols=16,alphabet=4096", 500)
    floors = measured_floors(task, cell, batch)
    assert 1 / 16 <= floors["latest"] < 1 / 16 + 0.002
    assert floors["latest"] <= floors["most-frequent"] < 1 / 16 + 0.005
