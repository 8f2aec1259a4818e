import math

import pytest
import torch

from icl_bench.errors import SpecError
from icl_bench.tasks.base import measured_floors


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("symbols=6", "symbols must hold an n-gram and its answer, 3 + 4; got 6; raise symbols to 7"),
        (
            "alphabet=2",
            "alphabet^ngram must reach the number of symbols, so that some n-gram occurs once; got 2^3 for 48",
        ),
        ("symbols=[16|16]", "symbols must differ from each other"),
        ("side=middle", "side"),
        ("ngram=0", "ngram"),
    ],
)
def test_bad_parameters_are_refused(make, spec, message):
    with pytest.raises(SpecError) as error:
        make(f"ngram-lookup:{spec}")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("side", ["suffix", "prefix"])
def test_rule_by_reading(draw, side):
    task, cell, batch = draw(f"ngram-lookup:symbols=20,ngram=2,answer=3,alphabet=8,side={side}", 200)
    for tokens, positions, targets in zip(*(tensor.tolist() for tensor in batch[:3]), strict=True):
        words = "".join(task.spell(token) for token in tokens)
        parts = words.removeprefix("^").split("|")
        answer = "".join(task.spell(target) for target in targets)
        string, ngram = (parts[0], parts[1][:2]) if side == "suffix" else (parts[1], parts[0])
        assert words.endswith(answer[:-1])
        assert positions == [cell.length - 3, cell.length - 2, cell.length - 1]
        assert len(string) == 20
        places = [i for i in range(19) if string[i : i + 2] == ngram]
        assert len(places) == 1
        assert string[places[0] + 2 : places[0] + 5] == answer


def test_both_sides_have_the_same_examples(draw):
    one, other = (draw(f"ngram-lookup:symbols=16,side={side}", 20)[2] for side in ("suffix", "prefix"))
    assert torch.equal(one.targets, other.targets)


def test_where_every_ngram_repeats_the_latest_counts(draw):
    """One letter of two in eight symbols: hardly ever alone."""
    task, cell, batch = draw("ngram-lookup:symbols=8,alphabet=8,ngram=1,answer=1", 2000)
    assert torch.equal(task.oracle(batch.inputs, batch.positions, cell), batch.targets)


def test_floors_are_near_chance_and_state_differs_by_side(draw):
    for side, kept in (("suffix", 48), ("prefix", 7)):
        task, cell, batch = draw(f"ngram-lookup:symbols=48,side={side}", 2000)
        assert task.state_bits(cell) == kept * math.log2(26)
        assert 1 / 26 < max(measured_floors(task, cell, batch).values()) < 4 / 26
