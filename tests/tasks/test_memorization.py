import pytest
import torch
from scipy import stats

from icl_bench.errors import SpecError
from icl_bench.tasks.base import measured_floors
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


def test_an_entity_has_one_value_of_each_attribute(draw):
    """Read by its name of two tokens, an entity has the same values in every example and cell, drawn uniformly."""
    known: dict[tuple[str, str, str], str] = {}
    width = 5
    for label in ("keys=60", "keys=200"):
        task, cell, batch = draw("memorization:exposures=7,keys=[60|200],length=33,attributes=3,values=8", 400, label)
        assert (cell.length, cell.scored) == (30, 18)
        names = set()
        for tokens, positions, targets, groups in zip(*(part.tolist() for part in batch), strict=True):
            words = [task.spell(token) for token in tokens]
            answers = dict(zip(positions, (task.spell(target) for target in targets), strict=True))
            kinds = dict(zip(positions, map(task.group_label, groups), strict=True))
            for start in range(0, len(words), width):
                first, second, *asked = words[start : start + width]
                assert sorted(asked) == ["a0", "a1", "a2"]
                earlier = [words[i : i + 2] for i in range(0, start, width)]
                names.add((first, second))
                for position, attribute in enumerate(asked, start + 2):
                    assert known.setdefault((first, second, attribute), answers[position]) == answers[position]
                    assert kinds[position] == ("key seen before" if [first, second] in earlier else "new key")
        assert len(names) == cell.load
    counts = torch.tensor([int(value[1:]) for value in known.values()]).bincount(minlength=8).numpy()
    assert stats.chisquare(counts).pvalue > SIGNIFICANCE


def test_exposures_decide_the_number_of_examples(make):
    """Each cell has training steps in proportion to its entities, so that all entities are shown equally often."""
    task = make("memorization:exposures=12,keys=[100|300],length=36")
    assert task.training_examples == 12 * 400 / 6
    assert [cell.weight for cell in task.train_cells] == [100, 300]
    assert make("memorization").training_examples is None
    with pytest.raises(SpecError, match="length must hold an entity with its attributes; got 9"):
        make("memorization:exposures=1,length=9,attributes=8")


def test_the_floor_is_the_usual_value(draw):
    task, cell, batch = draw("memorization:exposures=1,keys=500,values=2,attributes=2", 1000)
    share = measured_floors(task, cell, batch)["constant"]
    assert 0.5 < share < 0.5 + 5 * (0.25 / 500) ** 0.5
