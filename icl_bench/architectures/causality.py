"""Influence that a layer must not have: of later tokens on earlier outputs, and of one example on another.

Both are found by calling a layer twice, on inputs that agree where the outputs must agree.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from icl_bench import random

ROUNDING: Mapping[torch.dtype, float] = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 0.05}
"""Largest change, relative to the largest output, that may be rounding, as of a Fourier transform over the tokens."""

Layer = Callable[[Tensor], Tensor]
"""A layer in its parallel form: [..., B, T, C] -> [..., B, T, C]."""


def later_influence(layer: Layer, x: Tensor, fresh: Tensor) -> float:
    """Return the largest change of an output, relative to the largest output, by tokens after it.

    All tokens from position t on are replaced by those of `fresh`, for a few t; 0 says bit-equal.
    """
    base, length = call_alike(layer, x), x.shape[-2]
    changes = [0.0]
    # The middle is made odd, because a layer that works in chunks keeps their ends apart.
    for t in sorted({1, length // 2 | 1, length - 1} & set(range(1, length))):
        other = call_alike(layer, torch.cat([x[..., :t, :], fresh[..., t:, :]], dim=-2))
        changes.append(relative(other[..., :t, :] - base[..., :t, :], base))
    return max(changes)


def example_influence(layer: Layer, x: Tensor, fresh: Tensor) -> float:
    """Return the largest change, relative to the largest output, of an example whose neighbours are replaced.

    The first example, of the first member where there are members, is kept; the others become those of `fresh`.
    """
    first = (0,) * (x.dim() - 2)
    kept = fresh.clone()
    kept[first] = x[first]
    base, other = call_alike(layer, x), call_alike(layer, kept)
    return relative(other[first] - base[first], base)


def call_alike(layer: Layer, x: Tensor) -> Tensor:
    """Call a layer under the same global seed each time, restored afterwards, so that dropout draws the same."""
    with torch.no_grad(), torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        torch.manual_seed(0)
        return layer(x)


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
