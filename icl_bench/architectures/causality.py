"""Influence that a layer must not have: of later tokens on earlier outputs, and of one example on another.

Both are found by calling a layer twice, on inputs that agree where the outputs must agree.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from icl_bench import random

ROUNDING: Mapping[torch.dtype, float] = {
    torch.float64: 1e-13,
    torch.float32: 1e-5,
    torch.bfloat16: 0.05,
    torch.float16: 0.01,
}
"""Largest change, relative to the largest output, that may be rounding, as of a Fourier transform over the tokens."""
TOKENS_PER_CALL = 1 << 13
"""Tokens of the sequences of a call, each of which has its own place of change; 8 sequences at least."""
FEWEST_PLACES = 8

Layer = Callable[[Tensor], Tensor]
"""A layer in its parallel form: [..., B, T, C] -> [..., B, T, C]."""


class Influence(NamedTuple):
    """The largest change of outputs that should not change."""

    change: float
    """Change relative to the largest output; 0 where outputs are bit-equal, infinity where one is not finite."""
    output: int = 0
    """First position, from 0, of a changed output."""
    token: int = 0
    """Position of a token that this output reads."""


def later_influence(layer: Layer, x: Tensor, fresh: Tensor) -> Influence:
    """Return the largest change of an output by tokens after it: x and fresh are [..., B, T, C].

    All tokens of the first example from position t on are replaced by those of `fresh`: for every t where a call has
    room for as many sequences, else for places that are spread over the length.
    """
    length = x.shape[-2]
    places = spread_places(length)
    if not places:
        return Influence(0.0)
    before = torch.tensor(places, device=x.device)[:, None] > torch.arange(length, device=x.device)  # [places, T]
    changes = changes_of(layer, x, fresh, ~before).masked_fill(~before, 0.0)
    worst = int(changes.argmax()) // length
    found = float(changes.max())
    if found <= ROUNDING[x.dtype]:
        return Influence(found)
    first = int((changes[worst] > ROUNDING[x.dtype]).nonzero()[0])
    return Influence(found, first, token_read(layer, x, fresh, first, range(places[worst], length)))


def spread_places(length: int) -> list[int]:
    """Return the positions from which on tokens are replaced: all, or as many as a call has room for, spread out."""
    count = min(length - 1, max(FEWEST_PLACES, TOKENS_PER_CALL // length))
    # Places within a length are made odd, because a layer that works in chunks keeps their ends apart.
    odd = {1 + (length - 2) * i // max(1, count - 1) | 1 for i in range(count)}
    return sorted(({1, 2, length - 1} | odd if count < length - 1 else set(range(1, length))) & set(range(1, length)))


def token_read(layer: Layer, x: Tensor, fresh: Tensor, output: int, tokens: Sequence[int]) -> int:
    """Return the first of these positions whose token alone changes an output, else the first of all."""
    size = max(FEWEST_PLACES, TOKENS_PER_CALL // x.shape[-2])
    for begin in range(0, len(tokens), size):
        asked = tokens[begin : begin + size]
        alone = torch.zeros(len(asked), x.shape[-2], dtype=torch.bool, device=x.device)
        alone[range(len(asked)), asked] = True
        moved = (changes_of(layer, x, fresh, alone)[:, output] > ROUNDING[x.dtype]).nonzero()
        if len(moved):
            return asked[int(moved[0])]
    return tokens[0]


def changes_of(layer: Layer, x: Tensor, fresh: Tensor, replaced: Tensor) -> Tensor:
    """Return the change of each output, relative to the largest, where tokens are replaced: [N, T] -> [N, T].

    The sequences are copies of the first example, so that row n of both calls is computed alike.
    """
    shape = (*x.shape[:-3], len(replaced), *x.shape[-2:])
    same, other = (one[..., :1, :, :].expand(shape) for one in (x, fresh))
    base = call_alike(layer, same.contiguous())
    change = (call_alike(layer, torch.where(replaced[..., None], other, same)) - base).abs().amax(-1)
    relative = (change / base.abs().max().clamp(min=torch.finfo(base.dtype).tiny)).nan_to_num(nan=math.inf)
    return relative.flatten(0, -3).amax(0) if relative.dim() > 2 else relative


def earlier_influence(layer: Layer, x: Tensor, fresh: Tensor) -> Influence:
    """Return the change of the last output by the tokens before it, which only a state can carry."""
    length = x.shape[-2]
    if length < 2:
        return Influence(0.0)
    replaced = torch.ones(1, length, dtype=torch.bool, device=x.device)
    replaced[0, -1] = False
    change = float(changes_of(layer, x, fresh, replaced)[0, -1])
    if change <= ROUNDING[x.dtype]:
        return Influence(change)
    return Influence(change, length - 1, token_read(layer, x, fresh, length - 1, range(length - 1)))


def example_influence(layer: Layer, x: Tensor, fresh: Tensor) -> Influence:
    """Return the largest change of an example whose neighbours are replaced, with its first changed output.

    The first example, of the first member where there are members, is kept; the others become those of `fresh`.
    """
    first = (0,) * (x.dim() - 2)
    kept = fresh.clone()
    kept[first] = x[first]
    base, other = call_alike(layer, x), call_alike(layer, kept)
    change = (other[first] - base[first]).abs().amax(-1)
    found = relative(change, base)
    moved = (change > ROUNDING[x.dtype] * float(base.abs().max())).nonzero()
    return Influence(found, int(moved[0]) if len(moved) else 0)


def call_alike(layer: Layer, x: Tensor) -> Tensor:
    """Call a layer without gradients, and alike each time."""
    with torch.no_grad(), drawing_alike(x):
        return layer(x)


@contextmanager
def drawing_alike(x: Tensor) -> Iterator[None]:
    """Set the same global seed each time on the device of x, restored afterwards, so that dropout draws the same."""
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        torch.manual_seed(0)
        yield


def nudge(name: str, values: Tensor) -> Tensor:
    """Return a parameter's values moved off their start, where a factor of 0 may hide what the others do."""
    noise = random.normal_by_name(7, name, values.numel()).view(values.shape)
    return values + 0.1 * noise.to(values)


def relative(change: Tensor, outputs: Tensor) -> float:
    """Return the largest absolute change relative to the largest output; infinity where one is not finite."""
    most, scale = float(change.abs().max()), float(outputs.abs().max())
    if not math.isfinite(most + scale):
        return math.inf
    return most / scale if most else 0.0
