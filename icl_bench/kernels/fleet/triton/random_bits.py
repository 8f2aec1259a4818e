"""Random bits in Triton: one pass over memory where operators of torch make twenty, bit for bit the same."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.triton.common import padded

PROGRAM_NUMBERS = 1024
"""Numbers of a program."""
GOLDEN_STEP = tl.constexpr(0x9E3779B97F4A7C15)
FIRST_FACTOR = tl.constexpr(0xBF58476D1CE4E5B9)
SECOND_FACTOR = tl.constexpr(0x94D049BB133111EB)
ROUNDS = tl.constexpr(6)


@triton.jit
def _mix(bits):
    """Apply the finaliser of SplitMix64 to uint64."""
    bits = (bits ^ (bits >> 30)) * FIRST_FACTOR
    bits = (bits ^ (bits >> 27)) * SECOND_FACTOR
    return bits ^ (bits >> 31)


@triton.jit
def _scale(bits, high):
    """Scale the upper 32 bits to [0, high)."""
    return ((bits >> 32) * high) >> 32


@triton.jit
def _numbers(keys, purpose, numbers, count, TILE: tl.constexpr):
    """Return indices of this program's numbers, a mask of those that exist, their columns and mixed keys, uint64."""
    index = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    mask = index < numbers
    key = tl.load(keys + index // count, mask=mask, other=0)
    return index, mask, (index % count).to(tl.uint64), _mix((key ^ purpose).to(tl.uint64, bitcast=True))


@triton.jit
def random_bits_kernel(keys, purpose, high, out, numbers, count, FORM: tl.constexpr, TILE: tl.constexpr):
    """Write mix(key' + (column + 1) golden): unchanged, scaled to [0, high), or as float64 in (0, 1)."""
    index, mask, column, base = _numbers(keys, purpose, numbers, count, TILE)
    bits = _mix(base + (column + 1) * GOLDEN_STEP)
    if FORM == "integers":
        tl.store(out + index, _scale(bits, tl.cast(high, tl.uint64)).to(tl.int64, bitcast=True), mask=mask)
    elif FORM == "uniform":
        fraction = ((bits >> 12).to(tl.int64, bitcast=True).to(tl.float64) + 0.5) * 2.220446049250313e-16
        tl.store(out + index, fraction, mask=mask)
    else:
        tl.store(out + index, bits.to(tl.int64, bitcast=True), mask=mask)


@triton.jit
def _feistel(base, values, LEFT: tl.constexpr, RIGHT: tl.constexpr):
    """Make the rounds of the cipher, as `feistel` does."""
    left, right = values // RIGHT, values % RIGHT
    for i in tl.static_range(ROUNDS):
        tweak = ((i + 1) * GOLDEN_STEP) & 0xFFFFFFFFFFFFFFFF
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
    """Write the cipher of the column, repeated at most `walks` times in all while a value is outside [0, high)."""
    index, mask, column, base = _numbers(keys, purpose, numbers, count, TILE)
    value = _feistel(base, column, LEFT, RIGHT)
    walked = 1
    outside = mask & (value.to(tl.int64, bitcast=True) >= high)
    while (walked < walks) & (tl.sum(outside.to(tl.int32)) > 0):
        value = tl.where(outside, _feistel(base, value, LEFT, RIGHT), value)
        outside = mask & (value.to(tl.int64, bitcast=True) >= high)
        walked += 1
    tl.store(out + index, value.to(tl.int64, bitcast=True), mask=mask)


@triton.jit
def stable_order_kernel(values, order, rows, size, BLOCK_R: tl.constexpr, BLOCK: tl.constexpr):
    """Write the index of each value at its rank in its row, equal values by index. Grid (rows, blocks of values)."""
    row = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    own = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = (row < rows)[:, None] & (own < size)[None, :]
    value = tl.load(values + row[:, None] * size + own[None, :], mask=mask, other=0)
    rank = tl.zeros([BLOCK_R, BLOCK], tl.int32)
    for other in range(size):
        rival = tl.load(values + row * size + other, mask=row < rows, other=0)[:, None]
        ahead = (rival < value) | ((rival == value) & (other < own)[None, :])
        rank += ahead.to(tl.int32)
    target = row[:, None] * size + rank
    tl.store(order + target, tl.broadcast_to(own[None, :], BLOCK_R, BLOCK).to(tl.int64), mask=mask)


def launch_numbers(keys: Tensor, purpose: int, count: int, form: str, high: int) -> Tensor:
    """Draw "bits", "integers" in [0, high) or "uniform" float64 in (0, 1): keys [...] int64 -> [..., count]."""
    dtype = torch.float64 if form == "uniform" else torch.int64
    out = torch.empty(*keys.shape, count, device=keys.device, dtype=dtype)
    if out.numel():
        with launch_on(keys):
            random_bits_kernel[(-(-out.numel() // PROGRAM_NUMBERS),)](
                keys.contiguous(), purpose, high, out, out.numel(), count, FORM=form, TILE=PROGRAM_NUMBERS, num_warps=4
            )
    return out


def launch_cipher(keys: Tensor, purpose: int, count: int, high: int, walks: int, sides: tuple[int, int]) -> Tensor:
    """Draw different integers in [0, high): keys [...] int64 -> [..., count]."""
    out = torch.empty(*keys.shape, count, device=keys.device, dtype=torch.int64)
    if out.numel():
        with launch_on(keys):
            cipher_kernel[(-(-out.numel() // PROGRAM_NUMBERS),)](
                keys.contiguous(), purpose, out, out.numel(), count, high, walks,
                LEFT=sides[0], RIGHT=sides[1], TILE=PROGRAM_NUMBERS, num_warps=4,
            )  # fmt: skip
    return out


def launch_order(values: Tensor) -> Tensor:
    """Return the stable order of the last axis, by counting, for each value of a row, the values before it."""
    size = values.shape[-1]
    order = torch.empty(values.shape, device=values.device, dtype=torch.int64)
    rows = values.numel() // size
    block = padded(size, 16, 128)
    block_r = PROGRAM_NUMBERS // block
    if rows:
        with launch_on(values):
            stable_order_kernel[(-(-rows // block_r), -(-size // block))](
                values.contiguous(), order, rows, size, BLOCK_R=block_r, BLOCK=block, num_warps=4
            )
    return order
