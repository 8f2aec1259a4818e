import pytest

from icl_bench.errors import SpecError
from icl_bench.tasks.base import measured_floors


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nodes=8,hops=8", "hops must be at most nodes - 1; got hops = 8 with nodes - 1 = 7"),
        ("nodes=6,hops=2,queries=7", "queries must be at most nodes; got queries = 7 with nodes = 6"),
        ("nodes=100", "nodes must be at most vocab^name_tokens; got nodes = 100 with vocab^name_tokens = 64"),
        ("nodes=2,hops=1,queries=1", "nodes must be at least 3; got 2"),
        ("name_tokens=3", "name_tokens"),
    ],
)
def test_bad_parameters_are_refused(make, spec, message):
    with pytest.raises(SpecError) as error:
        make(f"depo:{spec}")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("spec", ["hops=5", "hops=5,shown=true", "hops=3,name_tokens=2", "name_tokens=2,shown=true"])
def test_rule_by_reading(draw, spec):
    """The edges are one cycle through all nodes, and following them gives every answer."""
    task, cell, batch = draw(f"depo:nodes=12,queries=6,{spec}", 50)
    width = task.name_tokens
    for tokens, positions, targets, groups in zip(*(tensor.tolist() for tensor in batch), strict=True):
        words = [task.spell(token) for token in tokens]
        middle = words.index("|")
        names = [" ".join(words[i : i + width]) for i in range(0, middle, width)]
        follow = dict(zip(names[::2], names[1::2], strict=True))
        assert len(follow) == len(names) // 2 == cell.load
        visited, node = set(), names[0]
        while node not in visited:
            visited.add(node)
            node = follow[node]
        assert len(visited) == cell.load
        asked = []
        for position, target, group in zip(positions, targets, groups, strict=True):
            hop, node = int(words[position - width]), " ".join(words[position - width + 1 : position + 1])
            asked.append(node)
            assert (hop, task.group_label(group)) == (group + 1, f"hop {hop}")
            for _ in range(hop):
                node = follow[node]
            assert task.spell(target) == node.split()[0]
            if task.shown:
                assert " ".join(words[position + 1 : position + 1 + width]) == node
        assert len(set(asked)) == cell.scored


@pytest.mark.parametrize("nodes", [12, 32])
def test_floors_are_those_of_guesses(draw, nodes):
    """A solver is right at the hops that it follows, and by a guess among the nodes that are left at the others."""
    hops = 8
    task, cell, batch = draw(f"depo:nodes={nodes},hops={hops},queries=8", 4000)
    floors = measured_floors(task, cell, batch) | measured_floors(task, cell, batch, task.references)
    for name, followed in (("other-node", 0), ("one-look-up", 1), ("two-look-ups", 2)):
        expected = (followed + (hops - followed) / (nodes - 1 - followed)) / hops
        assert floors[name] == pytest.approx(expected, abs=0.015)
    right = task.floors["one-look-up"](batch.inputs, batch.positions, cell) == batch.targets
    assert right[batch.groups == 0].all()
    assert float(right[batch.groups > 0].double().mean()) == pytest.approx(1 / (nodes - 2), abs=0.01)


def test_bits_are_those_of_the_order_and_of_the_names(make):
    task = make("depo:nodes=16,hops=8,vocab=16")
    assert task.state_bits(task.eval_cells[0]) == pytest.approx(40.25, abs=0.01)  # log2 15!, as all names occur
