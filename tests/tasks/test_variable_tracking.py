import pytest

from icl_bench.errors import SpecError
from icl_bench.tasks.base import measured_floors
from icl_bench.tasks.vocabulary import SEP


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("chains=8,hops=1", "length must hold 16 statements of 4 tokens and 16 queries at chains=8,hops=1; got 64"),
        (
            "length=512,chains=16,hops=4",
            "chains * (hops + 1) must be at most variables; got chains * (hops + 1) = 80 with variables = 16",
        ),
        ("chains=0", "chains must be at least 1; got 0"),
        ("hops=0", "hops must be at least 1; got 0"),
        ("hops=[1|1]", "hops must differ from each other"),
        ("ask=first", "ask"),
    ],
)
def test_bad_parameters_are_refused(make, spec, message):
    with pytest.raises(SpecError) as error:
        make(f"variable-tracking:{spec}")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_length_named_in_the_error_works(make):
    assert make("variable-tracking:length=81,chains=8,hops=1").eval_cells[0].length == 81


@pytest.mark.parametrize("ask", ["last", "all"])
def test_rule_by_reading(draw, ask):
    """Executing the statements in order gives every answer, and every name is known before it is used."""
    task, cell, batch = draw(f"variable-tracking:length=96,chains=4,hops=3,ask={ask}", 50)
    for tokens, positions, targets, groups in zip(*(tensor.tolist() for tensor in batch), strict=True):
        words = [task.spell(token) for token in tokens]
        value: dict[str, str] = {}
        depth: dict[str, int] = {}
        for i in range(1, words.index("|")):
            if words[i] == "=":
                name, source = words[i - 1], words[i + 1]
                assert name not in value
                assert words[i + 2] == ";"
                value[name] = source if source.startswith("v") else value[source]
                depth[name] = 0 if source.startswith("v") else depth[source] + 1
        assert len(value) == 16
        asked = [words[position] for position in positions]
        assert tokens[positions[0] - 1] == SEP
        assert [value[name] for name in asked] == [task.spell(target) for target in targets]
        assert [depth[name] for name in asked] == groups
        assert sorted(asked) == sorted(name for name in value if ask == "all" or depth[name] == 3)
        assert len(asked) == cell.scored


@pytest.mark.parametrize(("chains", "hops", "floor"), [(4, 1, 0.43), (4, 2, 0.28), (4, 4, 0.25), (8, 4, 0.126)])
def test_latest_literal_floor_is_that_of_the_simulation(draw, chains, hops, floor):
    """There are so many literals that two chains hardly ever share one."""
    task, cell, batch = draw(
        f"variable-tracking:length=256,chains={chains},hops={hops},variables=64,values=8192,ask=last", 3000
    )
    floors = measured_floors(task, cell, batch)
    assert abs(floors["latest-literal"] - floor) < 0.02
    assert abs(floors["any-literal"] - 1 / chains) < 0.02


def test_at_the_root_the_latest_literal_is_the_answer(draw):
    task, cell, batch = draw("variable-tracking:length=96,chains=4,hops=3,ask=all", 100)
    right = task.floors["latest-literal"](batch.inputs, batch.positions, cell) == batch.targets
    assert right[batch.groups == 0].all()
    assert not right[batch.groups == 3].all()
