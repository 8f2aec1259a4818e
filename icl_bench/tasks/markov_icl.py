"""Markov chains in context: predict from counts of what followed what."""

import math
from collections.abc import Mapping

import torch
from pydantic import Field, model_validator
from torch import Tensor

from icl_bench import random
from icl_bench.tasks.base import (
    RESERVED,
    TASKS,
    Batch,
    Cell,
    Many,
    Solver,
    Task,
    check_loads,
    octave,
    octave_label,
)


@TASKS.register("markov-icl")
class MarkovIcl(Task):
    """Name the symbol that followed the current context most often so far.

    The sequence is drawn from a Markov chain of its own: for each context of `order` symbols the distribution of the
    next one is drawn uniformly from all distributions (Dirichlet(1)). Scored are the last `queries` positions. The
    target is the symbol that is most probable there given what was read, the mode of the Bayes predictive distribution
    (n + 1)/(N + alphabet): the most frequent successor of the last `order` symbols, among equals the one seen last, and
    the first letter where the context is new. What has to be carried are counts, alphabet^(order + 1) of them, rather
    than single facts. Naming the latest successor instead is the floor `latest-successor`; using one symbol less of
    context is `shorter-context`.

    Full size: `markov-icl:length=512,order=[1|2],alphabet=8,queries=64`; beyond it,
    `markov-icl:length=2048,order=[1|2],alphabet=8,queries=64`.

    Source: Edelman et al., "The evolution of statistical induction heads" (arXiv 2402.11004), which trains on the next
    symbol itself and measures the divergence from the Bayes prediction. Chance: 1/alphabet; see the floors.

    Budget: 1500 steps at 3e-3 on `markov-icl:order=1`, with softmax.

    >>> task = MarkovIcl(length=16, order=(1,), alphabet=3, queries=4)
    >>> batch = task.sample(random.row_keys(torch.tensor(1), torch.arange(1)), task.eval_cells[0])
    >>> " ".join(task.spell(token) for token in batch.inputs[0].tolist())
    'c c b b b b b b b b b a c c a c'
    >>> batch.positions.tolist(), " ".join(task.spell(token) for token in batch.targets[0].tolist())
    ([[12, 13, 14, 15]], 'b c c c')
    """

    load_name = "order"

    length: int = Field(default=64, ge=4)
    """Positions in a sequence, T."""
    order: Many = (1, 2)
    """Symbols of context that the next one depends on, each a cell trained and evaluated."""
    alphabet: int = Field(default=4, ge=2)
    """Number of symbols."""
    queries: int = Field(default=32, ge=1)
    """Scored positions, the last ones."""

    @model_validator(mode="after")
    def _check(self) -> "MarkovIcl":
        check_loads("order", self.order)
        if self.alphabet ** max(self.order) > 4096:
            raise ValueError(
                f"alphabet^order must be at most 4096 contexts; got {self.alphabet}^{max(self.order)}; "
                f"lower one of them"
            )
        if max(self.order) + self.queries > self.length:
            raise ValueError(
                f"queries must leave a context before the first: at most length - order = "
                f"{self.length - max(self.order)}; got {self.queries}; lower queries or raise length"
            )
        return self

    @property
    def vocabulary(self) -> int:
        return RESERVED + self.alphabet

    @property
    def eval_cells(self) -> tuple[Cell, ...]:
        return tuple(
            Cell(label=f"order={order}", length=self.length, load=order, scored=self.queries) for order in self.order
        )

    def sample(self, keys: Tensor, cell: Cell) -> Batch:
        inputs = self._chain(keys, cell) + RESERVED
        positions = torch.arange(cell.length - cell.scored, cell.length, device=keys.device)
        targets = self._successor(inputs, cell, cell.load, by_count=True)
        groups = octave(positions).expand_as(targets)
        return Batch(inputs, positions.expand_as(targets), targets, groups)

    def _chain(self, keys: Tensor, cell: Cell) -> Tensor:
        """Symbols of the chain, from a uniform context on: [N, T]."""
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
        """The most frequent, or the latest, successor of the last `order` symbols at the scored positions: [N, S].

        Every place is a number, context · alphabet + successor, then position; in sorted order the places of one
        context and successor stand together, and the search for a position counts those before it.
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

    @property
    def floors(self) -> Mapping[str, Solver]:
        return {"shorter-context": self._shorter_context, "latest-successor": self._latest_successor}

    def _shorter_context(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """The most frequent successor of one symbol less; at order 1, the most frequent symbol."""
        return self._successor(inputs, cell, cell.load - 1, by_count=True)

    def _latest_successor(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """What followed the context the last time."""
        return self._successor(inputs, cell, cell.load, by_count=False)

    def state_bits(self, cell: Cell) -> float:
        """Bits of the answers, one for each context; the counts that lead to them take more."""
        return float(self.alphabet**cell.load) * math.log2(self.alphabet)

    def group_label(self, group: int) -> str:
        return octave_label(group, "position")

    def spell(self, token: int) -> str:
        letter = token - RESERVED
        if letter < 0:
            return super().spell(token)
        return chr(ord("a") + letter) if self.alphabet <= 26 else f"s{letter}"
