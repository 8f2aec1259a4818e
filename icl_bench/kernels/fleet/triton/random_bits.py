"""The bits of `icl_bench.random` in Triton: one pass where torch's operators take twenty, bit for bit the same."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.backends import launch_on

TILE = 1024
"""Numbers of a program."""
LONGEST = 256
"""The longest row that is sorted by counting."""
GOLDEN = tl.constexpr(0x9E3779B97F4A7C15)
FIRST = tl.constexpr(0xBF58476D1CE4E5B9)
SECOND = tl.constexpr(0x94D049BB133111EB)
ROUNDS = tl.constexpr(6)


@triton.jit
def _mix(bits):
    """The SplitMix64 finaliser of uint64."""
    bits = (bits ^ (bits >> 30)) * FIRST
    bits = (bits ^ (bits >> 27)) * SECOND
    return bits ^ (bits >> 31)


@triton.jit
def _scale(bits, high):
    """The upper 32 bits, scaled to [0, high)."""
    return ((bits >> 32) * high) >> 32


@triton.jit
def _place(keys, purpose, numbers, count, TILE: tl.constexpr):
    """Indices of this program's numbers, which of them there are, their columns and mixed keys as uint64."""
    index = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    kept = index < numbers
    key = tl.load(keys + index // count, mask=kept, other=0)
    return index, kept, (index % count).to(tl.uint64), _mix((key ^ purpose).to(tl.uint64, bitcast=True))


@triton.jit
def bits_kernel(keys, purpose, high, out, numbers, count, FORM: tl.constexpr, TILE: tl.constexpr):
    """mix(key' + (column + 1) golden): as it is, scaled to [0, high), or as float64 in (0, 1)."""
    index, kept, column, base = _place(keys, purpose, numbers, count, TILE)
    bits = _mix(base + (column + 1) * GOLDEN)
    if FORM == "integers":
        tl.store(out + index, _scale(bits, tl.cast(high, tl.uint64)).to(tl.int64, bitcast=True), mask=kept)
    elif FORM == "uniform":
        share = ((bits >> 12).to(tl.int64, bitcast=True).to(tl.float64) + 0.5) * 2.220446049250313e-16
        tl.store(out + index, share, mask=kept)
    else:
        tl.store(out + index, bits.to(tl.int64, bitcast=True), mask=kept)


@triton.jit
def _feistel(base, values, LEFT: tl.constexpr, RIGHT: tl.constexpr):
    left, right = values // RIGHT, values % RIGHT
    for i in tl.static_range(ROUNDS):
        tweak = ((i + 1) * GOLDEN) & 0xFFFFFFFFFFFFFFFF
        if i % 2 == 0:
            left = left + _scale(_mix(base ^ (right + tweak)), LEFT)
            left = tl.where(left >= LEFT, left - LEFT, left)
        else:
            right = right + _scale(_mix(base ^ (left + tweak)), RIGHT)
            right = tl.where(right >= RIGHT, right - RIGHT, right)
    return left * RIGHT + right


@triton.jit
def cipher_kernel(
    keys, purpose, out, numbers, count, high, walks, LEFT: tl.constexpr, RIGHT: tl.constexpr, TILE: tl.constexpr
):
    """The cipher of the column, walking on, `walks` times in all at most, while a value is outside [0, high)."""
    index, kept, column, base = _place(keys, purpose, numbers, count, TILE)
    value = _feistel(base, column, LEFT, RIGHT)
    walked = 1
    outside = kept & (value.to(tl.int64, bitcast=True) >= high)
    while (walked < walks) & (tl.sum(outside.to(tl.int32)) > 0):
        value = tl.where(outside, _feistel(base, value, LEFT, RIGHT), value)
        outside = kept & (value.to(tl.int64, bitcast=True) >= high)
        walked += 1
    tl.store(out + index, value.to(tl.int64, bitcast=True), mask=kept)


@triton.jit
def order_kernel(values, order, rows, size, BLOCK_R: tl.constexpr, BLOCK: tl.constexpr):
    """Where each value of a row stands among all of that row, equal ones by index. Grid (rows, blocks of values)."""
    row = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    own = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    kept = (row < rows)[:, None] & (own < size)[None, :]
    value = tl.load(values + row[:, None] * size + own[None, :], mask=kept, other=0)
    rank = tl.zeros([BLOCK_R, BLOCK], tl.int32)
    for other in range(size):
        rival = tl.load(values + row * size + other, mask=row < rows, other=0)[:, None]
        ahead = (rival < value) | ((rival == value) & (other < own)[None, :])
        rank += ahead.to(tl.int32)
    place = row[:, None] * size + rank
    tl.store(order + place, tl.broadcast_to(own[None, :], BLOCK_R, BLOCK).to(tl.int64), mask=kept)


def bits_triton(keys: Tensor, purpose: int, count: int) -> Tensor:
    """`icl_bench.random.random_bits`: 64 bits a number."""
    return launch(keys, purpose, count, "bits", 0, torch.int64)


def integers_triton(keys: Tensor, purpose: int, count: int, high: int) -> Tensor:
    """`icl_bench.random.integers`: in [0, high)."""
    return launch(keys, purpose, count, "integers", high, torch.int64)


def uniform_triton(keys: Tensor, purpose: int, count: int) -> Tensor:
    """`icl_bench.random.uniform`: float64 in (0, 1)."""
    return launch(keys, purpose, count, "uniform", 0, torch.float64)


def launch(keys: Tensor, purpose: int, count: int, form: str, high: int, dtype: torch.dtype) -> Tensor:
    """Numbers [..., count] for keys [...] int64, by a purpose that is hashed already."""
    out = torch.empty(*keys.shape, count, device=keys.device, dtype=dtype)
    if out.numel():
        with launch_on(keys):
            bits_kernel[(-(-out.numel() // TILE),)](
                keys.contiguous(), purpose, high, out, out.numel(), count, FORM=form, TILE=TILE, num_warps=4
            )
    return out


def distinct_triton(keys: Tensor, purpose: int, count: int, high: int, walks: int, sides: tuple[int, int]) -> Tensor:
    """`icl_bench.random.encipher` of 0..count-1: different integers in [0, high), [..., count]."""
    out = torch.empty(*keys.shape, count, device=keys.device, dtype=torch.int64)
    if out.numel():
        with launch_on(keys):
            cipher_kernel[(-(-out.numel() // TILE),)](
                keys.contiguous(), purpose, out, out.numel(), count, high, walks,
                LEFT=sides[0], RIGHT=sides[1], TILE=TILE, num_warps=4,
            )  # fmt: skip
    return out


def order_triton(values: Tensor) -> Tensor:
    """`icl_bench.random.order` by counting, for each value of a row, those before it: rows of up to `LONGEST`."""
    size = values.shape[-1]
    order = torch.empty(values.shape, device=values.device, dtype=torch.int64)
    rows = values.numel() // size
    block = max(16, min(128, 1 << (size - 1).bit_length()))
    block_r = TILE // block
    if rows:
        with launch_on(values):
            order_kernel[(-(-rows // block_r), -(-size // block))](
                values.contiguous(), order, rows, size, BLOCK_R=block_r, BLOCK=block, num_warps=4
            )
    return order
