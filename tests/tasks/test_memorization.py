import pytest
import torch
from scipy import stats

from icl_bench.errors import SpecError
from icl_bench.tasks.vocabulary import QUERY

SIGNIFICANCE = 1e-4
"""Significance of a test on a fixed sample, which either always passes or always fails."""


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("length=31", "length must be even; got 31; try 32"),
        ("keys=1", "keys must be at least 2; got 1; raise keys"),
        ("keys=[8|8]", "keys must differ from each other"),
        ("dictionary=-1", "dictionary"),
    ],
)
def test_bad_parameters_are_refused(make, spec, message):
    with pytest.raises(SpecError) as error:
        make(f"memorization:{spec}")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_dictionary_is_one_and_one_to_one(draw):
    """The dictionary is the same for every example, split and cell; another seed gives another one."""
    known: dict[int, int] = {}
    for label in ("keys=32", "keys=127"):
        _, _, batch = draw("memorization", 200, label)
        asked = batch.inputs.gather(1, batch.positions - 1)
        for key, value in zip(asked.flatten().tolist(), batch.targets.flatten().tolist(), strict=True):
            assert known.setdefault(key, value) == value
    assert len(known) == len(set(known.values())) == 127
    task, cell, batch = draw("memorization:dictionary=1", 50, "keys=32")
    assert not torch.equal(task.oracle(batch.inputs, batch.positions, cell), draw("memorization", 50, "keys=32")[2][2])


def test_keys_and_labels_follow_the_published_law(draw):
    """As in MAD, even positions have keys, uniform with repetition, and odd ones marks; so values are uniform too."""
    task, _, batch = draw("memorization:keys=127", 4000)
    assert (batch.inputs[:, 1::2] == QUERY).all()
    for tokens, first in ((batch.inputs[:, 0::2], 16), (batch.targets, task.words.first("values"))):
        counts = torch.bincount((tokens - first).flatten(), minlength=127).numpy()
        assert stats.chisquare(counts).pvalue > SIGNIFICANCE
    again = (batch.inputs[:, 0:-2:2] == batch.inputs[:, 2::2]).double().mean()
    assert abs(float(again) - 1 / 127) < 5 * (1 / 127 / (15 * 4000)) ** 0.5
