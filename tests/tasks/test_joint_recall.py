import pytest

from icl_bench.errors import SpecError
from icl_bench.tasks.base import measured_floors
from icl_bench.tasks.vocabulary import PAD, SEP


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "contexts=17",
            "contexts must be at most names; got contexts = 17 with names = 16; lower contexts or raise names",
        ),
        ("pairs=20", "pairs must be at most keys; got pairs = 20 with keys = 16; lower pairs or raise keys to 20"),
        ("contexts=0", "contexts must be at least 1; got 0"),
        ("pairs=[2|2]", "pairs must differ from each other"),
        ("show_answers=maybe", "show_answers"),
    ],
)
def test_bad_parameters_are_refused(make, spec, message):
    with pytest.raises(SpecError) as error:
        make(f"joint-recall:{spec}")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("shown", ["true", "false"])
def test_rule_by_reading(draw, shown):
    task, cell, batch = draw(f"joint-recall:contexts=3,pairs=4,show_answers={shown}", 50)
    for tokens, positions, targets, groups in zip(*(tensor.tolist() for tensor in batch), strict=True):
        words = [task.spell(token) for token in tokens]
        middle = tokens.index(SEP)
        value: dict[tuple[str, str], int] = {}
        context = ""
        order: list[str] = []
        for place, word in enumerate(words):
            if word.startswith("c"):
                context = word
                order.append(word)
            elif word.startswith("k") and place < middle:
                value[context, word] = tokens[place + 1]
            elif word.startswith("k"):
                index = positions.index(place)
                assert targets[index] == value[context, word]
                assert tokens[place + 1] == (targets[index] if shown == "true" else PAD)
                assert groups[index] == len(order) - 4
        assert len(value) == cell.scored == len(targets)
        assert sorted(order[:3]) == sorted(order[3:])


@pytest.mark.parametrize(("count", "floor"), [(5, 0.30), (8, 0.26), (16, 0.19)])
def test_floors_are_those_of_the_simulation(draw, count, floor):
    """The floor is the frequency of the most frequent of `count` values from 16, for a key or a context."""
    for contexts, pairs, name in ((count, 5, "key"), (5, count, "context")):
        task, cell, batch = draw(f"joint-recall:contexts={contexts},pairs={pairs}", 500)
        assert abs(measured_floors(task, cell, batch)[name] - floor) < 0.02


def test_shown_answers_give_the_last_context_away(draw):
    task, cell, batch = draw("joint-recall:contexts=3,pairs=4,show_answers=true", 500)
    right = task.floors["key"](batch.inputs, batch.positions, cell) == batch.targets
    assert right[batch.groups == 2].all()
    assert not right[batch.groups == 0].all()
