"""Shallow solvers: rules that know nothing of a task, see its inputs, and count on training examples.

A solver is fitted to training examples of a cell, and returns a rule, a function of inputs [N, T] and positions [N, S]
that returns answers [N, S]. A rule sees the tokens up to the position that it answers. Solvers with a few numbers of
state are `SMALL`; those that look up in the whole context are `LOOK_UPS`. Tasks of vectors have `FOR_VECTORS`.

The look-ups are the object filter of FactWorld, where a task must stand above it.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from icl_bench.tasks import Batch
from icl_bench.tasks.sampling import latest_true, most_frequent

Rule = Callable[[Tensor, Tensor], Tensor]
"""A function of inputs [N, T] and positions [N, S] that returns answers [N, S]."""
Shallow = Callable[[Batch, int], Rule]
"""A function of training examples of a cell and of the number of token ids that returns a rule."""

LONGEST_NGRAM = 4
"""Tokens of the longest context that is counted."""
LEAST_SEEN = 2
"""Occurrences in training from which on a context is used."""
PLACED = 2_000
"""Training examples by which places and distances are chosen."""
RECENT = 4
"""Vectors before an answer that the linear rule reads."""


def fit_majority(seen: Batch, size: int) -> Rule:
    """Name the most frequent target of training."""
    majority = seen.targets.flatten().mode().values
    return lambda inputs, positions: majority.expand(positions.shape)


def fit_positional(seen: Batch, size: int) -> Rule:
    """Name the most frequent target of training at the same position."""
    counts = torch.zeros(seen.inputs.shape[1], size)
    ones = torch.ones(seen.targets.numel())
    counts.index_put_((seen.positions.flatten(), seen.targets.flatten()), ones, accumulate=True)
    table = counts.argmax(dim=1)
    return lambda inputs, positions: table[positions]


def fit_copy_last(seen: Batch, size: int) -> Rule:
    """Name the token at the position itself."""
    return lambda inputs, positions: inputs.gather(1, positions)


def fit_copy_distance(seen: Batch, size: int) -> Rule:
    """Name the token at the distance before the position at which most targets of training stand."""
    inputs, positions, targets = (part[:PLACED] for part in seen[:3])
    found = [
        int(((inputs.gather(1, (positions - back).clamp(min=0)) == targets) & (positions >= back)).sum())
        for back in range(int(positions.max()) + 1)
    ]
    distance = max(range(len(found)), key=found.__getitem__)
    return lambda inputs, positions: inputs.gather(1, (positions - distance).clamp(min=0))


def fit_copy_place(seen: Batch, size: int) -> Rule:
    """Name, for the r-th question of an example, the token at the place at which most of its targets stand."""
    inputs, positions, targets = (part[:PLACED] for part in seen[:3])
    places = []
    for order in range(positions.shape[1]):
        agreeing = (inputs == targets[:, order, None]).sum(dim=0)
        places.append(int(agreeing[: int(positions[:, order].min()) + 1].argmax()))
    chosen = torch.tensor(places)
    return lambda inputs, positions: inputs.gather(1, chosen.expand(positions.shape))


def fit_latest(seen: Batch, size: int) -> Rule:
    """Name the latest earlier token that is an answer somewhere in training."""
    return nth_latest(seen, size, 1)


def fit_second_latest(seen: Batch, size: int) -> Rule:
    """Name the one before the latest earlier token that is an answer somewhere in training."""
    return nth_latest(seen, size, 2)


def nth_latest(seen: Batch, size: int, number: int) -> Rule:
    """Return the rule that names the n-th latest earlier token that is an answer somewhere in training."""
    possible, majority = answer_tokens(seen, size), fit_majority(seen, size)

    def rule(inputs: Tensor, positions: Tensor) -> Tensor:
        latest = latest_true(possible[inputs])
        place = positions
        for _ in range(number):
            place = torch.where(place > 0, latest.gather(1, (place - 1).clamp(min=0)), -1)
        return torch.where(place < 0, majority(inputs, positions), inputs.gather(1, place.clamp(min=0)))

    return rule


def fit_first(seen: Batch, size: int) -> Rule:
    """Name the first token that is an answer somewhere in training."""
    possible, majority = answer_tokens(seen, size), fit_majority(seen, size)

    def rule(inputs: Tensor, positions: Tensor) -> Tensor:
        known = possible[inputs]
        place = known.int().argmax(dim=1, keepdim=True)
        found = known.any(dim=1, keepdim=True) & (place <= positions)
        return torch.where(found, inputs.gather(1, place), majority(inputs, positions))

    return rule


def fit_frequent(seen: Batch, size: int) -> Rule:
    """Name the most frequent answer token of the context; of equals, the most frequent target of training."""
    return by_frequency(seen, size, sign=1)


def fit_rare(seen: Batch, size: int) -> Rule:
    """Name the least frequent answer token of the context; of equals, the most frequent target of training."""
    return by_frequency(seen, size, sign=-1)


def by_frequency(seen: Batch, size: int, sign: int) -> Rule:
    """Return the rule that names the answer token of most occurrences up to the position, or of fewest."""
    tokens, counts = seen.targets.unique(return_counts=True)
    tokens = tokens[counts.argsort(descending=True, stable=True)]

    def rule(inputs: Tensor, positions: Tensor) -> Tensor:
        so_far = (inputs[:, :, None] == tokens).cumsum(dim=1, dtype=torch.int32)
        here = so_far.gather(1, positions[:, :, None].expand(-1, -1, len(tokens)))
        named: Tensor = tokens[(sign * here).argmax(dim=-1)]
        return named

    return rule


def fit_ngrams(seen: Batch, size: int) -> Rule:
    """Name the most frequent target of training after the last tokens, the longest context that training has twice."""
    tables = [tabulate_contexts(seen, size, order) for order in range(1, LONGEST_NGRAM + 1)]
    majority = fit_majority(seen, size)

    def rule(inputs: Tensor, positions: Tensor) -> Tensor:
        answers: Tensor = majority(inputs, positions)
        for order, (contexts, targets) in enumerate(tables, start=1):
            asked = ngram_codes(inputs, positions, size, order)
            place: Tensor = torch.searchsorted(contexts, asked).clamp(max=len(contexts) - 1)
            answers = torch.where(contexts[place] == asked, targets[place], answers)
        return answers

    return rule


def tabulate_contexts(seen: Batch, size: int, order: int) -> tuple[Tensor, Tensor]:
    """Return the contexts of one length that training has twice, in order, and the most frequent target of each.

    A context that no example has stands at the end, so that there is one.
    """
    codes = ngram_codes(seen.inputs, seen.positions, size, order).flatten()
    contexts, numbers, occurrences = codes.unique(return_inverse=True, return_counts=True)
    pairs, counts = (numbers * size + seen.targets.flatten()).unique(return_counts=True)
    order_of_counts = counts.argsort(stable=True)
    best = torch.zeros_like(contexts)
    best[pairs[order_of_counts] // size] = pairs[order_of_counts] % size  # the last write, of most counts, stays
    kept = occurrences >= LEAST_SEEN
    ends = (contexts.new_full((1,), torch.iinfo(torch.int64).max), best.new_zeros(1))
    return torch.cat([contexts[kept], ends[0]]), torch.cat([best[kept], ends[1]])


def ngram_codes(inputs: Tensor, positions: Tensor, size: int, order: int) -> Tensor:
    """Return a number for the last tokens up to each position, [N, S]; places before the first token count as 0."""
    codes = torch.zeros_like(positions)
    for back in range(order):
        tokens = inputs.gather(1, (positions - back).clamp(min=0)) + 1
        codes = codes * (size + 1) + torch.where(positions >= back, tokens, 0)
    return codes


def fit_look_up_latest(seen: Batch, size: int) -> Rule:
    """Name the answer token that follows the latest earlier occurrence of the last token."""
    return look_up(seen, size, "latest")


def fit_look_up_first(seen: Batch, size: int) -> Rule:
    """Name the answer token that follows the first occurrence of the last token."""
    return look_up(seen, size, "first")


def fit_look_up_frequent(seen: Batch, size: int) -> Rule:
    """Name the answer token that most often follows occurrences of the last token."""
    return look_up(seen, size, "frequent")


def look_up(seen: Batch, size: int, choice: str) -> Rule:
    """Return the rule that names an answer token after earlier occurrences of the last token, else the latest one."""
    possible, otherwise = answer_tokens(seen, size), fit_latest(seen, size)

    def rule(inputs: Tensor, positions: Tensor) -> Tensor:
        length = inputs.shape[1]
        # place of the first answer token after each place: the latest one, read backwards
        backwards = latest_true(possible[inputs].flip(1)).flip(1)
        after = torch.where(backwards < 0, length, length - 1 - backwards).roll(-1, dims=1)
        after[:, -1] = length
        same = inputs[:, None] == inputs.gather(1, positions)[:, :, None]
        found = same & (after[:, None] < positions[:, :, None])
        following = inputs.gather(1, after.clamp(max=length - 1))
        if choice == "frequent":
            answers = most_frequent(following, found)
        else:
            order = torch.arange(length) if choice == "latest" else -torch.arange(length)
            place = torch.where(found, order, -length).argmax(dim=-1)
            answers = following.gather(1, place)
        return torch.where(found.any(dim=-1), answers, otherwise(inputs, positions))

    return rule


def answer_tokens(seen: Batch, size: int) -> Tensor:
    """Mark the token ids that are targets in training: [size] bool."""
    return torch.zeros(size, dtype=torch.bool).index_fill(0, seen.targets.unique(), True)


def fit_mean(seen: Batch, size: int) -> Rule:
    """Answer the mean target of training."""
    mean = seen.targets.double().mean(dim=(0, 1))
    return lambda inputs, positions: mean.expand(*positions.shape, -1)


def fit_positional_mean(seen: Batch, size: int) -> Rule:
    """Answer the mean target of training at the same position."""
    sums = torch.zeros(seen.inputs.shape[1], seen.targets.shape[-1], dtype=torch.float64)
    sums.index_add_(0, seen.positions.flatten(), seen.targets.double().flatten(0, 1))
    means = sums / torch.bincount(seen.positions.flatten(), minlength=len(sums)).clamp(min=1)[:, None]
    return lambda inputs, positions: means[positions]


def fit_linear(seen: Batch, size: int) -> Rule:
    """Answer the best linear function, on training, of the last four vectors, the first and the mean so far."""
    features = recent_vectors(seen.inputs, seen.positions).flatten(0, 1)
    weights = torch.linalg.lstsq(features, seen.targets.double().flatten(0, 1), driver="gelsd").solution
    return lambda inputs, positions: recent_vectors(inputs, positions) @ weights


def recent_vectors(inputs: Tensor, positions: Tensor) -> Tensor:
    """Return the last vectors up to each position, the first one, the mean so far and 1: [N, S, features]."""
    vectors = inputs.double()
    counts = torch.arange(1, vectors.shape[1] + 1, dtype=torch.float64)[:, None]
    means = vectors.cumsum(dim=1) / counts
    at = lambda source, places: source.gather(1, places[..., None].expand(-1, -1, source.shape[-1]))  # noqa: E731
    recent = [at(vectors, (positions - back).clamp(min=0)) for back in range(RECENT)]
    first = vectors[:, :1].expand_as(recent[0])
    return torch.cat([*recent, first, at(means, positions), torch.ones_like(first[..., :1])], dim=-1)


SMALL: Mapping[str, Shallow] = {
    "majority": fit_majority,
    "positional": fit_positional,
    "copy-last": fit_copy_last,
    "copy-distance": fit_copy_distance,
    "copy-place": fit_copy_place,
    "latest": fit_latest,
    "second-latest": fit_second_latest,
    "first": fit_first,
    "frequent": fit_frequent,
    "rare": fit_rare,
    "n-gram": fit_ngrams,
}
"""Solvers of token tasks that keep a few tokens or counts, by name."""
LOOK_UPS: Mapping[str, Shallow] = {
    "look-up-latest": fit_look_up_latest,
    "look-up-first": fit_look_up_first,
    "look-up-frequent": fit_look_up_frequent,
}
"""Solvers of token tasks that look up the last token in the whole context, by name."""
FOR_TOKENS: Mapping[str, Shallow] = {**SMALL, **LOOK_UPS}
"""All solvers of token tasks, by name."""
FOR_VECTORS: Mapping[str, Shallow] = {
    "mean": fit_mean,
    "positional-mean": fit_positional_mean,
    "linear": fit_linear,
}
"""Solvers of tasks of vectors, by name."""
