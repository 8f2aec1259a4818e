"""Gates in Triton: their sums within chunks, and their gradients."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["T", "chunk", "groups"])
def gate_sums_kernel(log_g, out, g_n, g_t, g_h, T, chunk, groups, BLOCK: tl.constexpr):
    """[N, T, G] log gates -> [N, G, T] inclusive sums within each chunk, in units of log 2. Grid: (chunks, N * G)."""
    row = tl.program_id(1).to(tl.int64)
    begin = tl.program_id(0) * chunk
    end = tl.minimum(begin + chunk, T)
    log_g += (row // groups) * g_n + (row % groups) * g_h
    carry = 0.0
    for start in range(begin, end, BLOCK):
        index = start + tl.arange(0, BLOCK)
        gate = tl.load(log_g + index.to(tl.int64) * g_t, mask=index < end, other=0.0).to(tl.float32) * 1.4426950408889634
        tl.store(out + row * T + index, tl.cumsum(gate, 0) + carry, mask=index < end)
        carry += tl.sum(gate, 0)


@triton.jit(do_not_specialize=["T", "chunk", "groups", "repeat"])
def gate_gradient_kernel(
    row_sums, column_sums, dots, out, T, chunk, groups, repeat, factor,
    DOTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """d log_g [N, T, G]: the gate of t decays every pair (i >= t, j < t), dA_ij A_ij each.

    Within a chunk these are the sums of R_i - C_i over i >= t, plus the pairs across the chunk's end: `factor` times
    the product of the state there with its gradient, `dots`. Sums never run past a chunk, so that rounding errors do
    not add up over the sequence. Grid: (chunks, N * G).
    """
    row = tl.program_id(1).to(tl.int64)
    chunks = tl.num_programs(0)
    begin = tl.program_id(0) * chunk
    end = tl.minimum(begin + chunk, T)
    carry = 0.0
    if DOTS:
        carry = tl.load(dots + row * chunks + tl.program_id(0)) * factor
    for step in range(tl.cdiv(end - begin, BLOCK)):
        index = begin + (tl.cdiv(end - begin, BLOCK) - 1 - step) * BLOCK + tl.arange(0, BLOCK)
        mask = index < end
        total = -tl.load(column_sums + row * T + index, mask=mask, other=0.0)
        for r in range(repeat):
            total += tl.load(row_sums + (row * repeat + r) * T + index, mask=mask, other=0.0)
        pointer = out + ((row // groups) * T + index) * groups + row % groups
        tl.store(pointer, tl.cumsum(total, 0, reverse=True) + carry, mask=mask)
        carry += tl.sum(total, 0)
