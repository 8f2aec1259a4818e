"""RegBench: strings of a random automaton, each to be continued."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor

from icl_bench import random
from icl_bench.tasks.base import (
    PAD,
    RESERVED,
    SEP,
    TASKS,
    Batch,
    Cell,
    Extra,
    Many,
    Solver,
    Task,
    check_loads,
    distinct_ranks,
    octave,
    octave_label,
)

FEWEST = 4
"""Least number of states of an automaton, and of letters."""


class Automata(NamedTuple):
    """One automaton for each row; state 0 is where strings begin."""

    degree: Tensor
    """Exits of each state, [N, Q]."""
    letters: Tensor
    """The letter of each exit, [N, Q, E]; those from `degree` on are not used."""
    ends: Tensor
    """The state that each exit leads to, [N, Q, E]."""


@TASKS.register("regbench")
class Regbench(Task):
    """Continue strings of an automaton that is new in every example, with any letter that it allows.

    A random automaton has up to `states` states, each with one to `exits` exits, each exit with a letter of its own and
    leading to another state. A string is a walk from its first state, at every step through a uniformly drawn exit.
    The input is `| string | string ...`; scored are the last `queries` letters, by default the second half, since the
    first strings of an automaton cannot be known; each is to be named at the token before it. The model is trained on
    the letter that comes; an answer is right where the automaton allows it. So states must be told apart by what was
    read since the bar, across strings. The latest letters often do, which the floors `bigram` and `trigram` measure:
    read the excess over these.

    The automaton is written behind the strings, an exit a token, state by state. Every scored position lies before it,
    so no causal model sees it when asked; the oracle reads it, since strings alone do not determine an automaton.

    Repeats: an automaton of which few states can be reached comes again. Among a million with up to 4 states are 10 %
    of those of the test, with up to 8 states 6 %; their strings differ, and it is these that must be continued.

    Full size: `regbench:states=12,alphabet=18,strings=15,symbols=25,queries=375`, all letters scored, as published;
    beyond it, `regbench:states=12,alphabet=18,strings=15,symbols=25,extrapolate=40`.

    Source: Akyürek et al., "In-context language learning: architectures and algorithms" (arXiv 2401.12973). There the
    automata are minimised, the lengths of strings independent (here a uniform division of their sum), and training
    has a fixed set of 1,000 to 40,000 automata. Chance: the share of the alphabet that a state allows; see the floors.

    Budget: 1500 steps at 5e-3 on `regbench:states=4`, with softmax.

    >>> task = Regbench(states=(4,), strings=(3,), symbols=4)
    >>> batch = task.sample(random.row_keys(torch.tensor(1), torch.arange(1)), task.eval_cells[0])
    >>> " ".join(task.spell(token) for token in batch.inputs[0].tolist())
    '| f k | a j k c k k k | h c k h>2 a>3 f>1 k>2 · · c>1 k>1 · e>0 j>1 ·'
    >>> batch.positions.tolist(), " ".join(task.spell(token) for token in batch.targets[0].tolist())
    ([[7, 8, 9, 11, 12, 13]], 'k k k h c k')
    """

    load_name = "states"
    many_right = True

    states: Many = (4, 8)
    """Largest numbers of states; with `strings` they span the grid of cells. The number is uniform from 4 on."""
    strings: Many = (8,)
    """Numbers of strings."""
    extrapolate: Extra = ()
    """Numbers of strings evaluated besides, not trained."""
    symbols: int = Field(default=12, ge=2)
    """Letters of a string in the mean; their sum is fixed."""
    alphabet: int = Field(default=12, ge=4)
    """Number of letters; an automaton uses a subset, its size uniform from 4 on."""
    exits: int = Field(default=3, ge=1, le=4)
    """Most exits of a state; the number is uniform from 1 on."""
    queries: int | None = Field(default=None, ge=1)
    """Scored letters, the last ones; half of them by default."""

    @model_validator(mode="after")
    def _check(self) -> "Regbench":
        check_loads("states", self.states, lowest=FEWEST)
        check_loads("strings", (*self.strings, *self.extrapolate))
        fewest = min((*self.strings, *self.extrapolate)) * self.symbols
        if self.queries is not None and self.queries > fewest:
            raise ValueError(f"queries must be at most strings * symbols = {fewest}; got {self.queries}; lower queries")
        return self

    @property
    def first_exit(self) -> int:
        """The token of an exit to state 0 with letter 0; letters come before."""
        return RESERVED + self.alphabet

    @property
    def vocabulary(self) -> int:
        return self.first_exit + max(self.states) * self.alphabet

    @property
    def eval_cells(self) -> tuple[Cell, ...]:
        return tuple(self._cell(*sizes) for sizes in self._grid.values())

    @property
    def _grid(self) -> Mapping[str, tuple[int, int]]:
        """States and strings of each cell, by its label."""
        return {
            f"states={states},strings={strings}": (states, strings)
            for strings in (*self.strings, *self.extrapolate)
            for states in self.states
        }

    def _cell(self, states: int, strings: int) -> Cell:
        return Cell(
            label=f"states={states},strings={strings}",
            length=strings * (self.symbols + 1) + states * self.exits,
            load=states,
            scored=self.queries or (strings * self.symbols + 1) // 2,
            share=1.0 if strings in self.strings else 0.0,
        )

    def sample(self, keys: Tensor, cell: Cell) -> Batch:
        automata = self.automata(keys, cell.load)
        begins = self._begins(keys, cell)
        letters = self._walk(keys, automata, begins)
        inputs = torch.cat([letters, self._written(automata)], dim=1)
        positions = self._asked(begins, cell) - 1
        return Batch(inputs, positions, inputs.gather(1, positions + 1), octave(positions + 1))

    def automata(self, keys: Tensor, states: int) -> Automata:
        """The automata of these examples, with `states` states at most: keys [N]."""
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
        """Which letters begin a string, 1 or 0: [N, strings * symbols], a uniform division into strings."""
        strings = self._grid[cell.label][1]
        total = strings * self.symbols
        begins = torch.zeros(len(keys), total, dtype=torch.int64, device=keys.device)
        begins[:, 0] = 1
        return begins.scatter_(1, 1 + random.distinct(keys, "begins", strings - 1, total - 1), 1)

    def _walk(self, keys: Tensor, automata: Automata, begins: Tensor) -> Tensor:
        """The strings, each behind a bar: [N, strings * (symbols + 1)]."""
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
        width = total + int(total // self.symbols)
        bars = torch.full((rows, width), SEP, device=keys.device)
        return bars.scatter_(1, self._places(begins), letters + RESERVED)

    def _places(self, begins: Tensor) -> Tensor:
        """The position of each letter: as many bars lie before it as strings have begun."""
        return torch.arange(begins.shape[1], device=begins.device) + begins.cumsum(dim=1)

    def _asked(self, begins: Tensor, cell: Cell) -> Tensor:
        return self._places(begins)[:, -cell.scored :]

    def _written(self, automata: Automata) -> Tensor:
        """The exits as tokens, padding where a state has fewer: [N, Q * E]."""
        tokens = self.first_exit + automata.ends * self.alphabet + automata.letters
        there = torch.arange(self.exits, device=tokens.device) < automata.degree[..., None]
        return torch.where(there, tokens, PAD).flatten(1)

    def _steps(self, inputs: Tensor, cell: Cell) -> Tensor:
        """Where each letter leads from each state, -1 where it is not allowed: [N, Q, alphabet]."""
        written = inputs[:, -cell.load * self.exits :].unflatten(1, (cell.load, self.exits)) - self.first_exit
        there = written >= 0
        steps = torch.full((len(inputs), cell.load, self.alphabet + 1), -1, device=inputs.device)
        letters = torch.where(there, written % self.alphabet, self.alphabet)
        return steps.scatter_(2, letters, written // self.alphabet)[..., :-1]

    def _states(self, inputs: Tensor, steps: Tensor, cell: Cell) -> Tensor:
        """The state after each token of the strings: [N, strings * (symbols + 1)]."""
        body = inputs[:, : cell.length - cell.load * self.exits]
        state, states = torch.zeros_like(body[:, :1]), []
        for tokens in body.split(1, dim=1):
            after = steps.flatten(1).gather(1, state * self.alphabet + (tokens - RESERVED).clamp(min=0))
            state = torch.where(tokens == SEP, 0, after)
            states.append(state)
        return torch.cat(states, dim=1)

    def _allowed(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Which letters may follow each scored position: [N, S, alphabet]."""
        steps = self._steps(inputs, cell)
        states = self._states(inputs, steps, cell).gather(1, positions)
        return (steps >= 0).gather(1, states[..., None].expand(-1, -1, self.alphabet))

    def right(self, answers: Tensor, batch: Batch, cell: Cell) -> Tensor:
        allowed = self._allowed(batch.inputs, batch.positions, cell)
        letters = answers - RESERVED
        is_letter = (letters >= 0) & (letters < self.alphabet)
        return (allowed.gather(2, letters.clamp(0, self.alphabet - 1)[..., None])[..., 0] & is_letter).double()

    def oracle(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        return self._allowed(inputs, positions, cell).int().argmax(dim=-1) + RESERVED

    @property
    def floors(self) -> Mapping[str, Solver]:
        return {"unigram": self._unigram, "bigram": self._bigram, "trigram": self._trigram}

    def _unigram(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """The most frequent letter so far."""
        return self._most_frequent(inputs, positions, 1)

    def _bigram(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """The most frequent letter after the latest token; where it is new, the most frequent letter."""
        return self._most_frequent(inputs, positions, 2)

    def _trigram(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """The most frequent letter after the latest two tokens; where they are new, as `bigram`."""
        return self._most_frequent(inputs, positions, 3)

    def _most_frequent(self, inputs: Tensor, positions: Tensor, order: int) -> Tensor:
        """The letter that followed the latest tokens most often, longer contexts before shorter: [N, S]."""
        index = torch.arange(inputs.shape[1], device=inputs.device)
        letters = torch.arange(RESERVED, RESERVED + self.alphabet, device=inputs.device)
        is_letter = (inputs[..., None] == letters).float()
        merit = torch.zeros(*positions.shape, self.alphabet, dtype=torch.float64, device=inputs.device)
        # places whose letter counts, having come by the scored position
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
        """Bits of the exits of the largest automaton, (exits + 1) / 2 a state: a letter and a state each."""
        exits = cell.load * (self.exits + 1) / 2
        return exits * (math.log2(self.alphabet) + math.log2(cell.load))

    def group_label(self, group: int) -> str:
        return octave_label(group, "position")

    def spell(self, token: int) -> str:
        code = token - self.first_exit
        if code >= 0:
            return f"{self.spell(RESERVED + code % self.alphabet)}>{code // self.alphabet}"
        letter = token - RESERVED
        if letter < 0:
            return super().spell(token)
        return chr(ord("a") + letter) if self.alphabet <= 26 else f"s{letter}"
