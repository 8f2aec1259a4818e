import pytest

from icl_bench.errors import SpecError


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("operations=41", "operations must be even; got 41; try 42"),
        ("operations=8,queries=5", "queries must be at most operations / 2; got queries = 5 with operations / 2 = 4"),
        ("stacks=0", "stacks must be at least 1; got 0"),
        ("values=1", "values"),
    ],
)
def test_bad_parameters_are_refused(make, spec, message):
    with pytest.raises(SpecError) as error:
        make(f"multi-stack:{spec}")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("shown", ["false", "true"])
@pytest.mark.parametrize("stacks", [1, 3])
def test_rule_by_reading(draw, stacks, shown):
    """Doing the operations one by one gives every answer; stacks fill in the first half and end empty."""
    task, _, batch = draw(f"multi-stack:operations=40,stacks={stacks},queries=20,shown={shown}", 50)
    for tokens, positions, targets, groups in zip(*(tensor.tolist() for tensor in batch), strict=True):
        words = [task.spell(token) for token in tokens]
        held: dict[str, list[str]] = {}
        newest: dict[str, int] = {}
        answers, sizes, i = {}, [], 0
        while i < len(words):
            stack = words[i][1:]
            if words[i].startswith("+"):
                held.setdefault(stack, []).append((i, words[i + 1]))
                newest[stack] = i
                i += 2
            else:
                place, value = held[stack].pop()
                answers[i] = value, "shallow" if place == newest[stack] else "deep"
                assert not task.shown or words[i + 1] == value
                i += 1 + task.shown
            sizes.append(sum(map(len, held.values())))
        assert (sizes[19], sizes[39], len(sizes), len(answers)) == (8, 0, 40, 20)
        scored = {p: (task.spell(t), task.group_label(g)) for p, t, g in zip(positions, targets, groups, strict=True)}
        assert scored == answers


def test_deep_pops_are_scored_first(draw):
    batch = draw("multi-stack:operations=128,stacks=8,queries=16", 500)[2]
    assert (batch.groups == 1).all()


@pytest.mark.parametrize(("stacks", "second_last", "oldest"), [(4, 0.228, 0.196), (8, 0.3, 0.346)])
def test_floors_on_deep_pops_are_those_of_the_simulation(draw, stacks, second_last, oldest):
    """A loop over lists, written apart, gives these numbers; with pushes by independent coins, oldest .18 and .32."""
    task, cell, batch = draw(f"multi-stack:operations=128,stacks={stacks},queries=16", 2000)
    solvers = {name: solve(batch.inputs, batch.positions, cell) for name, solve in task.floors.items()}
    right = {name: float((answers == batch.targets).double().mean()) for name, answers in solvers.items()}
    assert right["second-last"] == pytest.approx(second_last, abs=0.015)
    assert right["oldest"] == pytest.approx(oldest, abs=0.015)
    assert right["last-write"] < 0.02


def test_bits_are_those_of_what_is_held_at_the_middle(make):
    task = make("multi-stack:operations=100,stacks=[1|2],values=4")
    # 20 values of two bits each, and with two stacks 21 ways to share them
    assert [task.state_bits(cell) for cell in task.eval_cells] == [40, pytest.approx(40 + 4.392, abs=1e-3)]
