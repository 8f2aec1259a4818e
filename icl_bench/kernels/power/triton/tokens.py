"""Numbers of each token that the kernels of power attention share: sums of log gates, and statistics of each query.

With w_i = 1 / (den_i + eps) and delta_i = dy_i . y_i, dA_ij = w_i (dy_i . v_j - delta_i) cancels where one key has most
of the weight of a row, and 1 / den_i magnifies the rounding error: with few keys, y keeps what 16 bits lose (`y_low`).
"""

import triton
import triton.language as tl

from icl_bench.kernels.power.triton.tiles import load_columns, load_vector
from icl_bench.kernels.triton.common import View, at_head
from icl_bench.kernels.triton.kept import kept_kernel

LOG2_E = tl.constexpr(1.4426950408889634)


@kept_kernel(do_not_specialize=["T", "chunk", "groups"])
def power_gate_sums_kernel(log_g, out, decay, T, chunk, groups, BLOCK: tl.constexpr):
    """c_t = sum of log2(e) log_g_s over s <= t in the chunk of t, and decays 2^(c_last - c_t), both [N, G, T].

    Grid: chunks times N * G.
    """
    chunks = tl.cdiv(T, chunk)
    row = (tl.program_id(0) // chunks).to(tl.int64)
    begin = tl.program_id(0) % chunks * chunk
    end = tl.minimum(begin + chunk, T)
    gates = log_g.ptr + ((row // groups) * log_g.n + (row % groups) * log_g.h)
    last = 0.0
    for start in range(begin, end, BLOCK):
        index = start + tl.arange(0, BLOCK)
        gate = tl.load(gates + index.to(tl.int64) * log_g.t, mask=index < end, other=0.0)
        gate = gate.to(tl.float32) * LOG2_E
        last += tl.sum(gate, 0)
    carry = 0.0
    for start in range(begin, end, BLOCK):
        index = start + tl.arange(0, BLOCK)
        gate = tl.load(gates + index.to(tl.int64) * log_g.t, mask=index < end, other=0.0)
        gate = gate.to(tl.float32) * LOG2_E
        total = tl.cumsum(gate, 0) + carry
        tl.store(out + row * T + index, total, mask=index < end)
        # Rounding may put the last sum a little above the total: a decay is never above 1.
        left = tl.exp2(tl.minimum(last - total, 0.0))
        tl.store(decay + row * T + index, left.to(decay.dtype.element_ty), mask=index < end)
        carry += tl.sum(gate, 0)


@kept_kernel(do_not_specialize=["T", "chunk", "groups", "repeat"])
def power_gate_gradient_kernel(
    row_sums, column_sums, dots, out, T, chunk, groups, repeat, factor,
    DOTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """d log_g_t [N, T, G] = sum of dA_ij A_ij over i >= t and j < t, the pairs that the gate of t decays.

    Pairs within the chunk: the sum over i >= t of R_i - C_i. A query of the chunk with an earlier key: the sum over
    i >= t of the state's R_i. A key of the chunk with a later query: the sum over j < t of the state's C_j. All others:
    `factor` times `dots`. Only the first is a difference, of sums that agree to float32: no 16-bit rounding error is
    carried along the sequence but at the border of `key_gradient.FAR`. Grid: chunks times N * G.
    """
    chunks = tl.cdiv(T, chunk)
    row = (tl.program_id(0) // chunks).to(tl.int64)
    rows = (tl.num_programs(0) // chunks).to(tl.int64)
    begin = tl.program_id(0) % chunks * chunk
    end = tl.minimum(begin + chunk, T)
    steps = tl.cdiv(end - begin, BLOCK)
    out += ((row // groups) * T) * groups + row % groups
    carry = 0.0
    if DOTS:
        carry = tl.load(dots + row * chunks + tl.program_id(0) % chunks) * factor
    for step in range(steps):
        index = begin + (steps - 1 - step) * BLOCK + tl.arange(0, BLOCK)
        mask = index < end
        total = -tl.load(column_sums + (rows + row) * T + index, mask=mask, other=0.0)
        for r in range(repeat):
            total += tl.load(row_sums + (row * repeat + r) * T + index, mask=mask, other=0.0)
            total += tl.load(row_sums + ((rows + row) * repeat + r) * T + index, mask=mask, other=0.0)
        tl.store(out + index * groups, tl.cumsum(total, 0, reverse=True) + carry, mask=mask)
        carry += tl.sum(total, 0)
    tl.debug_barrier()
    carry = 0.0
    for step in range(steps):
        index = begin + step * BLOCK + tl.arange(0, BLOCK)
        mask = index < end
        total = tl.load(column_sums + row * T + index, mask=mask, other=0.0)
        pointer = out + index * groups
        tl.store(pointer, tl.load(pointer, mask=mask) + (tl.cumsum(total, 0) - total) + carry, mask=mask)
        carry += tl.sum(total, 0)


@triton.jit
def store_query_stats(query_stats, row, T, index, mask, weight, delta, gate, other):
    """Store w_i, delta_i, c_i and `other` of each query side by side, [.., 4], which is 16 bytes."""
    pointer = query_stats + (row * T + index)[:, None] * 4 + tl.arange(0, 4)[None, :]
    tile = tl.reshape(tl.join(tl.join(weight, gate), tl.join(delta, other)), [weight.shape[0], 4])
    tl.store(pointer, tile, mask=mask[:, None])


@triton.jit
def load_query_stats(query_stats, start, end, BLOCK: tl.constexpr, WHOLE: tl.constexpr, READY: tl.constexpr = False):
    """Load w, delta (with READY `other`) and c of the queries start.. of one head.

    Past `end`, unless WHOLE, these are 0, 0 and minus infinity.

    One tile of four numbers a query: vectors would be copied to shared memory once by every thread that reads them.
    """
    index = start + tl.arange(0, BLOCK)
    pointer = query_stats + tl.cast(start, tl.int64) * 4 + tl.arange(0, BLOCK)[:, None] * 4 + tl.arange(0, 4)[None, :]
    tile = tl.load(pointer) if WHOLE else tl.load(pointer, mask=(index < end)[:, None], other=0.0)
    even, odd = tl.split(tl.reshape(tile, [BLOCK, 2, 2]))
    weight, gate = tl.split(even)
    delta, other = tl.split(odd)
    return weight, other if READY else delta, gate if WHOLE else tl.where(index < end, gate, float("-inf"))


@kept_kernel(do_not_specialize=["T", "heads", "repeat", "low_rows"])
def power_query_stats_kernel(
    y, dy, y_low, den, gates, query_stats, value_weight, sum_weight, weighted, T, heads, repeat, low_rows, eps,
    V: tl.constexpr, V_BLOCK: tl.constexpr, BLOCK: tl.constexpr, SUM: tl.constexpr, LOW: tl.constexpr,
    GATED: tl.constexpr, WEIGHTED: tl.constexpr,
):  # fmt: skip
    """w_i = 1 / (den_i + eps) and delta_i = dy_i . y_i, or 1 and 0 without a normaliser, and c_i.

    Also the weights of each query in the gradient of the state that it reads: w_i e^(c_i) for the values and
    -delta_i w_i e^(c_i) for the normaliser. WEIGHTED: in the place of the former `weighted` are w_i e^(c_i) dy_i, and
    the latter are made from these, rounded as they are, so that both differ from the true ones by one error in dy.
    Grid: row blocks times N * H.
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
    state_delta = delta
    gate = delta
    if GATED:
        gate = load_vector(gates + (row // repeat) * T, start, T, BLOCK)
    if SUM:
        weight = 1.0 / (tl.load(den + row * T + index, mask=mask, other=1.0) + eps)
        state_weight = weight * tl.exp2(gate) if GATED else weight
        for first in range(0, V, V_BLOCK):
            y_rows = View(y.ptr + n * y.n + h * y.h, y.n, y.t, y.h)
            left = load_columns(y_rows, start, T, first, V, BLOCK, V_BLOCK).to(tl.float32)
            if LOW:
                low = View(y_low + n * low_rows * y.t + h * y.h, y.n, y.t, y.h)
                left += load_columns(low, start, low_rows, first, V, BLOCK, V_BLOCK).to(tl.float32)
            right = load_columns(at_head(dy, n, h), start, T, first, V, BLOCK, V_BLOCK).to(tl.float32)
            delta += tl.sum(left * right, 1)
            if WEIGHTED:
                right = (right * state_weight[:, None]).to(dy.ptr.dtype.element_ty)
                column = first + tl.arange(0, V_BLOCK)
                place = (n * T + index)[:, None] * (heads * V) + (h * V + column)[None, :]
                tl.store(weighted + place, right, mask=mask[:, None] & (column < V)[None, :])
                state_delta += tl.sum(left * right.to(tl.float32), 1)
    store_query_stats(query_stats, row, T, index, mask, weight, delta, gate, state_delta if WEIGHTED else gate)
    if WEIGHTED:
        tl.store(sum_weight + row * T + index, -state_delta, mask=mask)
    else:
        if GATED:
            weight *= tl.exp2(gate)
        tl.store(value_weight + row * T + index, weight, mask=mask)
        tl.store(sum_weight + row * T + index, -delta * weight, mask=mask)
