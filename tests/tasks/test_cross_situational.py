import collections

import pytest

from icl_bench.errors import SpecError
from icl_bench.tasks.base import measured_floors


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("shown=9", "shown must be at most lexicon; got shown = 9 with lexicon = 8"),
        ("scenes=3", "scenes must show every word; got scenes=3 of 2 words for 8; raise scenes to 4"),
        ("lexicon=1", "lexicon"),
    ],
)
def test_bad_parameters_are_refused(make, spec, message):
    with pytest.raises(SpecError) as error:
        make(f"cross-situational:{spec}")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("spec", ["scenes=8", "lexicon=7,shown=3,scenes=5", "lexicon=4,shown=4,scenes=2"])
def test_rule_by_reading(draw, spec):
    """The target stands beside its word in all scenes of the word, and an answer is right if it does too."""
    task, cell, batch = draw(f"cross-situational:{spec}", 50)
    oracle = task.oracle(batch.inputs, batch.positions, cell)
    wrong = oracle.roll(1, dims=1)
    rows = zip(
        *(t.tolist() for t in (*batch, task.hits(oracle, batch, cell), task.hits(wrong, batch, cell))), strict=True
    )
    others = wrong.tolist()
    for row, (tokens, positions, targets, groups, right, other_right) in enumerate(rows):
        words = [task.spell(token) for token in tokens]
        width = 2 * task.shown
        scenes = [words[i : i + width] for i in range(0, words.index("|"), width)]
        beside, count = collections.defaultdict(collections.Counter), collections.Counter()
        for scene in scenes:
            named, things = scene[: task.shown], scene[task.shown :]
            assert len(set(named)) == len(set(things)) == task.shown
            for word in named:
                beside[word].update(things)
                count[word] += 1
        asked = [words[position] for position in positions]
        assert sorted(asked) == sorted(count) and len(asked) == task.lexicon
        for i, word in enumerate(asked):
            assert beside[word][task.spell(targets[i])] == count[word]
            assert right[i] == 1
            assert other_right[i] == (beside[word][task.spell(others[row][i])] == count[word])
            assert groups[i] == count[word].bit_length() - 1
        assert len(set(targets)) == task.lexicon


@pytest.mark.parametrize(
    ("spec", "determined"), [("", 0.96), ("lexicon=16,shown=3,scenes=16", 0.87), ("lexicon=32,shown=4,scenes=32", 0.93)]
)
def test_the_context_determines_as_many_words_as_in_the_simulation(draw, spec, determined):
    task, cell, batch = draw(f"cross-situational:{spec}" if spec else "cross-situational", 1000)
    named = (task.oracle(batch.inputs, batch.positions, cell) == batch.targets).double().mean()
    assert float(named) == pytest.approx(determined, abs=0.025)
    assert measured_floors(task, cell, batch)["latest-scene"] < 0.6
