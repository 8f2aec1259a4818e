"""Grammar: predict the next token of sentences of a context-free grammar."""

import functools
import math
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from icl_bench import random
from icl_bench.tasks.base import TASKS, Batch, DistributionTask, TrainingBudget
from icl_bench.tasks.cells import Axis, Cell, ExampleShape, IntegerList, check_at_most
from icl_bench.tasks.sampling import distinct_ranks, last_positions, latest_true, octave
from icl_bench.tasks.vocabulary import PAD, SEP, Alphabet, Vocabulary, letters

SYMBOLS = 3
"""Symbols of a level."""
WIDEST = 3
"""Most symbols on the right side of a rule; the fewest are 2."""
PAIRS, TRIPLES = SYMBOLS**2, SYMBOLS**3
COUNTED = 512
"""Examples of a fixed grammar from which its n-grams are counted."""
ROWS_AT_ONCE = 64
"""Rows whose distributions are followed at once, so that they fit a cache."""
LETTERS = "letters"


class Rules(NamedTuple):
    """The rules of one grammar, G = 1, or of one for each row, G = N."""

    codes: Tensor
    """Right side of each rule as a number, [G, depth, SYMBOLS, rules]; -1 for none. Level 0 has the symbol 0 alone."""

    @property
    def lengths(self) -> Tensor:
        """Number of symbols on the right side, 0 for no rule: [G, depth, SYMBOLS, rules]."""
        return torch.where(self.codes < 0, 0, torch.where(self.codes < PAIRS, 2, WIDEST))

    @property
    def children(self) -> Tensor:
        """Symbols on the right side, [G, depth, SYMBOLS, rules, WIDEST]; those beyond its length are unused."""
        pair = self.codes.clamp(min=0)
        triple = (self.codes - PAIRS).clamp(min=0)
        two = (pair // SYMBOLS, pair % SYMBOLS, torch.zeros_like(pair))
        three = (triple // SYMBOLS**2, triple // SYMBOLS % SYMBOLS, triple % SYMBOLS)
        found = [torch.where(self.codes < PAIRS, a, b) for a, b in zip(two, three, strict=True)]
        return torch.stack(found, dim=-1)


class Level(NamedTuple):
    """The places of one level of a derivation, one for each way to come there: [G, ways, rules, WIDEST]."""

    enter: Tensor
    """Probability that a symbol begins with this rule, in its first place; 0 in later places."""
    inner: Tensor
    """1 if the rule has another place after this one, else 0."""
    ends: Tensor
    """1 if this is the last place of the rule, else 0."""


@TASKS.register("grammar")
class Grammar(DistributionTask):
    """Predict the next token of sentences of a context-free grammar.

    A grammar has `depth` levels below its root, of 3 symbols each; those of the last are the letters. The root and each
    symbol above the letters have `rules` rules or one fewer, all different: two or three symbols of the next level. A
    sentence begins with the root and replaces every symbol by a uniformly drawn rule of it, down to letters. The input
    is `| sentence | sentence ...`, cut at `length` tokens, and the last `queries` tokens are scored, each named at the
    token before it. A model is trained on the token that comes; an answer counts by its probability, relative to that
    of the most probable token. The loss is that of the token that comes. Beside it, records have the divergence of the
    model's distribution from the exact one, and the share of its probability that lies on tokens which can come; both
    follow from the probabilities of all derivations of the sentence so far. Rank models by the divergence: in a deep
    grammar most tokens are known from a few before them, as the floors show. Groups are the number of the token in its
    sentence.

    There is one grammar, `seed`, which weights learn: `grammar=fixed`. With `grammar=fresh` each example has its own,
    which must be learnt from its sentences; the grammar is written after them, as rules of symbols 0 to 2, and no
    scored position sees it. The exact distribution is then that of a reader who knows the grammar.

    The budget is an estimate; after 600 updates softmax of two layers diverges by .115 nats.

    Full size: `grammar:depth=4,length=256` and `grammar:grammar=fresh,depth=3,length=256`.

    Source: Allen-Zhu, "Physics of Language Models: Part 4.1" (arXiv 2512.17351), task Lano, of depth 6 and 7, with one
    sentence to an example. Chance: 1/3; see the floors.

    >>> task = Grammar(depth=(2,), length=16)
    >>> batch = task.sample(random.row_keys(torch.tensor(1), torch.arange(1)), task.eval_cells[0])
    >>> " ".join(task.spell(token) for token in batch.inputs[0].tolist())
    '| c b a b | b b a c | c c a a c'
    >>> " ".join(task.spell(token) for token in batch.targets[0].tolist())
    'c b a b | b b a c | c c a a c a'
    """

    axes = (Axis("depth"),)
    load_name = "depth"
    budget = TrainingBudget(steps=1000, lr=5e-3, params="depth=3")
    picture = "depth=2,length=24"
    group_unit = "token"

    depth: IntegerList = (3,)
    """Numbers of levels below the root, each a cell that is trained and evaluated, at most 5."""
    length: int = Field(default=64, ge=2)
    """Tokens of sentences, with the bars before them."""
    rules: int = Field(default=4, ge=2, le=5)
    """Largest number of rules of a symbol; it is this or one less."""
    grammar: Literal["fixed", "fresh"] = "fixed"
    """One grammar for all examples, or a fresh one for each."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the one grammar."""
    queries: int | None = Field(default=None, ge=1)
    """Number of scored tokens, the last ones; all by default, and half of them with fresh grammars."""

    def check(self) -> None:
        check_at_most("queries", self.queries or 0, "length", self.length)
        check_at_most("depth", max(self.depth), "the deepest grammar that can be followed", 5)

    @property
    def fresh(self) -> bool:
        """True if each example has a grammar of its own."""
        return self.grammar == "fresh"

    @property
    def words(self) -> Vocabulary:
        written = {"rules": Alphabet(PAIRS + TRIPLES, spell_rule)} if self.fresh else {}
        return Vocabulary({LETTERS: letters(SYMBOLS), **written})

    def shape(self, sizes: tuple[int, ...]) -> ExampleShape:
        depth = sizes[0]
        written = (1 + SYMBOLS * (depth - 1)) * self.rules if self.fresh else 0
        scored = self.queries or (self.length // 2 if self.fresh else self.length)
        return ExampleShape(self.length + written, load=depth, scored=scored)

    def sample(self, keys: Tensor, cell: Cell) -> Batch:
        rules = self.draw_rules(keys, cell.load) if self.fresh else self._own_rules(keys, cell.load)
        tokens = self._sentences(keys, rules, cell.load)
        inputs = tokens[:, :-1]
        place = torch.arange(self.length, device=keys.device) - latest_true(inputs == SEP)
        whole = torch.cat([inputs, self._written(rules)], dim=1) if self.fresh else inputs.contiguous()
        positions = last_positions(keys, cell.scored, self.length)
        groups = octave(1 + place.gather(1, positions))
        return Batch(whole, positions, tokens.gather(1, positions + 1), groups)

    def draw_rules(self, keys: Tensor, depth: int) -> Rules:
        """Draw a grammar for each key: keys [G]."""
        count = depth * SYMBOLS
        pairs, triples = (
            distinct_ranks(random.uniform(keys, purpose, count * self.rules).view(-1, count, self.rules), size)
            for purpose, size in (("pairs", PAIRS), ("triples", TRIPLES))
        )
        longer = random.integers(keys, "longer", count * self.rules, 2).view(pairs.shape)
        fewer = random.integers(keys, "fewer", count, 2)[..., None]
        codes = torch.where(longer > 0, triples + PAIRS, pairs)
        there = torch.arange(self.rules, device=keys.device) < self.rules - fewer
        return Rules(torch.where(there, codes, -1).unflatten(1, (depth, SYMBOLS)))

    def _own_rules(self, keys: Tensor, depth: int) -> Rules:
        """Return the one grammar, G = 1; a grammar of another depth is another one."""
        own = torch.full((1,), random.stream("grammar", depth, self.seed), device=keys.device)
        return self.draw_rules(own, depth)

    def _sentences(self, keys: Tensor, rules: Rules, depth: int) -> Tensor:
        """Draw `length` + 1 tokens: [N, length + 1]."""
        rows, count = len(keys), -(-(self.length + 1) // (2**depth + 1))
        # a rule as one number: two bits for each symbol, and its length above them
        shift = 2 * torch.arange(WIDEST, device=keys.device)
        packed = (rules.children << shift).sum(dim=-1) + (rules.lengths << 2 * WIDEST)
        choices = (rules.lengths > 0).sum(dim=-1)
        symbols = torch.zeros(rows, count, dtype=torch.int64, device=keys.device)
        there = torch.ones_like(symbols, dtype=torch.bool)
        for level in range(depth):
            draws = random.uniform(keys, f"level {level}", symbols.shape[1])
            most = choices[:, level].expand(rows, -1).gather(1, symbols)
            rule = symbols * self.rules + (draws * most).long()
            side = packed[:, level].flatten(1).expand(rows, -1).gather(1, rule)[..., None]
            symbols = (side >> shift & 3).flatten(1)
            there = (there[..., None] & (shift < 2 * (side >> 2 * WIDEST))).flatten(1)
        bars = torch.ones_like(there[:, :count, None])
        shown = torch.cat([bars, there.view(rows, count, -1)], dim=-1).flatten(1)
        written = (symbols + self.words.first(LETTERS)).view(rows, count, -1)
        tokens = torch.cat([torch.full_like(written[..., :1], SEP), written], dim=-1).flatten(1)
        places = (shown.cumsum(dim=1) - 1).clamp(max=self.length + 1)
        kept = tokens.new_empty((rows, self.length + 2))  # the last column takes what is too much
        return kept.scatter_(1, torch.where(shown, places, self.length + 1), tokens)[:, :-1]

    def _written(self, rules: Rules) -> Tensor:
        """Write the rules as tokens, those of the root first: [N, (1 + 3 (depth - 1)) rules]."""
        codes = rules.codes.flatten(1, 2)
        codes = torch.cat([codes[:, :1], codes[:, SYMBOLS:]], dim=1).flatten(1)
        return torch.where(codes < 0, PAD, codes + self.words.first("rules"))

    def _rules(self, inputs: Tensor, cell: Cell) -> Rules:
        """Return the grammar of examples; a fresh one is read from what stands after the sentences."""
        if not self.fresh:
            return self._own_rules(inputs, cell.load)
        tokens = inputs[:, self.length :].unflatten(1, (-1, self.rules))
        codes = torch.where(tokens == PAD, -1, tokens - self.words.first("rules"))
        root = codes[:, :1].expand(-1, SYMBOLS, -1)
        return Rules(torch.cat([root, codes[:, 1:]], dim=1).unflatten(1, (cell.load, SYMBOLS)))

    def distribution(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        found = [self._follow(rows, self._rules(rows, cell)) for rows in inputs.split(ROWS_AT_ONCE)]
        asked = torch.cat(found).gather(1, positions[..., None].expand(-1, -1, 1 + SYMBOLS))
        every = asked.new_zeros((*positions.shape, self.vocabulary))
        every[..., SEP] = asked[..., 0]
        first = self.words.first(LETTERS)
        every[..., first : first + SYMBOLS] = asked[..., 1:]
        return every

    def _follow(self, inputs: Tensor, rules: Rules) -> Tensor:
        """Return the probabilities of a bar and of each letter after each token of sentences: [N, length, 4] float64.

        The mass of a place of the last level is the probability that the next token is in this place, with all places
        above it, given the tokens since the bar.
        """
        levels, emitted = list_places(rules)
        start = torch.ones_like(levels[0].enter[:, :, 0, 0])
        for level in levels:
            start = (start[..., None, None] * level.enter).flatten(1)
        start = start.expand(len(inputs), -1)
        mass, found = start, []
        numbers = inputs[:, : self.length] - self.words.first(LETTERS)
        spoken = functional.one_hot(emitted, SYMBOLS).double()  # [G, places, SYMBOLS]
        for number in numbers.split(1, dim=1):
            mass, bar = advance(mass * (emitted == number), levels)
            begins = number < 0
            mass, bar = torch.where(begins, start, mass), torch.where(begins, 0.0, bar)
            total = bar + mass.sum(dim=1, keepdim=True)
            mass, bar = mass / total, bar / total
            found.append(torch.cat([bar, (mass[:, None] @ spoken)[:, 0]], dim=1))
        return torch.stack(found, dim=1)

    def floor_bar(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the bar, which ends a sentence."""
        return torch.full_like(positions, SEP)

    def floor_most_frequent(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the most frequent token: of the example so far, or of the one grammar."""
        if self.fresh:
            return self._tokens(self._counts(self._numbers(inputs), positions, 0).argmax(dim=-1))
        return self._tokens(ngram_counts(self, cell, 1).sum(dim=0).argmax().to(inputs.device)).expand_as(positions)

    def floor_bigram(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the token that follows the latest token most often: in the example, or in the one grammar."""
        return self._continue(inputs, positions, cell, 1)

    def floor_four_gram(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the token that follows the latest three tokens most often, or fewer of them where these are new."""
        return self._continue(inputs, positions, cell, 3)

    def floor_five_gram(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the token that follows the latest four tokens most often, or fewer of them where these are new."""
        return self._continue(inputs, positions, cell, 4)

    def floor_seven_gram(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the token that follows the latest six tokens most often, or fewer of them where these are new."""
        return self._continue(inputs, positions, cell, 6)

    def _continue(self, inputs: Tensor, positions: Tensor, cell: Cell, order: int) -> Tensor:
        """Return the token that most often follows the latest tokens, longer contexts before shorter ones: [N, S]."""
        numbers = self._numbers(inputs)
        if self.fresh:
            merit = self._counts(numbers, positions, order)
        else:
            table = ngram_counts(self, cell, order).to(inputs.device)
            merit = table[latest_codes(numbers, order).gather(1, positions)]
        return self._tokens(merit.argmax(dim=-1))

    def _tokens(self, numbers: Tensor) -> Tensor:
        """Return the tokens of numbers, of which 0 is the bar."""
        return torch.where(numbers == 0, SEP, numbers - 1 + self.words.first(LETTERS))

    def _numbers(self, inputs: Tensor) -> Tensor:
        """Return the tokens of sentences as numbers, 0 for a bar: [N, length]."""
        strings = inputs[:, : self.length]
        return torch.where(strings == SEP, 0, strings - self.words.first(LETTERS) + 1)

    def _counts(self, numbers: Tensor, positions: Tensor, order: int) -> Tensor:
        """Weigh each next token by its counts in the example so far, after contexts of each length: [N, S, 4]."""
        follows = functional.one_hot(numbers, 1 + SYMBOLS).double()
        index = torch.arange(self.length, device=numbers.device)
        same = (index <= positions[..., None]) & (index > 0)
        merit = same.double() @ follows
        for back in range(1, order + 1):
            latest = numbers.gather(1, (positions - back + 1).clamp(min=0))
            same = same & (numbers.roll(back, dims=1)[:, None] == latest[..., None]) & (index >= back)
            same = same & (positions >= back - 1)[..., None]
            merit += (same.double() @ follows) * float(self.length) ** back  # a count is below the length
        return merit

    def state_bits(self, cell: Cell) -> float:
        """Return the bits of a path through a derivation: rule and place at each level; with those of fresh rules."""
        path = cell.load * math.log2(2.5 * (self.rules - 0.5))
        rules = (1 + SYMBOLS * (cell.load - 1)) * (self.rules - 0.5) * math.log2(PAIRS + TRIPLES)
        return path + rules * self.fresh


def latest_codes(numbers: Tensor, order: int) -> Tensor:
    """Return the latest `order` numbers up to each place as one number: [N, T] -> [N, T].

    What stands before the latest bar tells nothing of its sentence, and is read as further bars.
    """
    lags = torch.arange(order, device=numbers.device)
    latest = functional.pad(numbers, (order - 1, 0)).unfold(1, order, 1).flip(-1)
    place = torch.arange(numbers.shape[1], device=numbers.device) - latest_true(numbers == 0)
    return (torch.where(lags <= place[..., None], latest, 0) * (1 + SYMBOLS) ** lags).sum(dim=-1)


@functools.lru_cache
def counted_examples(task: Grammar, cell: Cell) -> tuple[Tensor, Tensor]:
    """Draw examples of a fixed grammar: their numbers [COUNTED, length], and what may follow each of them [.., 4]."""
    keys = random.row_keys(torch.tensor(random.stream("grammar", "counts", task.seed)), torch.arange(COUNTED))
    rules = task._own_rules(keys, cell.load)
    tokens = task._sentences(keys, rules, cell.load)
    return task._numbers(tokens), torch.cat([task._follow(rows, rules) for rows in tokens.split(ROWS_AT_ONCE)])


@functools.lru_cache
def ngram_counts(task: Grammar, cell: Cell, order: int) -> Tensor:
    """Weigh each next token by its probability after each context in examples of a fixed grammar: [4^order, 4].

    The exact distributions are summed, which are known better than counts of tokens. A code has the latest token last,
    in base 4, so that shorter contexts are the codes alike modulo a power of 4; longer contexts weigh more.
    """
    numbers, exact = counted_examples(task, cell)
    contexts = (1 + SYMBOLS) ** order
    codes = latest_codes(numbers, order).flatten()
    counts = exact.new_zeros((contexts, 1 + SYMBOLS)).index_add_(0, codes, exact.flatten(0, 1))
    merit, weight = torch.zeros_like(counts), 1.0
    for length in range(order + 1):
        shared = counts.view(-1, (1 + SYMBOLS) ** length, 1 + SYMBOLS).sum(dim=0)
        merit += weight * shared.repeat(contexts // len(shared), 1)
        weight *= float(len(codes))
    return merit / weight


def spell_rule(code: int) -> str:
    """Spell the right side of a rule by the numbers of its symbols."""
    size, rest = (2, code) if code < PAIRS else (WIDEST, code - PAIRS)
    return "".join(str(rest // SYMBOLS**place % SYMBOLS) for place in reversed(range(size)))


def list_places(rules: Rules) -> tuple[list[Level], Tensor]:
    """List the places of each level, by all ways to come there, and the letters of the last ones, [G, places]."""
    symbols, levels = torch.zeros_like(rules.codes[:, :1, 0, 0]), []
    place = torch.arange(WIDEST, device=symbols.device)
    for level in range(rules.codes.shape[1]):
        shape = (*symbols.shape, *rules.children.shape[3:])
        width = rules.lengths[:, level].gather(1, symbols[..., None].expand(shape[:3]))[..., None]
        share = (width > 0) / (width > 0).sum(dim=2, keepdim=True).double()
        levels.append(Level(share * (place == 0), (place + 1 < width).double(), (place + 1 == width).double()))
        symbols = rules.children[:, level].gather(1, symbols[..., None, None].expand(shape)).flatten(1)
    return levels, symbols


def advance(mass: Tensor, levels: list[Level]) -> tuple[Tensor, Tensor]:
    """Go on from the places of the last level: mass [N, places] -> mass of the next places, and of no place, [N, 1]."""
    moved = []
    for level in reversed(levels):
        here = mass.unflatten(1, level.ends.shape[1:])
        moved.append(functional.pad(here * level.inner, (1, 0))[..., :-1].flatten(1))
        mass = (here * level.ends).sum(dim=(2, 3))
    ahead = torch.zeros_like(mass)
    for level in levels:
        ahead = (ahead[..., None, None] * level.enter).flatten(1) + moved.pop()
    return ahead, mass
