"""What the backward pass of power attention knows of each query before it walks over scores.

With w_i = 1 / (den_i + eps) and delta_i = dy_i . y_i, the gradient of a weight is dA_ij = w_i (dy_i . v_j - delta_i).
The difference cancels where one key has most of a row's weight, and 1 / den_i then magnifies what rounding left: so the
forward pass keeps what 16 bits lose of y (`y_low`) where rows have few keys, and delta is made from both.
"""

import triton
import triton.language as tl

from icl_bench.kernels.power.triton.tiles import load_columns, load_vector


@triton.jit
def store_facts(facts, row, T, index, mask, weight, delta, gate):
    """What a loop over queries needs of each, side by side [.., 4]: w_i, delta_i, c_i and a place to spare."""
    pointer = facts + (row * T + index)[:, None] * 4 + tl.arange(0, 4)[None, :]
    tile = tl.reshape(tl.join(tl.join(weight, gate), tl.join(delta, gate)), [weight.shape[0], 4])
    tl.store(pointer, tile, mask=mask[:, None])


@triton.jit
def load_facts(facts, start, end, BLOCK: tl.constexpr, WHOLE: tl.constexpr):
    """w, delta and c of the queries start.. of one head; past `end`, if not WHOLE, 0, 0 and minus infinity.

    One tile of four numbers a query: vectors would be copied to shared memory once by every thread that reads them.
    """
    index = start + tl.arange(0, BLOCK)
    pointer = facts + tl.cast(start, tl.int64) * 4 + tl.arange(0, BLOCK)[:, None] * 4 + tl.arange(0, 4)[None, :]
    tile = tl.load(pointer) if WHOLE else tl.load(pointer, mask=(index < end)[:, None], other=0.0)
    even, odd = tl.split(tl.reshape(tile, [BLOCK, 2, 2]))
    weight, gate = tl.split(even)
    delta, _ = tl.split(odd)
    return weight, delta, gate if WHOLE else tl.where(index < end, gate, float("-inf"))


@triton.jit(do_not_specialize=["T", "heads", "repeat", "low_rows"])
def row_statistics_kernel(
    y, y_low, dy, den, gates, facts, value_factor, sum_factor,
    y_n, y_t, y_h, dy_n, dy_t, dy_h, T, heads, repeat, low_rows, eps,
    V: tl.constexpr, V_BLOCK: tl.constexpr, BLOCK: tl.constexpr, SUM: tl.constexpr, LOW: tl.constexpr,
    GATED: tl.constexpr,
):  # fmt: skip
    """w_i = 1 / (den_i + eps) and delta_i = dy_i . y_i, or 1 and 0 without a normaliser, and c_i: see `store_facts`.

    Also the factors of each query in the gradient of the state it reads: w_i e^(c_i) for the values and
    -delta_i w_i e^(c_i) for the normaliser. Grid: row blocks times N * H.
    """
    blocks = tl.cdiv(T, BLOCK)
    start = tl.program_id(0) % blocks * BLOCK
    row = (tl.program_id(0) // blocks).to(tl.int64)
    n = row // heads
    h = row % heads
    index = start + tl.arange(0, BLOCK)
    mask = index < T
    weight = tl.full([BLOCK], 1.0, tl.float32)
    delta = tl.zeros([BLOCK], tl.float32)
    if SUM:
        weight = 1.0 / (tl.load(den + row * T + index, mask=mask, other=1.0) + eps)
        for first in range(0, V, V_BLOCK):
            left = load_columns(y + n * y_n + h * y_h, start, y_t, T, first, V, BLOCK, V_BLOCK).to(tl.float32)
            if LOW:
                low = y_low + n * low_rows * y_t + h * y_h
                left += load_columns(low, start, y_t, low_rows, first, V, BLOCK, V_BLOCK).to(tl.float32)
            right = load_columns(dy + n * dy_n + h * dy_h, start, dy_t, T, first, V, BLOCK, V_BLOCK)
            delta += tl.sum(left * right.to(tl.float32), 1)
    gate = delta
    if GATED:
        gate = load_vector(gates + (row // repeat) * T, start, T, BLOCK)
    store_facts(facts, row, T, index, mask, weight, delta, gate)
    if GATED:
        weight *= tl.exp2(gate)
    tl.store(value_factor + row * T + index, weight, mask=mask)
    tl.store(sum_factor + row * T + index, -delta * weight, mask=mask)
