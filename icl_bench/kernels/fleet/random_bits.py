"""Random bits as a function of a key, a purpose and a counter, and the numbers and orders that are made from them.

    bits(key, purpose, i) = mix(mix(key ^ purpose) + (i + 1) golden)

`mix` is the finaliser of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA
2014). The arithmetic is that of 64-bit integers, which wraps alike on every device, so that the torch form is the
definition, and the Triton form, which makes one pass over memory where torch makes twenty, gives the same bits.
"""

import math

import torch
from torch import Tensor

from icl_bench.errors import ArgumentError
from icl_bench.kernels.backends import FleetImpl, has_triton, takes_triton

GOLDEN = 0x9E3779B97F4A7C15
FEISTEL_ROUNDS = 6
SMALLEST_CIPHER = 512
"""The smallest range that `draw_distinct` takes: in smaller ones, six rounds leave two values far from independent."""
LONGEST_COUNTED_ROW = 256
"""The longest row that the Triton form of `stable_order` takes."""


def signed(value: int) -> int:
    """Return the two's complement reading of a 64-bit number, which is the content of an int64 tensor."""
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value


def shift_right(bits: Tensor, places: int) -> Tensor:
    """Shift int64 to the right and fill with zeros; torch's own shift fills with the sign."""
    return (bits >> places) & ((1 << (64 - places)) - 1)


def mix(bits: Tensor) -> Tensor:
    """Apply the finaliser of SplitMix64, a bijection of 64-bit integers, to each element."""
    bits = (bits ^ shift_right(bits, 30)) * signed(0xBF58476D1CE4E5B9)
    bits = (bits ^ shift_right(bits, 27)) * signed(0x94D049BB133111EB)
    return bits ^ shift_right(bits, 31)


def scale_bits(bits: Tensor, high: int) -> Tensor:
    """Scale the upper 32 bits to integers in [0, high); the bias is below high / 2^32."""
    return shift_right(shift_right(bits, 32) * high, 32)


def draw_bits(keys: Tensor, purpose: int, count: int, *, impl: FleetImpl = "auto") -> Tensor:
    """Draw `count` numbers of 64 bits for each key: keys [...] int64 -> [..., count] int64.

    `purpose`, a signed 64-bit integer, separates the draws of one key. `impl` is "torch" (any device; "reference" is
    the same), "triton" (one launch, CUDA), or "auto".
    """
    return _draw(keys, purpose, count, "bits", 0, impl)


def draw_integers(keys: Tensor, purpose: int, count: int, high: int, *, impl: FleetImpl = "auto") -> Tensor:
    """Draw uniform integers in [0, high), high < 2^31; other arguments as for `draw_bits`."""
    return _draw(keys, purpose, count, "integers", high, impl)


def draw_uniform(keys: Tensor, purpose: int, count: int, *, impl: FleetImpl = "auto") -> Tensor:
    """Draw uniform float64 in (0, 1), never 0; arguments as for `draw_bits`."""
    return _draw(keys, purpose, count, "uniform", 0, impl)


def _draw(keys: Tensor, purpose: int, count: int, form: str, high: int, impl: FleetImpl) -> Tensor:
    if takes_triton(impl, keys):
        from icl_bench.kernels.fleet.triton.random_bits import launch_numbers

        return launch_numbers(keys, purpose, count, form, high)
    counters = torch.arange(1, count + 1, device=keys.device, dtype=torch.int64) * signed(GOLDEN)
    bits = mix(mix(keys ^ purpose)[..., None] + counters)
    if form == "uniform":
        return (shift_right(bits, 12).double() + 0.5) * 2.0**-52
    return scale_bits(bits, high) if form == "integers" else bits


def stable_order(values: Tensor, *, impl: FleetImpl = "auto") -> Tensor:
    """Return the indices that sort the last axis, equal values by index: [..., n] -> [..., n] int64; no value is NaN.

    "triton" counts, for each value of a row, the values before it; "auto" takes it for rows of up to 256 values.
    """
    if impl == "auto":
        counted = has_triton(values) and 0 < values.shape[-1] <= LONGEST_COUNTED_ROW
        impl = "triton" if counted else "torch"
    if takes_triton(impl, values, exact=True):
        from icl_bench.kernels.fleet.triton.random_bits import launch_order

        return launch_order(values)
    return torch.argsort(values, dim=-1, stable=True)


def draw_distinct(keys: Tensor, purpose: int, count: int, high: int, *, impl: FleetImpl = "auto") -> Tensor:
    """Draw different integers in [0, high) by a cipher: the values of 0 to count - 1 under a keyed bijection.

    The bijection is a Feistel network over Z_a x Z_b with a·b >= high just above it, walking along the cycle while
    outside the range (Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002). The walk is unrolled to
    where a value is left outside with a probability under 2^-64.

    A value becomes any other with equal probability. Two values are not quite as independent as in a uniform
    permutation: the total variation of their difference, calculated for random functions in the rounds and no walk, is
    below 2e-3 for every range allowed, and below 2e-4 unless they agree modulo b. In smaller ranges it reaches .13, so
    that `high` must be at least 512. The other arguments are those of `draw_bits`.
    """
    if high < SMALLEST_CIPHER:
        raise ArgumentError(f"high must be at least {SMALLEST_CIPHER} for a cipher; got {high}: take a permutation")
    sides, walks = cipher_sides(high), cipher_walks(high)
    if takes_triton(impl, keys):
        from icl_bench.kernels.fleet.triton.random_bits import launch_cipher

        return launch_cipher(keys, purpose, count, high, walks, sides)
    base = mix(keys ^ purpose)[..., None]
    values = feistel(base, torch.arange(count, device=keys.device).expand(*keys.shape, count), *sides)
    for _ in range(walks - 1):
        values = torch.where(values < high, values, feistel(base, values, *sides))
    return values


def cipher_walks(high: int) -> int:
    """Return the passes of the cipher after which a value is outside [0, high) with a probability under 2^-64."""
    left_size, right_size = cipher_sides(high)
    excess = (left_size * right_size - high) / (left_size * right_size)
    return 1 if excess == 0 else 1 + math.ceil(64 / -math.log2(excess))


def cipher_sides(high: int) -> tuple[int, int]:
    """Return two factors near the square root whose product is at least `high`, with the least excess."""
    root = math.isqrt(high - 1) + 1
    sides = [(a, -(-high // a)) for a in range(max(2, root - root // 4), root + 1)]
    return min(sides, key=lambda pair: (pair[0] * pair[1], pair[1] - pair[0]))


def feistel(base: Tensor, values: Tensor, left_size: int, right_size: int) -> Tensor:
    """Make six rounds that add a random function of one side to the other; base [..., 1], values [..., count]."""
    left, right = values // right_size, values % right_size
    for i in range(FEISTEL_ROUNDS):
        tweak = signed((i + 1) * GOLDEN)
        if i % 2 == 0:
            left = (left + scale_bits(mix(base ^ (right + tweak)), left_size)) % left_size
        else:
            right = (right + scale_bits(mix(base ^ (left + tweak)), right_size)) % right_size
    return left * right_size + right
