import math

import pytest
import torch

from icl_bench.errors import SpecError
from icl_bench.tasks.base import measured_floors


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("symbols=6", "ngram + answer must be at most symbols; got ngram + answer = 7 with symbols = 6; lower"),
        (
            "alphabet=2",
            "symbols must be at most alphabet^ngram; got symbols = 48 with alphabet^ngram = 8; lower",
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
    """With two letters in eight symbols, hardly any n-gram occurs once."""
    task, cell, batch = draw("ngram-lookup:symbols=8,alphabet=8,ngram=1,answer=1", 2000)
    assert torch.equal(task.oracle(batch.inputs, batch.positions, cell), batch.targets)


def test_floors_are_near_chance_and_state_differs_by_side(draw):
    for side, kept in (("suffix", 48), ("prefix", 7)):
        task, cell, batch = draw(f"ngram-lookup:symbols=48,side={side}", 2000)
        assert task.state_bits(cell) == kept * math.log2(26)
        assert 1 / 26 < max(measured_floors(task, cell, batch).values()) < 4 / 26


@pytest.mark.parametrize("side", ["suffix", "prefix"])
@pytest.mark.parametrize(("symbols", "accuracy"), [(16, 0.992), (32, 0.980), (48, 0.970)])
def test_two_letters_suffice_for_most_answers(draw, side, symbols, accuracy):
    """A solver outside this package has these accuracies on 2,000 examples of four positions each."""
    task, cell, batch = draw(f"ngram-lookup:side={side}", 2000, f"symbols={symbols}")
    answers = task.references["induction"](batch.inputs, batch.positions, cell)
    found = (answers == batch.targets).double().mean(dim=1)
    assert abs(float(found.mean()) - accuracy) < 4 * float(found.std()) * (2 / 2000) ** 0.5
