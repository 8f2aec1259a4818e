"""Counter-based random bits: the same key gives the same bits, on any device and in any version of torch.

A stream is a 64-bit number hashed from its name (task, seed, split, ...). A row of a stream, one example of a task,
has a key of its own: `row_keys(stream, index)`. Bits are then a function of (key, purpose, counter), in 64-bit
integer arithmetic that wraps alike on CPU and CUDA. The mixing function is the finaliser of SplitMix64
(Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).

Row keys of one stream never collide (the map from index to key is a bijection); keys of two streams collide with
probability 2^-64 a pair.

On a GPU, where Triton is installed, `icl_bench.kernels.fleet.triton.random_bits` makes the same bits in one pass.
"""

import functools
import hashlib
import math
import statistics

import torch
from torch import Tensor

from icl_bench.kernels.backends import has_triton

GOLDEN = 0x9E3779B97F4A7C15
FEISTEL_ROUNDS = 6
SMALLEST_CIPHER = 512
"""The smallest range that `encipher` takes: in smaller ones six rounds leave two values far from independent."""
GAUSSIAN_VALUES = 2**16
"""Number of the values of `gaussian`, and parts of 1 of which they are multiples."""


def signed(value: int) -> int:
    """The two's complement reading of a 64-bit number, which is what an int64 tensor holds."""
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value


def stream(*parts: str | int) -> int:
    """A stream's number, as a signed 64-bit integer, from the parts of its name.

    >>> stream("assoc-recall", 1, "train") == stream("assoc-recall", 1, "test")
    False
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        text = f"{type(part).__name__}:{part}".encode()
        digest.update(len(text).to_bytes(4, "big") + text)
    return signed(int.from_bytes(digest.digest(), "big"))


def shift_right(bits: Tensor, places: int) -> Tensor:
    """Logical right shift of int64; torch's own shift copies the sign."""
    return (bits >> places) & ((1 << (64 - places)) - 1)


def mix(bits: Tensor) -> Tensor:
    """The SplitMix64 finaliser, a bijection of 64-bit integers, elementwise."""
    bits = (bits ^ shift_right(bits, 30)) * signed(0xBF58476D1CE4E5B9)
    bits = (bits ^ shift_right(bits, 27)) * signed(0x94D049BB133111EB)
    return bits ^ shift_right(bits, 31)


def row_keys(streams: Tensor, index: Tensor) -> Tensor:
    """Keys of rows: streams and index are int64 and broadcast against each other."""
    return mix(streams + (index + 1) * signed(GOLDEN))


def random_bits(keys: Tensor, purpose: str, count: int) -> Tensor:
    """64 random bits for each of `count` counters: keys [...] int64 -> [..., count] int64."""
    if has_triton(keys):
        from icl_bench.kernels.fleet.triton.random_bits import bits_triton

        return bits_triton(keys, stream("purpose", purpose), count)
    base = mix(keys ^ stream("purpose", purpose))
    counters = torch.arange(1, count + 1, device=keys.device, dtype=torch.int64) * signed(GOLDEN)
    return mix(base[..., None] + counters)


def scale_bits(bits: Tensor, high: int) -> Tensor:
    """Integers in [0, high) from the upper 32 bits; the bias is below high / 2^32."""
    return shift_right(shift_right(bits, 32) * high, 32)


def integers(keys: Tensor, purpose: str, count: int, high: int) -> Tensor:
    """Uniform integers in [0, high), high < 2^31: keys [...] -> [..., count] int64."""
    if has_triton(keys):
        from icl_bench.kernels.fleet.triton.random_bits import integers_triton

        return integers_triton(keys, stream("purpose", purpose), count, high)
    return scale_bits(random_bits(keys, purpose, count), high)


def uniform(keys: Tensor, purpose: str, count: int) -> Tensor:
    """Uniform float64 in (0, 1), never 0: keys [...] -> [..., count]."""
    if has_triton(keys):
        from icl_bench.kernels.fleet.triton.random_bits import uniform_triton

        return uniform_triton(keys, stream("purpose", purpose), count)
    return (shift_right(random_bits(keys, purpose, count), 12).double() + 0.5) * 2.0**-52


def permutation(keys: Tensor, purpose: str, size: int) -> Tensor:
    """Uniform permutations of 0..size-1: keys [...] -> [..., size] int64."""
    return order(random_bits(keys, purpose, size))


def order(values: Tensor) -> Tensor:
    """Indices that sort the last axis, equal values by index; no value is NaN: [..., n] -> [..., n] int64."""
    if has_triton(values):
        from icl_bench.kernels.fleet.triton.random_bits import LONGEST, order_triton

        if 0 < values.shape[-1] <= LONGEST:
            return order_triton(values)
    return torch.argsort(values, dim=-1, stable=True)


def distinct(keys: Tensor, purpose: str, count: int, high: int) -> Tensor:
    """`count` different integers in [0, high), in random order: keys [...] -> [..., count] int64.

    Small ranges are shuffled whole; large ones, where that would cost `high` numbers a row, go through a cipher.
    """
    if high < SMALLEST_CIPHER:
        return permutation(keys, purpose, high)[..., :count]
    if has_triton(keys):
        from icl_bench.kernels.fleet.triton.random_bits import distinct_triton

        return distinct_triton(keys, stream("cipher", purpose), count, high, cipher_walks(high), cipher_sides(high))
    counters = torch.arange(count, device=keys.device).expand(*keys.shape, count)
    return encipher(keys, purpose, counters, high)


def encipher(keys: Tensor, purpose: str, values: Tensor, high: int) -> Tensor:
    """A keyed bijection of [0, high), high >= 512, applied to values [..., count] in that range.

    A Feistel network over Z_a x Z_b with a·b >= high just above it, walking along the cycle while outside the range
    (Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002). The walk is unrolled to where a value is
    left outside with a probability under 2^-64.

    A value becomes any other with equal probability. Two of them are not quite as independent as in a uniform
    permutation: the total variation of their difference, calculated for random functions in the rounds and no walk, is
    below 2e-3 for every range allowed, and below 2e-4 unless they agree modulo b. In smaller ranges it reaches .13.

    Raises:
        ValueError: where the range is too small for that.
    """
    if high < SMALLEST_CIPHER:
        raise ValueError(f"a cipher needs a range of at least {SMALLEST_CIPHER}; got {high}; take `permutation`")
    left_size, right_size = cipher_sides(high)
    base = mix(keys ^ stream("cipher", purpose))[..., None]
    result = feistel(base, values, left_size, right_size)
    for _ in range(cipher_walks(high) - 1):
        result = torch.where(result < high, result, feistel(base, result, left_size, right_size))
    return result


def cipher_walks(high: int) -> int:
    """Passes of the cipher until a value is left outside [0, high) with a probability under 2^-64."""
    left_size, right_size = cipher_sides(high)
    excess = (left_size * right_size - high) / (left_size * right_size)
    return 1 if excess == 0 else 1 + math.ceil(64 / -math.log2(excess))


def cipher_sides(high: int) -> tuple[int, int]:
    """Two factors near the square root whose product is at least `high`, with the least excess."""
    root = math.isqrt(high - 1) + 1
    sides = [(a, -(-high // a)) for a in range(max(2, root - root // 4), root + 1)]
    return min(sides, key=lambda pair: (pair[0] * pair[1], pair[1] - pair[0]))


def feistel(base: Tensor, values: Tensor, left_size: int, right_size: int) -> Tensor:
    """Six rounds that add a random function of one side to the other; base [..., 1], values [..., count]."""
    left, right = values // right_size, values % right_size
    for i in range(FEISTEL_ROUNDS):
        tweak = signed((i + 1) * GOLDEN)
        if i % 2 == 0:
            left = (left + scale_bits(mix(base ^ (right + tweak)), left_size)) % left_size
        else:
            right = (right + scale_bits(mix(base ^ (left + tweak)), right_size)) % right_size
    return left * right_size + right


def gaussian(keys: Tensor, purpose: str, count: int) -> Tensor:
    """Standard normal float64, bit-equal on every device: keys [...] -> [..., count].

    Each is one of 65,536 equally likely values, the quantiles of the normal distribution in the middle of as many equal
    parts, rounded to multiples of 2^-16: none is 0, the variance is 0.99998, the greatest 4.32. As multiples of one
    unit, sums of products are exact in float64, in any order, up to about 2^16 terms; each is also exact in float32.
    """
    bits = random_bits(keys, purpose, -(-count // 4))
    index = bits.view(torch.int16)[..., :count].to(torch.int32) + 2**15  # four values a word, the lowest bits first
    return quantiles(keys.device).index_select(0, index.flatten()).view(index.shape)


@functools.cache
def quantiles(device: torch.device) -> Tensor:
    """The values of `gaussian`, [65536] float64. No quantile is near enough to a tie for libraries to round it apart.

    Kept on the device, since no copy to it may be part of a captured step.
    """
    inverse, count = statistics.NormalDist().inv_cdf, GAUSSIAN_VALUES
    values = [round(inverse((i + 0.5) / count) * count) / count for i in range(count)]
    return torch.tensor(values, device=device, dtype=torch.float64)


def normal(seed: int, name: str, count: int) -> Tensor:
    """`count` standard normal float64 on the CPU, by Box and Muller, from a run's seed and a parameter's name."""
    keys = torch.tensor(stream("init", seed, name))
    half = -(-count // 2)
    radius = uniform(keys, "radius", half).log().mul(-2).sqrt()
    angle = uniform(keys, "angle", half).mul(2 * math.pi)
    return torch.cat([radius * angle.cos(), radius * angle.sin()])[:count]
