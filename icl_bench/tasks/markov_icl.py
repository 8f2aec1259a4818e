"""Markov chains in context: predict from counts of what followed what."""

import math

import torch
from pydantic import Field
from torch import Tensor

from icl_bench import random
from icl_bench.tasks.base import TASKS, Batch, Task, TrainingBudget
from icl_bench.tasks.cells import Axis, Cell, ExampleShape, IntegerList, check_at_most
from icl_bench.tasks.sampling import last_positions, octave
from icl_bench.tasks.vocabulary import RESERVED, Vocabulary, letters


@TASKS.register("markov-icl")
class MarkovIcl(Task):
    """Name the symbol that has followed the current context most often so far.

    Every example has a Markov chain of its own: for each context of `order` symbols, the distribution of the next
    symbol is drawn uniformly from all distributions (Dirichlet(1)). The last `queries` positions are scored. The target
    is the most probable next symbol given what was read, the mode of the Bayes predictive distribution
    (n + 1)/(N + alphabet), where n of the N occurrences of the context were followed by the symbol. This is the most
    frequent successor of the last `order` symbols; among equally frequent ones the latest; and the first letter for a
    new context. The state must carry counts, alphabet^(order + 1) of them, rather than single facts. The floor
    `latest-successor` names the latest successor instead; `shorter-context` uses a context of one symbol less.

    Full size: `markov-icl:length=512,order=[1|2],alphabet=8,queries=64`; beyond it,
    `markov-icl:length=2048,order=[1|2],alphabet=8,queries=64`.

    Source: Edelman et al., "The evolution of statistical induction heads" (arXiv 2402.11004), which trains on the next
    symbol itself and measures the divergence from the Bayes prediction. Chance: 1/alphabet; see the floors.

    >>> task = MarkovIcl(length=16, order=(1,), alphabet=3, queries=4)
    >>> batch = task.sample(random.row_keys(torch.tensor(1), torch.arange(1)), task.eval_cells[0])
    >>> " ".join(task.spell(token) for token in batch.inputs[0].tolist())
    'c c b b b b b b b b b a c c a c'
    >>> batch.positions.tolist(), " ".join(task.spell(token) for token in batch.targets[0].tolist())
    ([[12, 13, 14, 15]], 'b c c c')
    """

    axes = (Axis("order"),)
    load_name = "order"
    budget = TrainingBudget(steps=1500, lr=3e-3, params="order=1")
    picture = "length=24,order=1,alphabet=3,queries=8"
    by_rule = ("look-up-frequent",)
    group_unit = "position"

    length: int = Field(default=64, ge=4)
    """Positions in a sequence, T."""
    order: IntegerList = (1, 2)
    """Numbers of symbols that the next one depends on, each a cell that is trained and evaluated."""
    alphabet: int = Field(default=4, ge=2)
    """Number of symbols."""
    queries: int = Field(default=32, ge=1)
    """Number of scored positions, the last ones."""

    def check(self) -> None:
        longest = max(self.order)
        if self.alphabet**longest > 4096:
            raise ValueError(f"alphabet^order must be at most 4096; got {self.alphabet}^{longest}; lower one of them")
        check_at_most("order + queries", longest + self.queries, "length", self.length)

    @property
    def words(self) -> Vocabulary:
        return Vocabulary({"symbols": letters(self.alphabet)})

    def shape(self, sizes: tuple[int, ...]) -> ExampleShape:
        return ExampleShape(length=self.length, load=sizes[0], scored=self.queries)

    def sample(self, keys: Tensor, cell: Cell) -> Batch:
        inputs = self._chain(keys, cell) + RESERVED
        positions = last_positions(keys, cell.scored, cell.length)
        targets = self._successor(inputs, cell, cell.load, by_count=True)
        return Batch(inputs, positions, targets, octave(positions[:1]).expand_as(positions))

    def _chain(self, keys: Tensor, cell: Cell) -> Tensor:
        """Draw the symbols of the chain, beginning after a uniform context: [N, T]."""
        contexts = self.alphabet**cell.load
        # spacings of sorted uniform numbers are Dirichlet(1), with no rounding that differs between devices
        cuts = random.uniform(keys, "rows", contexts * (self.alphabet - 1)).view(len(keys), contexts, -1)
        cuts = cuts.sort(dim=-1).values
        draws = random.uniform(keys, "draws", cell.length)
        context = random.integers(keys, "first", 1, contexts)
        symbols = []
        for t in range(cell.length):
            row = cuts.gather(1, context[..., None].expand(-1, -1, self.alphabet - 1))[:, 0]
            symbols.append((row < draws[:, t : t + 1]).sum(dim=1, keepdim=True))
            context = (context * self.alphabet + symbols[-1]) % contexts
        return torch.cat(symbols, dim=1)

    def _successor(self, inputs: Tensor, cell: Cell, order: int, by_count: bool) -> Tensor:
        """Return the most frequent or the latest successor of the last `order` symbols at the scored positions: [N, S].

        Every occurrence is coded as a number, (context · alphabet + successor) · length + position. In sorted order the
        occurrences of one context and successor are neighbours, and a search for a position counts those before it.
        """
        length, scored, alphabet = cell.length, cell.scored, self.alphabet
        symbols = inputs - RESERVED
        scale = alphabet ** torch.arange(order, device=inputs.device)
        codes = (symbols.unfold(1, order, 1) * scale).sum(dim=-1) if order else torch.zeros_like(symbols)
        # codes[:, i] is of the context before position i + order
        index = torch.arange(order, length, device=inputs.device)
        places = (codes[:, : length - order] * alphabet + symbols[:, order:]) * length + index
        places = places.sort(dim=1).values
        asked = codes[:, -scored:, None] * alphabet + torch.arange(alphabet, device=inputs.device)
        until = torch.arange(length - scored, length, device=inputs.device)[:, None]
        begin = torch.searchsorted(places, (asked * length).flatten(1))
        end = torch.searchsorted(places, (asked * length + until).flatten(1), right=True)
        latest = torch.where(end > begin, places.gather(1, (end - 1).clamp(min=0)) % length + 1, 0)
        merit = latest + (length + 1) * (end - begin) if by_count else latest
        return merit.view(asked.shape).argmax(dim=-1) + RESERVED

    def oracle(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        return self._successor(inputs, cell, cell.load, by_count=True)

    def floor_shorter_context(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the most frequent successor of a context of one symbol less; at order 1, the most frequent symbol."""
        return self._successor(inputs, cell, cell.load - 1, by_count=True)

    def floor_latest_successor(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the symbol that followed the context the last time."""
        return self._successor(inputs, cell, cell.load, by_count=False)

    def state_bits(self, cell: Cell) -> float:
        """Return the bits of one answer for each context; the counts that lead to the answers take more."""
        return float(self.alphabet**cell.load) * math.log2(self.alphabet)
