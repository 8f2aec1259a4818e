"""Brevo: list everything that a vertex of a graph depends on, in any valid order."""

import functools
import math
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from icl_bench import random
from icl_bench.tasks.base import TASKS, Batch, TrainingBudget, WholeAnswerTask
from icl_bench.tasks.cells import Axis, Cell, ExampleShape, IntegerList, OptionalIntegers, check_at_most
from icl_bench.tasks.sampling import octave
from icl_bench.tasks.vocabulary import EOS, PAD, SEP, Vocabulary

DEGREE = 4
"""Largest number of parents and of children of a vertex."""
GRAPHS = 1000
"""Graphs over which the bits of a graph are averaged."""


class Graphs(NamedTuple):
    """One graph for each row; vertices are numbers, and parents come before their children."""

    parents: Tensor
    """Parents of each vertex, [N, vertices, DEGREE]; -1 where there are fewer."""
    children: Tensor
    """Children of each vertex, [N, vertices + 1, DEGREE]; the number of vertices where there are fewer."""
    available: Tensor
    """Number of vertices among which the parents of each vertex are chosen, [N, vertices]."""


@TASKS.register("brevo")
class Brevo(WholeAnswerTask):
    """List all vertices that a vertex of a graph depends on, each after those that it depends on itself.

    The context lists the edges `parent child` of a directed graph without cycles, in random order. After `|` comes the
    queried vertex, and the answer is every vertex from which a path leads to it, and the vertex itself, in an order in
    which parents precede their children, and `$` at the end. Most graphs have many such orders; the one shown in
    training is a random one, the next vertex uniform among those that are ready. An answer counts, at every scored
    position, if its vertices are the right ones, each once and in any valid order, and it ends. Shown a right
    beginning, a model could name vertices that are ready without regard to the question; so accuracy is that of the
    answers that a model gives when it reads its own, and the loss alone is that of the order shown. Groups are the
    number of vertices in the answer. The floors list all vertices of the graph (`whole-graph`), or the parents of the
    queried vertex and itself (`parents`); the reference `two-generations` goes one step further back.

    A graph has `vertices` vertices. The first ones, 1 to (vertices + 3) / 4 of them, have no parents; each later one
    has 1 to 4 of those before it that have less than 4 children. Padding comes first, as the number of edges varies;
    after the end of an answer, `$` repeats. The queried vertex is one of the last quarter.

    Softmax of four layers gives .93 to .98 of the answers of `brevo:vertices=8,vocab=8` right after 6,000 updates of
    128 examples, in five seeds. The budget, for two layers, is an estimate: below the floor after 2,500 updates.

    Full size: `brevo:vertices=[10|20|30]`; in the published task `brevo:vertices=[70|90|110],vocab=110`, tested there
    at the largest number.

    Source: Allen-Zhu, "Physics of Language Models: Part 4.1" (arXiv 2512.17351), where the queried vertex is the last
    one, on which the whole graph often depends. Chance: next to none; see the floors.

    >>> task = Brevo(vertices=(5,))
    >>> batch = task.sample(random.row_keys(torch.tensor(1), torch.arange(1)), task.eval_cells[0])
    >>> " ".join(task.spell(token) for token in batch.inputs[0].tolist())
    '· · · · · · · · x11 x3 x11 x26 x15 x3 x11 x0 x15 x26 x0 x26 | x26 x11 x0 x15 x26 $'
    >>> batch.positions.tolist(), " ".join(task.spell(token) for token in batch.targets[0].tolist())
    ([[21, 22, 23, 24, 25, 26]], 'x11 x0 x15 x26 $ $')
    """

    axes = (Axis("vertices", lowest=3, extrapolated=True),)
    load_name = "vertices"
    budget = TrainingBudget(steps=4000, lr=2e-3, params="vertices=8")
    picture = "vertices=6"
    group_unit = "vertices"

    vertices: IntegerList = (8, 12)
    """Numbers of vertices of the graph, each a cell that is trained and evaluated."""
    extrapolate: OptionalIntegers = ()
    """Numbers of vertices that are evaluated but not trained."""
    vocab: int = Field(default=32, ge=3)
    """Number of names of vertices."""

    def check(self) -> None:
        check_at_most("vertices", max((*self.vertices, *self.extrapolate)), "vocab", self.vocab)

    @property
    def words(self) -> Vocabulary:
        return Vocabulary({"x": self.vocab})

    def shape(self, sizes: tuple[int, ...]) -> ExampleShape:
        vertices = sizes[0]
        return ExampleShape(2 * most_edges(vertices) + 2 + vertices, load=vertices, scored=vertices + 1)

    def sample(self, keys: Tensor, cell: Cell) -> Batch:
        count = cell.load
        graphs = draw_graphs(keys, count)
        asked = count - 1 - random.integers(keys, "query", 1, max(1, count // 4))
        order, size = draw_order(keys, graphs, find_needed(graphs, asked))
        names = random.distinct(keys, "names", count, self.vocab) + self.words.first("x")
        named = torch.cat([names, torch.full_like(asked, EOS)], dim=1)  # the last column names what is no vertex
        answer = named.gather(1, order)
        edges = list_edges(keys, graphs, named)
        context = torch.cat([edges, torch.full_like(asked, SEP), names.gather(1, asked)], dim=1)
        positions = torch.arange(cell.length - cell.scored, cell.length, device=keys.device).expand(len(keys), -1)
        targets = torch.cat([answer, torch.full_like(asked, EOS)], dim=1)
        return Batch(torch.cat([context, answer], dim=1), positions, targets, octave(size).expand_as(targets))

    def _edges(self, inputs: Tensor, cell: Cell) -> tuple[Tensor, Tensor, Tensor]:
        """Read the parents and the children of edges, [N, edges] each, and the queried vertex, [N, 1].

        Names are numbers from 0; padding is an edge from the number `vocab` to itself.
        """
        end = 2 * most_edges(cell.load)
        numbers = torch.where(inputs == PAD, self.vocab, inputs - self.words.first("x"))
        return numbers[:, 0:end:2], numbers[:, 1:end:2], numbers[:, end + 1 : end + 2]

    def _needed(self, inputs: Tensor, cell: Cell, steps: int) -> Tensor:
        """Mark the queried vertex and those from which at most `steps` edges lead to it: [N, vocab + 1] int64."""
        parents, children, asked = self._edges(inputs, cell)
        needed = inputs.new_zeros((len(inputs), self.vocab + 1)).scatter_(1, asked, 1)
        for _ in range(steps):
            needed = needed.scatter_reduce(1, parents, needed.gather(1, children), "amax")
        return needed

    def accepts(self, inputs: Tensor, answers: Tensor, cell: Cell) -> Tensor:
        parents, children, _ = self._edges(inputs, cell)
        needed = self._needed(inputs, cell, cell.load - 1)
        names = answers - self.words.first("x")
        ended = (answers == EOS).cummax(dim=1).values
        is_vertex = (names >= 0) & (names < self.vocab)
        names = torch.where(~ended & is_vertex, names, self.vocab)
        listed = torch.zeros_like(needed).scatter_add_(1, names, torch.ones_like(names))
        index = torch.arange(answers.shape[1], device=answers.device).expand_as(answers)
        places = torch.zeros_like(needed).scatter_(1, names, index)
        ordered = (places.gather(1, parents) < places.gather(1, children)) | (needed.gather(1, children) == 0)
        complete = (listed == needed)[:, :-1].all(dim=1)
        return complete & ordered.all(dim=1) & ended[:, -1] & (ended | is_vertex).all(dim=1)

    def _list(self, inputs: Tensor, wanted: Tensor, cell: Cell) -> Tensor:
        """List the wanted vertices, [N, vocab + 1], in a valid order, the smallest name first: [N, S]."""
        parents, children, _ = self._edges(inputs, cell)
        left, answers = wanted.clone(), []
        left[:, -1] = 0
        for _ in range(cell.load):
            blocked = torch.zeros_like(left).scatter_reduce_(1, children, left.gather(1, parents), "amax")
            ready = left * (1 - blocked)
            chosen = ready.argmax(dim=1, keepdim=True)
            answers.append(torch.where(ready.gather(1, chosen) > 0, chosen + self.words.first("x"), EOS))
            left = left.scatter(1, chosen, 0)
        return torch.cat([*answers, torch.full_like(answers[0], EOS)], dim=1)

    def oracle(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        return self._list(inputs, self._needed(inputs, cell, cell.load - 1), cell)

    def floor_whole_graph(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """List all vertices of the graph in a valid order."""
        parents, children, asked = self._edges(inputs, cell)
        there = torch.cat([parents, children, asked], dim=1)
        return self._list(inputs, inputs.new_zeros((len(inputs), self.vocab + 1)).scatter_(1, there, 1), cell)

    def floor_parents(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """List the parents of the queried vertex, and itself."""
        return self._list(inputs, self._needed(inputs, cell, 1), cell)

    def reference_two_generations(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """List the vertices from which at most two edges lead to the queried one, and itself."""
        return self._list(inputs, self._needed(inputs, cell, 2), cell)

    def state_bits(self, cell: Cell) -> float:
        """Return the bits of the choices of parents, the mean over graphs; the names are not counted."""
        return mean_bits(cell.load)


def most_edges(vertices: int) -> int:
    """Return the largest number of edges of a graph."""
    return sum(min(DEGREE, earlier) for earlier in range(vertices))


def draw_graphs(keys: Tensor, count: int) -> Graphs:
    """Draw a graph of `count` vertices for each key: keys [N]."""
    rows = len(keys)
    roots = 1 + random.integers(keys, "roots", 1, (count - 1) // DEGREE + 1)
    sizes = random.uniform(keys, "sizes", count)
    degree = torch.zeros(rows, count, dtype=torch.int64, device=keys.device)
    parents = torch.full((rows, count, DEGREE), -1, device=keys.device)
    children = torch.full((rows, (count + 1) * DEGREE), count, device=keys.device)
    available = torch.zeros_like(degree)
    for vertex in range(1, count):
        free = degree[:, :vertex] < DEGREE
        available[:, vertex] = free.sum(dim=1)
        most = available[:, vertex : vertex + 1].clamp(max=DEGREE)
        wanted = torch.where(roots > vertex, 0, 1 + (sizes[:, vertex : vertex + 1] * most).long())
        width = min(DEGREE, vertex)
        chosen = (random.uniform(keys, f"parents of {vertex}", vertex) * free).topk(width, dim=1).indices
        taken = torch.arange(width, device=keys.device) < wanted
        parents[:, vertex, :width] = torch.where(taken, chosen, -1)
        place = chosen * DEGREE + degree.gather(1, chosen)
        children.scatter_(1, torch.where(taken, place, count * DEGREE), vertex)
        degree.scatter_add_(1, chosen, taken.long())
    children[:, count * DEGREE :] = count
    return Graphs(parents, children.view(rows, count + 1, DEGREE), available)


def find_needed(graphs: Graphs, asked: Tensor) -> Tensor:
    """Mark the vertices asked, [N, 1], and all on which they depend: [N, vertices] int64."""
    rows, count, _ = graphs.parents.shape
    needed = torch.zeros(rows, count + 1, dtype=torch.int64, device=asked.device).scatter_(1, asked, 1)
    for vertex in reversed(range(count)):
        parents = torch.where(graphs.parents[:, vertex] < 0, count, graphs.parents[:, vertex])
        needed.scatter_reduce_(1, parents, needed[:, vertex : vertex + 1].repeat(1, DEGREE), "amax")
    return needed[:, :-1]


def draw_order(keys: Tensor, graphs: Graphs, needed: Tensor) -> tuple[Tensor, Tensor]:
    """Draw an order of the needed vertices, each uniform among those that are ready; also count them, [N, 1].

    The order is [N, vertices]; entries after the last vertex are the number of vertices.
    """
    rows, count = needed.shape
    draws = random.uniform(keys, "order", count)
    # number of parents that are not listed yet; a vertex that is listed or not needed never comes to 0
    waiting = torch.full((rows, count + 1), 2 * count, device=keys.device)
    waiting[:, :-1] = torch.where(needed > 0, (graphs.parents >= 0).sum(dim=-1), 2 * count)
    children, order = graphs.children.flatten(1), []
    step = torch.arange(DEGREE, device=keys.device)
    less = torch.full_like(step, -1).expand(rows, -1)
    for i in range(count):
        ready = (waiting[:, :-1] == 0).cumsum(dim=1)
        chosen = (ready <= (draws[:, i] * ready[:, -1]).long()[:, None]).sum(dim=1, keepdim=True)
        order.append(chosen)
        waiting.scatter_(1, chosen, 2 * count)
        waiting.scatter_add_(1, children.gather(1, chosen * DEGREE + step), less)
    return torch.cat(order, dim=1), needed.sum(dim=1, keepdim=True)


def list_edges(keys: Tensor, graphs: Graphs, named: Tensor) -> Tensor:
    """Write the edges `parent child` in random order after padding: [N, 2 most_edges], names [N, vertices + 1]."""
    count = graphs.parents.shape[1]
    slots = count * DEGREE
    parents = graphs.parents.flatten(1)
    bits = random.random_bits(keys, "edges", slots) >> 1
    order = torch.argsort(torch.where(parents < 0, torch.iinfo(torch.int64).min, bits), dim=1, stable=True)
    order = order[:, slots - most_edges(count) :]
    chosen = parents.gather(1, order)
    ends = [named.gather(1, chosen.clamp(min=0)), named.gather(1, order // DEGREE)]
    edges = torch.stack(ends, dim=-1)
    return torch.where(chosen[..., None] < 0, PAD, edges).flatten(1)


@functools.lru_cache
def mean_bits(count: int) -> float:
    """Return the mean number of bits of the choices of parents, over `GRAPHS` graphs, to one decimal place."""
    keys = random.row_keys(torch.tensor(random.stream("brevo", "bits")), torch.arange(GRAPHS))
    graphs = draw_graphs(keys, count)
    chosen = (graphs.parents >= 0).sum(dim=-1).double()
    available = torch.where(chosen > 0, graphs.available, 0).double()
    logs = [torch.lgamma(part + 1) for part in (available, chosen, available - chosen)]
    return round(float((logs[0] - logs[1] - logs[2]).sum(dim=1).mean()) / math.log(2), 1)
