import pytest

from icl_bench.errors import SpecError
from icl_bench.tasks.base import measured_floors


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("objects=0", "objects must be at least 1; got 0"),
        ("objects=[4|4]", "objects must differ from each other"),
        ("agents=1", "agents"),
        ("updates=0", "updates"),
    ],
)
def test_bad_parameters_are_refused(make, spec, message):
    with pytest.raises(SpecError) as error:
        make(f"bound-recall:{spec}")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("spec", "agents"), [("objects=4", 8), ("objects=16,updates=2", 16), ("agents=3,updates=1", 3)]
)
def test_rule_by_reading(draw, spec, agents):
    """Reading facts and events in order gives every answer."""
    task, cell, batch = draw(f"bound-recall:{spec}" if spec else "bound-recall", 50)
    for tokens, positions, targets, groups in zip(*(tensor.tolist() for tensor in batch), strict=True):
        words = [task.spell(token) for token in tokens]
        middle = words.index("|")
        pairs = list(zip(words[:middle:2], words[1:middle:2], strict=True))
        facts, events = dict(pairs[:agents]), pairs[agents:]
        assert len(facts) == agents and all(name.startswith("a") for name in facts)
        assert len(events) == cell.load * (1 + task.updates)
        assert len({name for name, _ in events[: cell.load]}) == cell.load
        holder, age = {}, {}
        for number, (name, agent) in enumerate(events):
            holder[name], age[name] = agent, len(events) - number
        asked = [words[position] for position in positions]
        assert sorted(asked) == sorted(holder) and words[middle + 1 :] == asked
        assert [facts[holder[name]] for name in asked] == [task.spell(target) for target in targets]
        assert [age[name].bit_length() - 1 for name in asked] == groups


@pytest.mark.parametrize(
    ("objects", "floors"), [(4, (0.34, 0.35, 0.30)), (8, (0.35, 0.25, 0.31)), (16, (0.30, 0.14, 0.21))]
)
def test_floors_are_those_of_the_simulation(draw, objects, floors):
    task, cell, batch = draw(f"bound-recall:objects={objects}", 2000)
    measured = measured_floors(task, cell, batch)
    for name, expected in zip(("any-holder", "latest-event", "usual-holder"), floors, strict=True):
        assert measured[name] == pytest.approx(expected, abs=0.02)


def test_bits_are_those_of_facts_and_holders(make):
    task = make("bound-recall:objects=[4|16]")
    assert [task.state_bits(cell) for cell in task.eval_cells] == [8 * 6 + 4 * 3, 16 * 6 + 16 * 4]
