import pytest
import torch
from scipy import stats

from icl_bench.errors import SpecError
from icl_bench.tasks.base import measured_floors
from icl_bench.tasks.vocabulary import SEP


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("pairs=22", "length must hold 22 pairs and 22 queries; got 64; raise length to 67 or lower pairs"),
        (
            "queries=3",
            "queries must be at most pairs; got queries = 3 with pairs = 2; lower queries or raise pairs to 3",
        ),
        ("keys=4", "pairs must be at most keys; got pairs = 8 with keys = 4; lower pairs or raise keys to 8"),
        ("length=[64|64]", "length must differ from each other"),
        ("extrapolate=8", "length must hold 4 pairs and 4 queries; got 8"),
        ("pairs=0", "pairs must be at least 1"),
    ],
)
def test_bad_parameters_are_refused(make, spec, message):
    with pytest.raises(SpecError) as error:
        make(f"haystack-recall:{spec}")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_rule_by_reading(draw):
    task, cell, batch = draw("haystack-recall:pairs=6,queries=4", 50)
    for tokens, positions, targets in zip(*(tensor.tolist() for tensor in batch[:3]), strict=True):
        words = [task.spell(token) for token in tokens]
        middle = tokens.index(SEP)
        value = {words[i]: words[i + 1] for i in range(middle) if words[i].startswith("k")}
        assert len(value) == 6
        assert sum(word.startswith("v") for word in words) == 6
        assert positions == list(range(middle + 1, cell.length))
        assert len(positions) == 4
        assert [value[words[place]] for place in positions] == [task.spell(target) for target in targets]


def test_pairs_stand_at_uniform_places(draw):
    """All 9 ways to put one pair in ten positions are equally likely, and all 15 ways to put two pairs in eight."""
    _, _, batch = draw("haystack-recall:length=12,pairs=1", 9000)
    places = (batch.inputs[:, :10] >= 32).int().argmax(dim=1)
    assert stats.chisquare(torch.bincount(places, minlength=9).numpy()).pvalue > 1e-4
    _, _, batch = draw("haystack-recall:length=11,pairs=2", 9000)
    is_key = (batch.inputs[:, :8] >= 32) & (batch.inputs[:, :8] < 96)
    counts = (is_key.long() * 2 ** torch.arange(8)).sum(dim=1).unique(return_counts=True)[1]
    assert counts.numel() == 15
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4


def test_a_value_of_the_context_is_right_once_in_pairs(draw):
    task, cell, batch = draw("haystack-recall:pairs=8,values=4096", 2000)
    for share in measured_floors(task, cell, batch).values():
        assert abs(share - 1 / 8) < 0.02


def test_extrapolation_is_evaluated_not_trained(make):
    task = make("haystack-recall:pairs=[2|4],extrapolate=128")
    assert {cell.length for cell in task.train_cells} == {64}
    assert [(cell.length, cell.load, cell.weight) for cell in task.eval_cells][2:] == [(128, 2, 0.0), (128, 4, 0.0)]
