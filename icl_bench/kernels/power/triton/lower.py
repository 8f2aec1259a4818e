"""Lower degrees inside a score: polynomials of scores and norms in place of powers.

    A = s^p + sum_m a_m b^m s^(p-2m),   a_m = w_m (scale |q|)^2m,   b = |k|^2,   m = 1 .. TERMS = p // 2

With t = s^2 this is f(t), or s f(t) for odd p, with f by Horner's rule: f = t + a_1 b, then f t + a_2 b^2, and so on.
The norms of keys are made once, those of queries from the rows of a block.
"""

import triton
import triton.language as tl

from icl_bench.kernels.triton.common import at_head, part_sums


@triton.jit(do_not_specialize=["T", "heads"])
def power_key_norms_kernel(k, out, T, heads, K: tl.constexpr, K_BLOCK: tl.constexpr, BLOCK: tl.constexpr):
    """b_t = |k_t|^2, float32 [N, J, T]. Grid: row blocks times N * J."""
    blocks = tl.cdiv(T, BLOCK)
    index = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    keys = at_head(k, row // heads, row % heads)
    column = tl.arange(0, K_BLOCK)
    mask = (index < T)[:, None] & (column < K)[None, :]
    x = tl.load(keys.ptr + index.to(tl.int64)[:, None] * keys.t + column[None, :], mask=mask, other=0.0).to(tl.float32)
    tl.store(out + row * T + index, tl.sum(x * x, 1), mask=index < T)


@triton.jit
def squared_norms(rows, scale_in, C: tl.constexpr):
    """(scale |q|)^2 of each row of a tile, the scale left out as in scores."""
    x = rows.to(tl.float32)
    norms = tl.sum(x * x, 1)
    if C.SCALE:
        norms *= scale_in * scale_in
    return norms


@triton.jit
def load_weights(lower, norms, start, end, BLOCK: tl.constexpr, C: tl.constexpr):
    """a_1, a_2, a_3 of the rows start.. of a head from their norms; zeros past `end` and past TERMS."""
    index = start + tl.arange(0, BLOCK)
    pointer = lower.ptr + index.to(tl.int64) * lower.t
    first = tl.load(pointer, mask=index < end, other=0.0).to(tl.float32) * norms
    second = tl.zeros([BLOCK], tl.float32)
    third = second
    if C.TERMS > 1:
        second = tl.load(pointer + 1, mask=index < end, other=0.0).to(tl.float32) * norms * norms
    if C.TERMS > 2:
        third = tl.load(pointer + 2, mask=index < end, other=0.0).to(tl.float32) * norms * norms * norms
    return first, second, third


@triton.jit
def polynomial(s, a, b, C: tl.constexpr):
    """Return A for scores s, with a = (a_1, a_2, a_3) and b shaped to broadcast over s."""
    t = s * s
    out = t + a[0] * b
    if C.TERMS > 1:
        out = out * t + a[1] * (b * b)
    if C.TERMS > 2:
        out = out * t + a[2] * (b * b * b)
    if C.P % 2 == 1:
        out *= s
    return out


@triton.jit
def polynomial_and_slope(s, a, b, C: tl.constexpr):
    """Return A and (dA / ds) / p for scores s."""
    t = s * s
    out = t + a[0] * b
    slope = tl.full(s.shape, 1.0, tl.float32)
    if C.TERMS > 1:
        slope = t + out
        out = out * t + a[1] * (b * b)
    if C.TERMS > 2:
        slope = slope * t + out
        out = out * t + a[2] * (b * b * b)
    if C.P % 2 == 1:
        slope = (out + 2.0 * t * slope) * (1.0 / C.P)
        out *= s
    else:
        slope = s * slope * (2.0 / C.P)
    return out, slope


@triton.jit
def term(s, m: tl.constexpr, C: tl.constexpr):
    """s^(p-2m), with ones for the power 0."""
    t = s * s
    out = tl.full(s.shape, 1.0, tl.float32)
    for _ in tl.static_range(C.P // 2 - m):
        out = out * t
    if C.P % 2 == 1:
        out = out * s
    return out


@triton.jit
def norm_slope(s, a, b, C: tl.constexpr):
    """dA / db = sum_m m a_m b^(m-1) s^(p-2m)."""
    out = a[0] * term(s, 1, C)
    if C.TERMS > 1:
        out += 2.0 * a[1] * b * term(s, 2, C)
    if C.TERMS > 2:
        out += 3.0 * a[2] * (b * b) * term(s, 3, C)
    return out


@triton.jit
def store_weights(query_stats, row, T, index, mask, a, gate):
    """Store a_3, a_1, c and a_2 of each query in the places of w, delta, c and the padding, which say nothing here."""
    pointer = query_stats + (row * T + index)[:, None] * 4 + tl.arange(0, 4)[None, :]
    tile = tl.reshape(tl.join(tl.join(a[2], gate), tl.join(a[0], a[1])), [a[0].shape[0], 4])
    tl.store(pointer, tile, mask=mask[:, None])


@triton.jit
def load_stored_weights(query_stats, start, end, BLOCK: tl.constexpr, WHOLE: tl.constexpr):
    """Load (a_1, a_2, a_3) and c of the queries start.. of one head; past `end`, unless WHOLE, 0 and minus infinity."""
    index = start + tl.arange(0, BLOCK)
    pointer = query_stats + tl.cast(start, tl.int64) * 4 + tl.arange(0, BLOCK)[:, None] * 4 + tl.arange(0, 4)[None, :]
    tile = tl.load(pointer) if WHOLE else tl.load(pointer, mask=(index < end)[:, None], other=0.0)
    even, odd = tl.split(tl.reshape(tile, [BLOCK, 2, 2]))
    third, gate = tl.split(even)
    first, second = tl.split(odd)
    return (first, second, third), gate if WHOLE else tl.where(index < end, gate, float("-inf"))


@triton.jit
def add_weight_gradients(found, da, s, b, BLOCK_N: tl.constexpr, C: tl.constexpr):
    """Add parts of sum_j dA_ij b_j^m s_ij^(p-2m) for m = 1, 2, 3 to `found`, for dA with its decay."""
    BLOCK_M: tl.constexpr = C.BLOCK_M
    first, second, third = found
    first += part_sums(da * b * term(s, 1, C), BLOCK_M, BLOCK_N)
    if C.TERMS > 1:
        second += part_sums(da * (b * b) * term(s, 2, C), BLOCK_M, BLOCK_N)
    if C.TERMS > 2:
        third += part_sums(da * (b * b * b) * term(s, 3, C), BLOCK_M, BLOCK_N)
    return first, second, third


@triton.jit
def store_weight_gradients(
    acc, found, queries, lower, d_lower, heads, start, end, scale_in, scale_out, C: tl.constexpr
):
    """Store dw_m = da_m N^m of each query, with N = (scale |q|)^2, and return acc + the part of dq through N.

    The part is sum_m da_m w_m m N^(m-1) 2 scale^2 q; acc is dq without its last factors, which it is divided by.
    """
    BLOCK_M: tl.constexpr = C.BLOCK_M
    TERMS: tl.constexpr = C.TERMS
    norms = squared_norms(queries, scale_in, C)
    factor = 2.0 / C.P
    if C.SCALE:
        factor *= scale_in
    index = start + tl.arange(0, BLOCK_M)
    pointer = lower.ptr + index.to(tl.int64) * lower.t
    along = tl.zeros([BLOCK_M], tl.float32)
    power_before = tl.full([BLOCK_M], 1.0, tl.float32)
    for m in tl.static_range(TERMS):
        da = tl.sum(found[m], 1)
        along += da * tl.load(pointer + m, mask=index < end, other=0.0).to(tl.float32) * power_before * (m + 1)
        power_before *= norms
        tl.store(d_lower + index.to(tl.int64) * heads * TERMS + m, da * power_before * scale_out, mask=index < end)
    return acc + (along * factor)[:, None] * queries.to(tl.float32)


@triton.jit
def join_weight_gradients(of_weights, part, decay, C: tl.constexpr):
    """Add parts of sums over earlier keys, decayed, to those of the own block."""
    first, second, third = of_weights
    first += part[0] * decay[:, None]
    if C.TERMS > 1:
        second += part[1] * decay[:, None]
    if C.TERMS > 2:
        third += part[2] * decay[:, None]
    return first, second, third
