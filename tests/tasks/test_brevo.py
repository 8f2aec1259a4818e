import math
from collections.abc import Callable

import pytest
import torch

from icl_bench import random
from icl_bench.errors import SpecError
from icl_bench.tasks.base import measured_floors
from icl_bench.tasks.brevo import DEGREE, draw_graphs, find_needed, mean_bits, most_edges
from icl_bench.tasks.vocabulary import EOS, PAD, SEP

Edges = set[tuple[int, int]]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("vertices=40", "vertices must be at most vocab; got vertices = 40 with vocab = 32"),
        ("vertices=2", "vertices must be at least 3; got 2"),
    ],
)
def test_bad_parameters_are_refused(make, spec, message):
    with pytest.raises(SpecError) as error:
        make(f"brevo:{spec}")
    assert message in str(error.value)


def read(inputs: list[int], vertices: int) -> tuple[Edges, int, list[int]]:
    """Return edges, queried vertex and the tokens of the shown answer."""
    end = inputs.index(SEP)
    assert end == 2 * most_edges(vertices)
    tokens = [token for token in inputs[:end] if token != PAD]
    edges = set(zip(tokens[::2], tokens[1::2], strict=True))
    assert len(edges) == len(tokens) // 2
    return edges, inputs[end + 1], inputs[end + 2 :]


def ancestors(edges: Edges, vertex: int) -> set[int]:
    found, waiting = set[int](), [vertex]
    while waiting:
        found.add(child := waiting.pop())
        waiting += [parent for parent, other in edges if other == child and parent not in found]
    return found


def is_right(edges: Edges, vertex: int, answer: list[int]) -> bool:
    """The rule, read from the definition: the right set, each once, parents first, and then the end."""
    if EOS not in answer:
        return False
    listed = answer[: answer.index(EOS)]
    if len(set(listed)) < len(listed) or set(listed) != ancestors(edges, vertex):
        return False
    return all(listed.index(a) < listed.index(b) for a, b in edges if b in listed)


def some_order(edges: Edges, chosen: set[int], draw: Callable[[int], int]) -> list[int]:
    """A random order of a set of vertices in which parents come first."""
    order, left = [], set(chosen)
    while left:
        ready = sorted(v for v in left if not any(b == v and a in left for a, b in edges))
        order.append(ready[draw(len(ready))])
        left.remove(order[-1])
    return order


def changed(kind: int, edges: Edges, vertex: int, names: list[int], draw: Callable[[int], int]) -> list[int]:
    """An answer of one of ten kinds."""
    needed = ancestors(edges, vertex)
    order = some_order(edges, needed, draw)
    place = draw(len(order))
    others = [name for name in names if name not in needed]
    if kind == 0:
        return [*order, EOS]
    if kind == 1:  # right, and whatever comes after the end
        return [*order, EOS, names[draw(len(names))], SEP]
    if kind == 2:  # one is missing
        return [*order[:place], *order[place + 1 :], EOS]
    if kind == 3:  # another vertex of the graph, or a name that it lacks
        return [*order[:place], others[draw(len(others))], *order[place:], EOS]
    if kind == 4:  # one comes twice
        return [*order, order[place], EOS]
    if kind == 5:  # a parent and its child change places
        pairs = sorted((a, b) for a, b in edges if a in needed and b in needed)
        a, b = pairs[draw(len(pairs))]
        swap = {a: b, b: a}
        return [*(swap.get(name, name) for name in order), EOS]
    if kind == 6:  # no end
        return [*order, order[-1]]
    if kind == 7:  # a token that is no name
        return [*order[:place], SEP, *order[place:], EOS]
    if kind == 8:  # one is replaced
        return [*order[:place], others[draw(len(others))], *order[place + 1 :], EOS]
    return [*order[::-1], EOS]


@pytest.mark.parametrize("vertices", [7, 20])
def test_ten_kinds_of_answers_are_judged_as_by_definition(draw, vertices):
    """10,000 answers in both sizes together; the two kinds of right answers are accepted, and none of the others."""
    task, cell, batch = draw(f"brevo:vertices={vertices},vocab=24", 500)
    numbers = iter(torch.randint(0, 1 << 30, (500_000,), generator=torch.Generator().manual_seed(1)).tolist())
    names = list(range(16, 16 + task.vocab))
    rows, answers, expected, kinds = [], [], [], []
    for row, inputs in enumerate(batch.inputs.tolist()):
        edges, vertex, shown = read(inputs, vertices)
        assert is_right(edges, vertex, [*shown, EOS])
        for kind in range(10):
            answer = changed(kind, edges, vertex, names, lambda high: next(numbers) % high)
            # what no string of S tokens can hold is cut, which is wrong too
            answer = (answer + [EOS if EOS in answer else answer[-1]] * cell.scored)[: cell.scored]
            rows.append(row)
            answers.append(answer)
            expected.append(is_right(edges, vertex, answer))
            kinds.append(kind)
    verdicts = task.accepts(batch.inputs[rows], torch.tensor(answers), cell)
    assert verdicts.tolist() == expected == [kind < 2 for kind in kinds]
    assert len(expected) == 5000


def test_the_shown_answer_is_not_looked_at(draw):
    task, cell, batch = draw("brevo", 200)
    hidden = batch.inputs.clone()
    hidden[:, 1 - cell.scored :] = SEP
    assert task.accepts(hidden, batch.targets, cell).all()
    assert torch.equal(task.oracle(hidden, batch.positions, cell), task.oracle(batch.inputs, batch.positions, cell))


def test_a_verdict_holds_at_every_position(draw):
    task, cell, batch = draw("brevo", 4)
    answers = batch.targets.clone()
    answers[2, 0] = SEP
    assert task.hits(answers, batch, cell).tolist() == [[float(row != 2)] * cell.scored for row in range(4)]


def test_graphs_follow_the_law():
    """Parents are earlier vertices with a place for a child; numbers of edges and vertices are those simulated."""
    count = 20
    graphs = draw_graphs(random.row_keys(torch.tensor(3), torch.arange(300)), count)
    for parents, children, available in zip(*(part.tolist() for part in graphs), strict=True):
        degree = [0] * count
        for vertex in range(count):
            own = [parent for parent in parents[vertex] if parent >= 0]
            free = [parent for parent in range(vertex) if degree[parent] < DEGREE]
            assert len(set(own)) == len(own) and set(own) <= set(free)
            assert vertex == 0 or available[vertex] == len(free)
            for parent in own:
                degree[parent] += 1
        for parent in range(count):
            listed = [child for child in children[parent] if child < count]
            assert sorted(listed) == [child for child in range(count) if parent in parents[child]]
    assert float((graphs.parents >= 0).sum() / 300) == pytest.approx(42, abs=1)


@pytest.mark.parametrize(("count", "bits", "parents"), [(10, 24.3, 0.041), (20, 95.7, 0.016)])
def test_counts_of_an_independent_simulation(count, bits, parents):
    """It asked for the last vertex, and counted as possible parents all earlier vertices, also those without room."""
    graphs = draw_graphs(random.row_keys(torch.tensor(4), torch.arange(4000)), count)
    chosen = (graphs.parents >= 0).sum(dim=-1)
    among = {"earlier": torch.arange(count).expand_as(chosen), "available": graphs.available}
    numbers = chosen.flatten().tolist()
    mean = {
        name: sum(map(math.log2, map(math.comb, most.flatten().tolist(), numbers))) / 4000
        for name, most in among.items()
    }
    # five standard errors: the bits of a graph of 20 vertices have a deviation below 8
    assert mean["earlier"] == pytest.approx(bits, abs=0.6)
    assert mean["available"] == pytest.approx(mean_bits(count), abs=1.4)
    listed = find_needed(graphs, torch.full((4000, 1), count - 1)).sum(dim=1) == chosen[:, -1] + 1
    assert float(listed.double().mean()) == pytest.approx(parents, abs=5 * (parents / 4000) ** 0.5)


def test_orders_are_uniform_among_ready_vertices(draw):
    """Of two roots that are both needed, each comes first as often as the other."""
    batch = draw("brevo:vertices=5", 4000)[2]
    smaller_first = []
    for inputs in batch.inputs.tolist():
        edges, vertex, shown = read(inputs, 5)
        roots = sorted(a for a in ancestors(edges, vertex) if not any(b == a for _, b in edges))
        if len(roots) == 2:
            smaller_first.append(shown[0] == roots[0])
    assert abs(2 * sum(smaller_first) - len(smaller_first)) < 5 * len(smaller_first) ** 0.5


@pytest.mark.parametrize(("vertices", "size", "parents", "whole"), [(10, 7.0, 0.05, 0.06), (20, 11.5, 0.02, 0.0)])
def test_floors_and_sizes_are_those_simulated(draw, vertices, size, parents, whole):
    task, cell, batch = draw(f"brevo:vertices={vertices}", 4000)
    floors = measured_floors(task, cell, batch)
    assert floors["parents"] == pytest.approx(parents, abs=0.02)
    assert floors["whole-graph"] == pytest.approx(whole, abs=0.02)
    assert float((batch.targets != EOS).sum(dim=1).double().mean()) == pytest.approx(size, abs=0.2)
