"""Counter-based random bits: the same key gives the same bits on every device and in every version of torch.

A stream is a 64-bit number, the hash of a name (task, seed, split, ...). A row of a stream, one example of a task, has
a key of its own: `row_keys(stream, index)`. Bits are a function of (key, purpose, counter), which
`icl_bench.kernels.fleet.random_bits` defines.

Keys of one stream never collide, because the map from index to key is a bijection. Two keys of different streams
collide with probability 2^-64.
"""

import functools
import hashlib
import math
import statistics

import torch
from torch import Tensor

from icl_bench.kernels.fleet.random_bits import (
    GOLDEN,
    SMALLEST_CIPHER,
    draw_bits,
    draw_distinct,
    draw_integers,
    draw_uniform,
    mix,
    signed,
    stable_order,
)

GAUSSIAN_VALUES = 2**16
"""Number of different values of `gaussian`; each is a multiple of 1 / GAUSSIAN_VALUES."""


def stream(*parts: str | int) -> int:
    """Hash the parts of a name to the number of a stream, a signed 64-bit integer.

    >>> stream("assoc-recall", 1, "train") == stream("assoc-recall", 1, "test")
    False
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        text = f"{type(part).__name__}:{part}".encode()
        digest.update(len(text).to_bytes(4, "big") + text)
    return signed(int.from_bytes(digest.digest(), "big"))


def row_keys(streams: Tensor, index: Tensor) -> Tensor:
    """Return the keys of rows; streams and index are int64 and broadcast against each other."""
    return mix(streams + (index + 1) * signed(GOLDEN))


def random_bits(keys: Tensor, purpose: str, count: int) -> Tensor:
    """Draw 64 random bits for each of `count` counters: keys [...] int64 -> [..., count] int64."""
    return draw_bits(keys, stream("purpose", purpose), count)


def integers(keys: Tensor, purpose: str, count: int, high: int) -> Tensor:
    """Draw uniform integers in [0, high), high < 2^31: keys [...] -> [..., count] int64."""
    return draw_integers(keys, stream("purpose", purpose), count, high)


def uniform(keys: Tensor, purpose: str, count: int) -> Tensor:
    """Draw uniform float64 numbers in (0, 1), never 0: keys [...] -> [..., count]."""
    return draw_uniform(keys, stream("purpose", purpose), count)


def permutation(keys: Tensor, purpose: str, size: int) -> Tensor:
    """Draw uniform permutations of 0..size-1: keys [...] -> [..., size] int64."""
    return stable_order(random_bits(keys, purpose, size))


def distinct(keys: Tensor, purpose: str, count: int, high: int) -> Tensor:
    """Draw `count` different integers in [0, high), in random order: keys [...] -> [..., count] int64.

    A small range is shuffled. For a large one, where a shuffle needs `high` numbers a row, a cipher maps 0..count-1.
    """
    if high < SMALLEST_CIPHER:
        return permutation(keys, purpose, high)[..., :count]
    return draw_distinct(keys, stream("cipher", purpose), count, high)


def gaussian(keys: Tensor, purpose: str, count: int) -> Tensor:
    """Draw standard normal float64 numbers, bit-equal on every device: keys [...] -> [..., count].

    A number is one of 65,536 equally likely values: the quantiles of the normal distribution at the middles of 65,536
    equal parts of (0, 1), rounded to multiples of 2^-16. No value is 0, the variance is 0.99998, the largest value is
    4.32. Each value is exact in float32, and sums of products are exact in float64, in any order, up to about 2^16
    terms.
    """
    bits = random_bits(keys, purpose, -(-count // 4))
    index = bits.view(torch.int16)[..., :count].to(torch.int32) + 2**15  # four values a word, the lowest bits first
    return quantiles(keys.device).index_select(0, index.flatten()).view(index.shape)


@functools.cache
def quantiles(device: torch.device) -> Tensor:
    """Return the values of `gaussian`, [65536] float64.

    No quantile is so close to a tie that libraries could round it differently. The values stay on the device, since a
    captured training step must not contain a copy to it.
    """
    inverse, count = statistics.NormalDist().inv_cdf, GAUSSIAN_VALUES
    values = [round(inverse((i + 0.5) / count) * count) / count for i in range(count)]
    return torch.tensor(values, device=device, dtype=torch.float64)


def normal_by_name(seed: int, name: str, count: int) -> Tensor:
    """Draw `count` standard normal float64 numbers on the CPU from the seed of a run and the name of a parameter.

    The method is that of Box and Muller.
    """
    keys = torch.tensor(stream("init", seed, name))
    half = -(-count // 2)
    radius = uniform(keys, "radius", half).log().mul(-2).sqrt()
    angle = uniform(keys, "angle", half).mul(2 * math.pi)
    return torch.cat([radius * angle.cos(), radius * angle.sin()])[:count]
