import pytest
import torch
from scipy import stats

from icl_bench.errors import SpecError
from icl_bench.tasks.base import measured_floors
from icl_bench.tasks.vocabulary import PAD, QUERY


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("symbols=33", "length must hold 33 symbols, each with a place and a query; got 64; raise length to 66"),
        ("extrapolate=16,symbols=9", "raise length to 18"),
        ("length=[64|64]", "length must differ from each other"),
        ("symbols=0", "symbols must be at least 1"),
        ("alphabet=1", "alphabet"),
        (
            "variant=mad,length=33,symbols=17",
            "length must hold 17 symbols, each with a place and a query, and a mark; got 33; ",
        ),
        ("variant=mad,length=32,symbols=16", "got 32; raise length to 33 or lower symbols"),
        ("variant=zoology", "variant"),
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
    """All 15 ways to put two symbols in six places are equally likely."""
    _, _, batch = draw("selective-copy:length=8,symbols=2", 9000)
    occupied = ((batch.inputs[:, :6] != PAD).long() * 2 ** torch.arange(6)).sum(dim=1)
    counts = occupied.unique(return_counts=True)[1]
    assert counts.numel() == 15
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4


def test_mad_follows_the_published_law(draw):
    """14 kinds are uniform; 223 blanks each stand before one of 16 symbols, so the first place is binomial."""
    task, cell, batch = draw("selective-copy:variant=mad,length=256,symbols=16", 4000)
    assert task.vocabulary == 16 + 14
    assert (batch.inputs[:, 239] == QUERY).all()
    assert (batch.inputs[:, 240:] == PAD).all()
    assert torch.equal(batch.positions[0], torch.arange(240, 256))
    assert (batch.inputs[:, 238] == batch.targets[:, -1]).all()
    assert torch.equal(task.oracle(batch.inputs, batch.positions, cell), batch.targets)
    labels = torch.bincount((batch.targets - 16).flatten(), minlength=14)
    assert stats.chisquare(labels.numpy()).pvalue > 1e-4
    is_symbol = batch.inputs >= 16
    places = is_symbol.nonzero()[:, 1].view(-1, 16)
    for blanks in (places[:, 0], places[:, 8] - places[:, 7] - 1):
        low, high = 7, 22  # tails together
        counts = torch.bincount(blanks.clamp(low, high) - low, minlength=high - low + 1).numpy()
        law = stats.binom(223, 1 / 16).pmf(range(low, high + 1))
        law[0], law[-1] = stats.binom(223, 1 / 16).cdf(low), stats.binom(223, 1 / 16).sf(high - 1)
        assert stats.chisquare(counts, 4000 * law).pvalue > 1e-4


def test_floor_nears_chance_with_many_kinds(draw):
    """One symbol of 16 is right at its place, and elsewhere by chance; the most frequent one a little more often."""
    task, cell, batch = draw("selective-copy:symbols=16,alphabet=4096", 500)
    floors = measured_floors(task, cell, batch)
    assert 1 / 16 <= floors["latest"] < 1 / 16 + 0.002
    assert floors["latest"] <= floors["most-frequent"] < 1 / 16 + 0.005
