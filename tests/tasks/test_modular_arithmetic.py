import pytest

from icl_bench.errors import SpecError
from icl_bench.tasks.base import measured_floors
from icl_bench.tasks.modular_arithmetic import mean_depth


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("operators=0", "operators must be at least 1; got 0"),
        ("operators=[2|2]", "operators must differ from each other"),
        ("modulus=1", "modulus"),
    ],
)
def test_bad_parameters_are_refused(make, spec, message):
    with pytest.raises(SpecError) as error:
        make(f"modular-arithmetic:{spec}")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def value_and_depth(words: list[str], modulus: int) -> tuple[int, int]:
    word = words.pop(0)
    if word not in "+-*":
        return int(word), 0
    (one, left), (other, right) = value_and_depth(words, modulus), value_and_depth(words, modulus)
    results = {"+": one + other, "-": one - other, "*": one * other}
    return results[word] % modulus, 1 + max(left, right)


@pytest.mark.parametrize(("operators", "modulus"), [(1, 2), (4, 23), (9, 7)])
def test_rule_by_reading(draw, operators, modulus):
    task, cell, batch = draw(f"modular-arithmetic:operators={operators},modulus={modulus}", 200)
    for tokens, positions, targets, groups in zip(*(tensor.tolist() for tensor in batch), strict=True):
        words = [task.spell(token) for token in tokens]
        assert sum(word in "+-*" for word in words) == operators and positions == [cell.length - 1]
        value, depth = value_and_depth(words, modulus)
        assert not words
        assert ([task.spell(target) for target in targets], groups) == ([str(value)], [depth])


@pytest.mark.parametrize(("operators", "depth"), [(4, 3.3), (8, 5.0), (10, 5.6), (16, 7.0)])
def test_expressions_are_as_deep_as_in_the_published_task(draw, operators, depth):
    task, cell, batch = draw(f"modular-arithmetic:operators={operators},modulus=23", 2000)
    assert mean_depth(operators) == pytest.approx(depth, abs=0.05)
    assert float(batch.groups.double().mean()) == pytest.approx(mean_depth(operators), abs=0.1)
    assert measured_floors(task, cell, batch)["zero"] == pytest.approx(0.07, abs=0.02)
