"""RegBench: strings of a random automaton, each to be continued."""

import itertools
import math
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from icl_bench import random
from icl_bench.tasks.base import TASKS, Batch, Task, TrainingBudget
from icl_bench.tasks.cells import Axis, Cell, ExampleShape, IntegerList, OptionalIntegers, check_at_most
from icl_bench.tasks.sampling import distinct_ranks, octave
from icl_bench.tasks.vocabulary import PAD, RESERVED, SEP, Alphabet, Vocabulary, letters

FEWEST = 4
"""Smallest maximum number of states of an automaton, and smallest number of letters."""


class Automata(NamedTuple):
    """One automaton for each row; strings begin in state 0."""

    degree: Tensor
    """Number of exits of each state, [N, states]."""
    letters: Tensor
    """Letter of each exit, [N, states, exits]; entries from `degree` on are unused."""
    ends: Tensor
    """State to which each exit leads, [N, states, exits]."""


@TASKS.register("regbench")
class Regbench(Task):
    """Continue strings of an automaton that is new in every example, with any letter that it allows.

    A random automaton has up to `states` states. Each state has one to `exits` exits; each exit has a letter of its own
    and leads to another state. A string is a walk from state 0 that takes a uniformly drawn exit at every step. The
    input is `| string | string ...`. The last `queries` letters are scored, by default the second half, since the first
    strings of an automaton cannot be known; a model names each letter at the token before it. It is trained on the
    letter that comes, but an answer is right if the automaton allows it. So the model must tell states apart by what it
    read since the last bar, and use all strings. The latest one or two letters often suffice, as the floors `bigram`
    and `trigram` measure: compare accuracy with these.

    The automaton is written after the strings, one token for each exit, state by state. Every scored position comes
    earlier, so no causal model sees the automaton when it is asked; the oracle reads it, because the strings alone do
    not determine an automaton.

    Repeats: an automaton with few reachable states can occur twice. Of the automata in the test examples, 10 % also
    occur among a million training examples with up to 4 states, and 6 % with up to 8 states; their strings differ, and
    it is the strings that must be continued.

    Full size: `regbench:states=12,alphabet=18,strings=15,symbols=25,queries=375`, all letters scored, as published;
    beyond it, `regbench:states=12,alphabet=18,strings=15,symbols=25,extrapolate=40`.

    Source: Akyürek et al., "In-context language learning: architectures and algorithms" (arXiv 2401.12973). There, the
    automata are minimised, the lengths of strings are independent (here, a uniform division of their sum), and training
    has a fixed set of 1,000 to 40,000 automata. Chance: the fraction of the alphabet that a state allows; see the
    floors.

    >>> task = Regbench(states=(4,), strings=(3,), symbols=4)
    >>> batch = task.sample(random.row_keys(torch.tensor(1), torch.arange(1)), task.eval_cells[0])
    >>> " ".join(task.spell(token) for token in batch.inputs[0].tolist())
    '| f k | a j k c k k k | h c k h>2 a>3 f>1 k>2 · · c>1 k>1 · e>0 j>1 ·'
    >>> batch.positions.tolist(), " ".join(task.spell(token) for token in batch.targets[0].tolist())
    ([[7, 8, 9, 11, 12, 13]], 'k k k h c k')
    """

    axes = (Axis("states", lowest=FEWEST), Axis("strings", extrapolated=True))
    load_name = "states"
    budget = TrainingBudget(steps=1500, lr=5e-3, params="states=4")
    picture = "states=4,strings=5,symbols=4"
    group_unit = "position"
    several_correct = True
    repeats = True

    states: IntegerList = (4, 8)
    """Largest numbers of states; the number is uniform from 4 on. Each is combined with every number of strings."""
    strings: IntegerList = (8,)
    """Numbers of strings."""
    extrapolate: OptionalIntegers = ()
    """Numbers of strings that are evaluated but not trained."""
    symbols: int = Field(default=12, ge=2)
    """Mean number of letters of a string; their sum is fixed."""
    alphabet: int = Field(default=12, ge=4)
    """Number of letters; an automaton uses a subset, whose size is uniform from 4 on."""
    exits: int = Field(default=3, ge=1, le=4)
    """Largest number of exits of a state; the number is uniform from 1 on."""
    queries: int | None = Field(default=None, ge=1)
    """Number of scored letters, the last ones; half of the letters by default."""

    def check(self) -> None:
        fewest = min((*self.strings, *self.extrapolate)) * self.symbols
        check_at_most("queries", self.queries or 0, "strings * symbols", fewest)

    @property
    def words(self) -> Vocabulary:
        names, count = letters(self.alphabet), self.alphabet
        exits = Alphabet(max(self.states) * count, lambda code: f"{names.spell(code % count)}>{code // count}")
        return Vocabulary({"letters": names, "exits": exits})

    def shape(self, sizes: tuple[int, ...]) -> ExampleShape:
        states, strings = sizes
        length = strings * (self.symbols + 1) + states * self.exits
        return ExampleShape(length, load=states, scored=self.queries or (strings * self.symbols + 1) // 2)

    def sample(self, keys: Tensor, cell: Cell) -> Batch:
        automata = self.automata(keys, cell.load)
        begins = self._begins(keys, cell)
        inputs = torch.cat([self._walk(keys, automata, begins), self._written(automata)], dim=1)
        positions = self._places(begins)[:, -cell.scored :] - 1
        return Batch(inputs, positions, inputs.gather(1, positions + 1), octave(positions + 1))

    def automata(self, keys: Tensor, states: int) -> Automata:
        """Draw an automaton of at most `states` states for each example: keys [N]."""
        count = FEWEST + random.integers(keys, "states", 1, states - FEWEST + 1)
        size = FEWEST + random.integers(keys, "size", 1, self.alphabet - FEWEST + 1)
        used = random.permutation(keys, "alphabet", self.alphabet)
        degree = 1 + random.integers(keys, "degree", states, self.exits)
        draws = random.uniform(keys, "exits", 2 * states * self.exits).view(len(keys), 2, states, self.exits)
        letters = used.gather(1, distinct_ranks(draws[:, 0], size).flatten(1)).view(draws[:, 0].shape)
        ends = (draws[:, 1] * (count[..., None] - 1)).long()
        own = torch.arange(states, device=keys.device)[:, None]
        return Automata(degree, letters, ends + (ends >= own))

    def _begins(self, keys: Tensor, cell: Cell) -> Tensor:
        """Draw a uniform division into strings: 1 for a letter that begins one, else 0, [N, strings * symbols]."""
        total = cell.sizes[1] * self.symbols
        begins = torch.zeros(len(keys), total, dtype=torch.int64, device=keys.device)
        begins[:, 0] = 1
        return begins.scatter_(1, 1 + random.distinct(keys, "begins", cell.sizes[1] - 1, total - 1), 1)

    def _walk(self, keys: Tensor, automata: Automata, begins: Tensor) -> Tensor:
        """Write the strings, each after a bar: [N, strings * (symbols + 1)]."""
        rows, total = begins.shape
        faces = math.lcm(*range(1, self.exits + 1))
        exits = torch.arange(faces, device=keys.device) * automata.degree[..., None] // faces
        table = automata.ends.gather(2, exits).flatten(1)
        choices = random.integers(keys, "choices", total, faces)
        state, visited = torch.zeros_like(choices[:, :1]), []
        for t in range(total):
            # a string begins in state 0
            visited.append(torch.addcmul(choices[:, t : t + 1], state, 1 - begins[:, t : t + 1], value=faces))
            state = table.gather(1, visited[-1])
        letters = automata.letters.gather(2, exits).flatten(1).gather(1, torch.cat(visited, dim=1))
        bars = torch.full((rows, total + int(total // self.symbols)), SEP, device=keys.device)
        return bars.scatter_(1, self._places(begins), letters + RESERVED)

    def _places(self, begins: Tensor) -> Tensor:
        """Return the position of each letter; before it stand as many bars as strings have begun."""
        return torch.arange(begins.shape[1], device=begins.device) + begins.cumsum(dim=1)

    def _written(self, automata: Automata) -> Tensor:
        """Write the exits as tokens, with padding for states that have fewer: [N, states * exits]."""
        tokens = self.words.first("exits") + automata.ends * self.alphabet + automata.letters
        there = torch.arange(self.exits, device=tokens.device) < automata.degree[..., None]
        return torch.where(there, tokens, PAD).flatten(1)

    def _steps(self, inputs: Tensor, cell: Cell) -> Tensor:
        """Return the state that each letter leads to from each state, -1 if not allowed: [N, states, alphabet]."""
        written = inputs[:, -cell.load * self.exits :].unflatten(1, (cell.load, self.exits)) - self.words.first("exits")
        there = written >= 0
        steps = torch.full((len(inputs), cell.load, self.alphabet + 1), -1, device=inputs.device)
        letters = torch.where(there, written % self.alphabet, self.alphabet)
        return steps.scatter_(2, letters, written // self.alphabet)[..., :-1]

    def _states(self, inputs: Tensor, steps: Tensor, cell: Cell) -> Tensor:
        """Return the state after each token of the strings: [N, strings * (symbols + 1)]."""
        body = inputs[:, : cell.length - cell.load * self.exits]
        state, states = torch.zeros_like(body[:, :1]), []
        for tokens in body.split(1, dim=1):
            after = steps.flatten(1).gather(1, state * self.alphabet + (tokens - RESERVED).clamp(min=0))
            state = torch.where(tokens == SEP, 0, after)
            states.append(state)
        return torch.cat(states, dim=1)

    def _allowed(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Mark the letters that may follow each scored position: [N, S, alphabet]."""
        steps = self._steps(inputs, cell)
        states = self._states(inputs, steps, cell).gather(1, positions)
        return (steps >= 0).gather(1, states[..., None].expand(-1, -1, self.alphabet))

    def canonical(self, inputs: Tensor, cell: Cell) -> Tensor:
        """Return the part of each automaton that state 0 reaches, states numbered by a search in letter order."""
        steps = self._steps(inputs, cell)
        rows, count = torch.arange(len(steps), device=steps.device), cell.load
        # order[:, i] is the i-th state found, name[:, q] the place at which q was found
        order, name = torch.zeros_like(steps[..., 0]), torch.full_like(steps[..., 0], -1)
        name[:, 0], found = 0, torch.ones_like(rows)
        for i, letter in itertools.product(range(count), range(self.alphabet)):
            end = steps[rows, order[:, i], letter]
            new = rows[(i < found) & (end >= 0) & (name[rows, end.clamp(min=0)] < 0)]
            name[new, end[new]] = found[new]
            order[new, found[new]] = end[new]
            found[new] += 1
        known = torch.arange(count, device=steps.device) < found[:, None]
        reached = steps.gather(1, order[..., None].expand_as(steps))
        renamed = torch.where(reached >= 0, name.gather(1, reached.clamp(min=0).flatten(1)).view(reached.shape), -1)
        return torch.where(known[..., None], renamed, -2).flatten(1)

    def hits(self, answers: Tensor, batch: Batch, cell: Cell) -> Tensor:
        allowed = self._allowed(batch.inputs, batch.positions, cell)
        letters = answers - RESERVED
        is_letter = (letters >= 0) & (letters < self.alphabet)
        return (allowed.gather(2, letters.clamp(0, self.alphabet - 1)[..., None])[..., 0] & is_letter).double()

    def oracle(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        return self._allowed(inputs, positions, cell).int().argmax(dim=-1) + RESERVED

    def floor_unigram(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the most frequent letter so far."""
        return self._most_frequent(inputs, positions, 1)

    def floor_bigram(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the most frequent letter after the latest token; for a new token, the most frequent letter."""
        return self._most_frequent(inputs, positions, 2)

    def floor_trigram(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the most frequent letter after the latest two tokens; for new ones, the letter of `bigram`."""
        return self._most_frequent(inputs, positions, 3)

    def _most_frequent(self, inputs: Tensor, positions: Tensor, order: int) -> Tensor:
        """Return the letter that most often followed the latest tokens, longer contexts before shorter ones: [N, S]."""
        index = torch.arange(inputs.shape[1], device=inputs.device)
        alphabet = torch.arange(RESERVED, RESERVED + self.alphabet, device=inputs.device)
        is_letter = (inputs[..., None] == alphabet).float()
        merit = torch.zeros(*positions.shape, self.alphabet, dtype=torch.float64, device=inputs.device)
        # positions whose letter counts, because it stands no later than the scored position
        same = (index <= positions[..., None]) & (index > 0)
        for back in range(order):
            if back:
                latest = inputs.gather(1, (positions - back + 1).clamp(min=0))
                before = inputs.roll(back, dims=1)
                same = same & (before[:, None] == latest[..., None]) & (index >= back)
                same = same & (positions >= back - 1)[..., None]
            # counts are below the length, so a longer context always weighs more
            merit += (same.float() @ is_letter).double() * float(inputs.shape[1]) ** back
        return merit.argmax(dim=-1) + RESERVED

    def state_bits(self, cell: Cell) -> float:
        """Return the bits of the exits of the largest automaton: (exits + 1) / 2 a state, a letter and a state each."""
        exits = cell.load * (self.exits + 1) / 2
        return exits * (math.log2(self.alphabet) + math.log2(cell.load))
