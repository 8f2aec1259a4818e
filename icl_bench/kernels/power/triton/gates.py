"""Gates in Triton: their sums within chunks, and their gradients."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["T", "chunk", "groups"])
def gate_sums_kernel(log_g, out, decay, g_n, g_t, g_h, T, chunk, groups, BLOCK: tl.constexpr):
    """[N, T, G] log gates -> [N, G, T] inclusive sums within each chunk, in units of log 2, and decays to its end.

    Grid: chunks times N * G.
    """
    chunks = tl.cdiv(T, chunk)
    row = (tl.program_id(0) // chunks).to(tl.int64)
    begin = tl.program_id(0) % chunks * chunk
    end = tl.minimum(begin + chunk, T)
    log_g += (row // groups) * g_n + (row % groups) * g_h
    last = 0.0
    for start in range(begin, end, BLOCK):
        index = start + tl.arange(0, BLOCK)
        gate = (
            tl.load(log_g + index.to(tl.int64) * g_t, mask=index < end, other=0.0).to(tl.float32) * 1.4426950408889634
        )
        last += tl.sum(gate, 0)
    carry = 0.0
    for start in range(begin, end, BLOCK):
        index = start + tl.arange(0, BLOCK)
        gate = (
            tl.load(log_g + index.to(tl.int64) * g_t, mask=index < end, other=0.0).to(tl.float32) * 1.4426950408889634
        )
        total = tl.cumsum(gate, 0) + carry
        tl.store(out + row * T + index, total, mask=index < end)
        # Rounding may put the last sum a little above the total: a decay is never above 1.
        tl.store(decay + row * T + index, tl.exp2(tl.minimum(last - total, 0.0)), mask=index < end)
        carry += tl.sum(gate, 0)


@triton.jit(do_not_specialize=["T", "chunk", "groups", "repeat"])
def gate_gradient_kernel(
    row_sums, column_sums, dots, out, T, chunk, groups, repeat, factor,
    DOTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """d log_g [N, T, G]: the gate of t decays every pair (i >= t, j < t), which brings dA_ij A_ij each.

    Pairs within the chunk: the sum over i >= t of R_i - C_i. A query of the chunk with an earlier key: the sum over
    i >= t of the state's R_i. A key of the chunk with a later query: the sum over j < t of the state's C_j. All others:
    `factor` times `dots`. Only the first is a difference, of sums that agree to float32: no 16-bit rounding error is
    carried along the sequence. Grid: chunks times N * G.
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
