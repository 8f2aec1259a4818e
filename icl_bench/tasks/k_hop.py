"""k-hop: follow the chain of earlier occurrences a given number of times."""

import functools
import math

import torch
from pydantic import Field
from torch import Tensor

from icl_bench import random
from icl_bench.tasks.base import TASKS, Batch, Task, TrainingBudget
from icl_bench.tasks.cells import Axis, Cell, ExampleShape, IntegerList, OptionalIntegers, check_at_most
from icl_bench.tasks.sampling import latest_same, mode_so_far, octave
from icl_bench.tasks.vocabulary import Alphabet, Vocabulary, letters

MISSING = 5
"""Answer where the chain ends early."""
MISSING_GROUP = 31
"""Group of the positions with that answer, above the octave of any sequence."""
COUNTED = 8000
"""Sequences in which the floor by counts learns what is likely."""


@TASKS.register("k-hop")
class KHop(Task):
    """Follow k hops: from a symbol to the symbol that came after its latest earlier occurrence.

    The first token says how many hops to make. A random sequence follows, in which no symbol follows itself. One hop
    leads from position j to 1 + (latest earlier position of the symbol at j). Every position of the sequence is scored:
    the target is the symbol that `hops` hops lead to, or `~` where some symbol on the way has no earlier occurrence.
    Each hop needs the result of the hop before. Neighbours give part of the answers away: in half of the cases one hop
    leads to the previous symbol, and two hops lead back to the current one, which the floors `other-symbol` and
    `current-symbol` measure; the counts of the symbols so far tell a little more (`by-counts`). Chains that end early
    (`~`, a group of its own) become more frequent with more hops, so judge a cell by its other groups, or against its
    own floor. Zero hops need no memory and are a control: the floor is 1 there.

    Full size: `k-hop:symbols=100,hops=[0|1|2|3|4|5|6|7|8],extrapolate=[9|10|11|12|13|14|15|16]`.

    Source: Sanford, Hsu and Telgarsky, "Transformers, parallel computation, and logarithmic depth" (arXiv 2402.09268).
    Chance: near 1/2 at the default alphabet of 4; the floors of each cell measure it.

    >>> task = KHop(symbols=12, hops=(1,))
    >>> batch = task.sample(random.row_keys(torch.tensor(1), torch.arange(1)), task.eval_cells[0])
    >>> " ".join(task.spell(token) for token in batch.inputs[0].tolist())
    'hops=1 b a c b a c b c d c b a'
    >>> " ".join(task.spell(token) for token in batch.targets[0].tolist())
    '~ ~ ~ a c b a b ~ d c c'
    """

    axes = (Axis("hops", lowest=0, extrapolated=True),)
    load_name = "hops"
    budget = TrainingBudget(steps=300, lr=5e-3, params="hops=1")
    picture = "symbols=16,hops=1"
    by_rule = ("look-up-latest", "look-up-first", "look-up-frequent")

    symbols: int = Field(default=63, ge=2)
    """Length of the sequence after the number of hops."""
    hops: IntegerList = (1, 2, 4)
    """Numbers of hops, each a cell that is trained and evaluated."""
    extrapolate: OptionalIntegers = ()
    """Numbers of hops that are evaluated but not trained."""
    alphabet: int = Field(default=4, ge=3)
    """Number of symbols."""

    def check(self) -> None:
        check_at_most("hops + 1", self._most_hops + 1, "symbols", self.symbols)

    @property
    def _most_hops(self) -> int:
        return max(*self.hops, *self.extrapolate, 0)

    @property
    def words(self) -> Vocabulary:
        counts = Alphabet(self._most_hops + 1, lambda hops: f"hops={hops}")
        return Vocabulary({"symbols": letters(self.alphabet), "counts": counts}, special={MISSING: "~"})

    def shape(self, sizes: tuple[int, ...]) -> ExampleShape:
        return ExampleShape(length=self.symbols + 1, load=sizes[0], scored=self.symbols)

    def sample(self, keys: Tensor, cell: Cell) -> Batch:
        first = random.integers(keys, "first", 1, self.alphabet)
        steps = 1 + random.integers(keys, "steps", self.symbols - 1, self.alphabet - 1)
        symbols = torch.cat([first, steps], dim=1).cumsum(dim=1) % self.alphabet
        reached, targets = self._follow(symbols, cell.load)
        places = torch.arange(self.symbols, device=keys.device)
        groups = torch.where(targets == MISSING, MISSING_GROUP, octave((places - reached).clamp(min=1)))
        count = torch.full((keys.shape[0], 1), self.words.first("counts") + cell.load, device=keys.device)
        inputs = torch.cat([count, symbols + self.words.first("symbols")], dim=1)
        return Batch(inputs, (places + 1).expand_as(targets), targets, groups)

    def _follow(self, symbols: Tensor, hops: int) -> tuple[Tensor, Tensor]:
        """Return the position reached, one past the end where the chain breaks, and its token: [N, symbols] each."""
        rows, size = symbols.shape
        earlier = latest_same(symbols)
        step = torch.where(earlier < 0, size, earlier + 1)
        step = torch.cat([step, torch.full_like(step[:, :1], size)], dim=1)
        reached = torch.arange(size, device=symbols.device).expand(rows, size)
        for _ in range(hops):
            reached = step.gather(1, reached)
        named = torch.cat([symbols + self.words.first("symbols"), torch.full_like(symbols[:, :1], MISSING)], dim=1)
        return reached, named.gather(1, reached)

    def oracle(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        return self._follow(inputs[:, 1:] - self.words.first("symbols"), cell.load)[1].gather(1, positions - 1)

    def floor_missing(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name `~` everywhere."""
        return torch.full_like(positions, MISSING)

    def floor_most_frequent(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the most frequent symbol so far."""
        return mode_so_far(inputs, self.words.first("symbols"), self.alphabet).gather(1, positions)

    def floor_current_symbol(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the current symbol, or `~` at positions where `~` is more likely."""
        return self._early_missing(inputs.gather(1, positions), positions, cell)

    def floor_other_symbol(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the previous symbol, which is never the current one, or `~` at positions where `~` is more likely."""
        return self._early_missing(inputs.gather(1, (positions - 1).clamp(min=1)), positions, cell)

    def floor_latest_four(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Follow the chain where it stays within the latest four symbols; else name the current or the previous one."""
        reached, answers = self._follow(inputs[:, 1:] - self.words.first("symbols"), cell.load)
        near = (reached >= torch.arange(self.symbols, device=inputs.device) - 3) & (answers != MISSING)
        otherwise = self.floor_other_symbol if cell.load == 1 else self.floor_current_symbol
        return torch.where(
            near.gather(1, positions - 1), answers.gather(1, positions - 1), otherwise(inputs, positions, cell)
        )

    def floor_likely_of_four(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the current symbol, but after `z x y x` the z, the likeliest of the latest four after four hops."""
        now, one, two, three = (inputs.gather(1, (positions - back).clamp(min=1)) for back in range(4))
        return torch.where((now == two) & (one != three), three, now)

    def floor_same_symbol(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the current symbol everywhere."""
        return inputs.gather(1, positions)

    def floor_two_before(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the symbol two positions before."""
        return inputs.gather(1, (positions - 2).clamp(min=1))

    def floor_by_counts(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name `~`, the current symbol or the most frequent other one, by position and count of the current symbol."""
        guesses, counts = self._guesses(inputs)
        table = likeliest_guesses(self, cell).to(inputs.device)
        likeliest = table[torch.arange(self.symbols, device=inputs.device), counts]
        return guesses.gather(0, likeliest[None])[0].gather(1, positions - 1)

    def _guesses(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return three guesses, `~`, the current symbol and the most frequent other one so far, [3, N, symbols].

        Also return how often the current symbol has occurred, itself included, [N, symbols].
        """
        symbols = inputs[:, 1:, None] - self.words.first("symbols")
        so_far = (symbols == torch.arange(self.alphabet, device=inputs.device)).cumsum(dim=1, dtype=torch.int32)
        others = so_far.scatter(2, symbols, -1).argmax(dim=2) + self.words.first("symbols")
        guesses = torch.stack([torch.full_like(others, MISSING), inputs[:, 1:], others])
        return guesses, so_far.gather(2, symbols)[..., 0].long()

    def _early_missing(self, answers: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Replace answers by `~` at early positions, from which k hops mostly lead out of the sequence.

        A hop goes back alphabet - 1 positions on average, with variance (alphabet - 1)(alphabet - 2). At a position
        two thirds of a standard deviation beyond the mean of k hops, a quarter of the chains end early.
        """
        back = self.alphabet - 1
        reach = cell.load * back + 2 / 3 * math.sqrt(cell.load * back * (back - 1))
        return torch.where(positions <= reach, MISSING, answers)

    def state_bits(self, cell: Cell) -> float:
        """Return the bits of a sufficient table and of the hop count.

        The table has, for each symbol, the symbols that 0, 1, ..., k - 1 hops lead to from after its last occurrence.
        """
        return cell.load * self.alphabet * math.log2(self.alphabet) + math.log2(self._most_hops + 1)

    def group_label(self, group: int) -> str:
        return "missing" if group == MISSING_GROUP else super().group_label(group)


@functools.lru_cache
def likeliest_guesses(task: KHop, cell: Cell) -> Tensor:
    """Return the number of the guess that is most often right, by position and count: [symbols, symbols + 1]."""
    keys = random.row_keys(torch.tensor(random.stream("k-hop", "counts")), torch.arange(COUNTED))
    batch = task.sample(keys, cell)
    guesses, counts = task._guesses(batch.inputs)
    hits = (guesses == batch.targets).double()
    codes = torch.arange(task.symbols) * (task.symbols + 1) + counts
    found = hits.new_zeros(len(hits), task.symbols * (task.symbols + 1))
    found.scatter_add_(1, codes.flatten().expand(len(hits), -1), hits.flatten(1))
    return found.argmax(dim=0).view(task.symbols, -1)
