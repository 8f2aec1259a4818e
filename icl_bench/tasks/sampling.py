"""Tensor functions that the tasks share: drawing examples, tagging scored positions, and solving."""

import torch
from torch import Tensor

from icl_bench import random
from icl_bench.tasks.vocabulary import NOISE, RESERVED

ROWS_AT_ONCE = 64
"""Rows whose choices are compared with each other at once, which takes memory in the square of their number."""


def octave(distance: Tensor) -> Tensor:
    """Return the octave of each distance >= 1: 0 for 1, 1 for 2-3, 2 for 4-7, and so on, without rounding."""
    powers = 2 ** torch.arange(1, 31, device=distance.device)
    return torch.bucketize(distance, powers, right=True)


def octave_label(group: int, unit: str) -> str:
    """Name the distances in an octave: "gap 4-7"."""
    low, high = 2**group, 2 ** (group + 1) - 1
    return f"{unit} {low}" if low == high else f"{unit} {low}-{high}"


def block_starts(keys: Tensor, purpose: str, count: int, width: int, length: int) -> Tensor:
    """Draw the starts of `count` blocks of `width` tokens within `length` tokens: keys [N] -> [N, count] int64.

    All ways to place the blocks without overlap are equally likely; starts are in increasing order.
    """
    slots = random.distinct(keys, purpose, count, length - count * (width - 1)).sort(dim=-1).values
    return slots + (width - 1) * torch.arange(count, device=keys.device)


def noise(keys: Tensor, length: int) -> Tensor:
    """Draw tokens of the noise alphabet: keys [N] -> [N, length]."""
    return random.integers(keys, "noise", length, NOISE) + RESERVED


def permutations(keys: Tensor, purpose: str, count: int, size: int) -> Tensor:
    """Draw `count` independent permutations of 0..size-1: keys [N] -> [N, count, size] int64."""
    bits = random.random_bits(keys, purpose, count * size).view(*keys.shape, count, size)
    return torch.argsort(bits, dim=-1, stable=True)


def distinct_ranks(draws: Tensor, size: Tensor | int) -> Tensor:
    """Turn each draw, uniform in (0, 1), into an integer in [0, size), all in a row different: [..., count].

    Integers come in random order. `size` is a number, or broadcasts against the draws without their last axis.
    """
    picked = torch.empty(draws.shape, dtype=torch.int64, device=draws.device)
    taken = picked[..., :0]
    for i in range(draws.shape[-1]):
        rank = (draws[..., i] * (size - i)).long()[..., None]
        # the rank among integers not taken, moved past those that are, which are in order
        rank = rank + (taken - torch.arange(i, device=draws.device) <= rank).sum(dim=-1, keepdim=True)
        picked[..., i : i + 1] = rank
        above = torch.cat([taken, torch.full_like(rank, 1 << 62)], dim=-1)
        below = torch.cat([torch.full_like(rank, -1), taken], dim=-1)
        taken = torch.minimum(above, torch.maximum(below, rank))
    return picked


def pick_by_position(choices: Tensor, positions: Tensor) -> Tensor:
    """Pick one of the choices [N, count] at each position [N, S], by the position modulo K."""
    return choices.gather(1, positions % choices.shape[1])


def most_frequent(choices: Tensor, allowed: Tensor) -> Tensor:
    """Return the most frequent of the allowed choices, the first of equals: [N, count], [N, S, count] -> [N, S]."""
    found = []
    for own, mask in zip(choices.split(ROWS_AT_ONCE), allowed.split(ROWS_AT_ONCE), strict=True):
        counts = mask.float() @ (own[:, :, None] == own[:, None]).float()
        found.append(own.gather(1, counts.masked_fill(~mask, 0).argmax(dim=-1)))
    return torch.cat(found)


def continue_latest(string: Tensor, contexts: Tensor) -> Tensor:
    """Continue contexts by the token after the latest occurrence of their longest suffix: induction without training.

    A suffix must be followed by another token of the string [N, L]; contexts are [N, S, order], their answers [N, S].
    A context of which not even the last token occurs gets the first token of the string.
    """
    base = int(max(string.max(), contexts.max())) + 1
    answers, codes, asked = string[:, :1].expand(contexts.shape[:2]), torch.zeros_like(string), 0
    for back in range(contexts.shape[2]):
        codes = codes + base**back * string.roll(back, dims=1)
        asked = asked + base**back * contexts[..., -1 - back]
        latest = find_latest(codes[:, back:-1], asked)
        answers = torch.where(latest < 0, answers, string.gather(1, (latest + back + 1).clamp(min=0)))
    return answers


def find_latest(codes: Tensor, asked: Tensor) -> Tensor:
    """Return the last place of each code, -1 for none: codes [N, L], asked [N, S] -> [N, S]."""
    length = codes.shape[1]
    ordered = (codes * length + torch.arange(length, device=codes.device)).sort(dim=1).values
    places = torch.searchsorted(ordered, asked * length + length - 1, right=True) - 1
    found = ordered.gather(1, places.clamp(min=0))
    return torch.where((places >= 0) & (found // length == asked), found % length, -1)


def first_match(asked: Tensor, listed: Tensor) -> Tensor:
    """Return the place of the first entry equal to each token asked, 0 for none: [N, S], [N, count] -> [N, S]."""
    return (asked[:, :, None] == listed[:, None]).int().argmax(dim=-1)


def first_true(mask: Tensor, count: int) -> Tensor:
    """Return the positions of the first `count` true entries, in order; no row has fewer: [N, T] -> [N, count]."""
    return torch.argsort((~mask).to(torch.int8), dim=-1, stable=True)[..., :count]


def latest_true(mask: Tensor) -> Tensor:
    """Return the position of the latest true entry at or before each position of the last axis, -1 for none."""
    index = torch.arange(mask.shape[-1], device=mask.device)
    return torch.where(mask, index, -1).cummax(dim=-1).values


def latest_same(codes: Tensor) -> Tensor:
    """Return the position of the latest earlier entry with the same code, -1 for none: [N, T] -> [N, T]."""
    ordered, order = codes.sort(dim=1, stable=True)
    before = torch.where(ordered[:, 1:] == ordered[:, :-1], order[:, :-1], -1)
    return torch.full_like(codes, -1).scatter(1, order[:, 1:], before)


def mode_so_far(tokens: Tensor, first: int, size: int) -> Tensor:
    """Return the most frequent of the tokens first..first+size-1 up to each position: [N, T] -> [N, T]."""
    alphabet = torch.arange(first, first + size, device=tokens.device)
    counts = (tokens[:, :, None] == alphabet).cumsum(dim=1, dtype=torch.int32)
    return counts.argmax(dim=-1) + first


def last_positions(keys: Tensor, count: int, length: int) -> Tensor:
    """Return the last `count` of `length` positions for every row: keys [N] -> [N, count] int64."""
    return torch.arange(length - count, length, device=keys.device).expand(len(keys), -1)
