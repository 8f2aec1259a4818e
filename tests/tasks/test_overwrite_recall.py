import pytest

from icl_bench.errors import SpecError
from icl_bench.tasks.base import measured_floors
from icl_bench.tasks.vocabulary import SEP


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("updates=24", "length must hold 8 pairs, 24 updates and the queries; got 64; raise length to 73 or lower"),
        ("keys=4", "pairs must be at most keys; got pairs = 8 with keys = 4; lower pairs or raise keys to 8"),
        ("updates=0", "updates must be at least 1; got 0"),
        ("values=1", "values"),
        ("pairs=[4|4]", "pairs must differ from each other"),
    ],
)
def test_bad_parameters_are_refused(make, spec, message):
    with pytest.raises(SpecError) as error:
        make(f"overwrite-recall:{spec}")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_rule_by_reading(draw):
    task, cell, batch = draw("overwrite-recall:length=64,pairs=6,updates=12,values=3", 100)
    for tokens, positions, targets, groups in zip(*(tensor.tolist() for tensor in batch), strict=True):
        words = [task.spell(token) for token in tokens]
        middle = tokens.index(SEP)
        value: dict[str, str] = {}
        writes: dict[str, int] = {}
        for place in range(middle):
            if words[place].startswith("k"):
                assert value.get(words[place]) != words[place + 1], "an update changes the value"
                assert words[place] in value or len(value) == sum(writes.values()), "first every key is written once"
                value[words[place]] = words[place + 1]
                writes[words[place]] = writes.get(words[place], 0) + 1
        assert len(value) == cell.scored
        assert sum(writes.values()) == 18
        asked = [words[place] for place in positions]
        assert sorted(asked) == sorted(value)
        assert [value[key] for key in asked] == [task.spell(target) for target in targets]
        assert [writes[key] - 1 for key in asked] == groups


@pytest.mark.parametrize(("updates", "first", "any_of_key"), [(8, 0.59, 0.78), (16, 0.36, 0.63), (48, 0.045, 0.31)])
def test_floors_are_those_of_the_simulation(draw, updates, first, any_of_key):
    """At 16 pairs, the first value is still right with probability (1 - 1/16)^updates."""
    spec = f"overwrite-recall:length=160,pairs=16,updates={updates},keys=1024,values=4096"
    floors = measured_floors(*draw(spec, 2000))
    assert abs(floors["first-value"] - first) < 0.02
    assert abs(floors["any-of-key"] - any_of_key) < 0.02
