"""Lower degrees inside a score: polynomials of scores in place of powers, on keys of length 1.

    A = s^p + sum_m a_m s^(p-2m),   a_m = w_m |q|^2m,   m = 1 .. TERMS = p // 2

for s = q.k / |k| and values |k|^p v, with scale^p on sums of them (float32 and bfloat16 have the range for powers). So
a score costs one multiplication and addition where the plain power costs a multiplication, and nothing of a key enters
it. With A homogeneous of degree p in k, the part of dk along the key is (p v.dv) k / |k|^2, so that no norm has a
gradient of its own. (dA / ds) / p is the polynomial of degree p - 1 with the weights (p - 2m) / p a_m.

The kernels of short sequences serve all p so; over longer ones p = 2 has a form of its own, see `rank_one`.
"""

import triton
import triton.language as tl

from icl_bench.kernels.power.triton.tiles import load_columns, power
from icl_bench.kernels.triton.common import View, at_head, part_sums


@triton.jit
def unit_rows(rows):
    """Return the rows of a tile with length 1, and their lengths; a row of zeros stays."""
    x = rows.to(tl.float32)
    squares = tl.sum(x * x, 1)
    inverse = tl.rsqrt(tl.where(squares > 0, squares, 1.0))
    return x * inverse[:, None], squares * inverse


@triton.jit
def to_unit_keys(keys, values, C: tl.constexpr):
    """Return k / |k|, |k|^p v and |k| of the rows of two tiles."""
    unit, length = unit_rows(keys)
    return unit.to(C.DOT), (values.to(tl.float32) * power(length, C.P)[:, None]).to(C.DOT), length


@triton.jit(do_not_specialize=["T", "groups"])
def power_unit_keys_kernel(
    k, v, unit, scaled, lengths, T, groups,
    P: tl.constexpr, SHARE: tl.constexpr, K: tl.constexpr, V: tl.constexpr, K_BLOCK: tl.constexpr,
    V_BLOCK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """k_t / |k_t|, x_t = |k_t|^p v_t and |k_t|, float32 [N, J, T].

    Grid: blocks of tokens times N * G; SHARE = G / J.
    """
    blocks = tl.cdiv(T, BLOCK)
    start = tl.program_id(0) % blocks * BLOCK
    row = (tl.program_id(0) // blocks).to(tl.int64)
    n = row // groups
    g = row % groups
    j = g // SHARE
    keys = load_columns(at_head(k, n, j), start, T, 0, K, BLOCK, K_BLOCK)
    values = load_columns(at_head(v, n, g), start, T, 0, V, BLOCK, V_BLOCK)
    rows, length = unit_rows(keys)
    index = start + tl.arange(0, BLOCK)
    own = index < tl.where(g % SHARE == 0, T, 0)  # one of the heads that share a key writes it
    tl.store(lengths + (n * (groups // SHARE) + j) * T + index, length, mask=own)
    _store(at_head(unit, n, j), rows, index, own, K, K_BLOCK)
    x = values.to(tl.float32) * power(length, P)[:, None]
    _store(at_head(scaled, n, g), x, index, index < T, V, V_BLOCK)


@triton.jit
def _store(view, tile, index, mask, WIDTH: tl.constexpr, COLUMNS: tl.constexpr):
    column = tl.arange(0, COLUMNS)
    pointer = view.ptr + index.to(tl.int64)[:, None] * view.t + column[None, :]
    tl.store(pointer, tile.to(view.ptr.dtype.element_ty), mask=mask[:, None] & (column < WIDTH)[None, :])


@triton.jit
def squared_norms(rows):
    """|q|^2 of each row of a tile."""
    x = rows.to(tl.float32)
    return tl.sum(x * x, 1)


@triton.jit
def load_weights(lower, norms, start, end, BLOCK: tl.constexpr, C: tl.constexpr):
    """a_1, a_2, a_3 of the rows start.. of a head from their norms; zeros past `end` and past TERMS."""
    first = load_weight(lower, 0, start, end, BLOCK, C) * norms
    second = tl.zeros([BLOCK], tl.float32)
    third = second
    if C.TERMS > 1:
        second = load_weight(lower, 1, start, end, BLOCK, C) * (norms * norms)
    if C.TERMS > 2:
        third = load_weight(lower, 2, start, end, BLOCK, C) * (norms * norms * norms)
    return first, second, third


@triton.jit
def load_weight(lower, m: tl.constexpr, start, end, BLOCK: tl.constexpr, C: tl.constexpr):
    """w_(m+1) of the rows start.., a single number where it is not by token."""
    if C.BY_TOKEN:
        index = start + tl.arange(0, BLOCK)
        return tl.load(lower.ptr + index.to(tl.int64) * lower.t + m, mask=index < end, other=0.0).to(tl.float32)
    else:
        return tl.load(lower.ptr + m).to(tl.float32)


@triton.jit
def polynomial(s, a, DEGREE: tl.constexpr):
    """s^DEGREE + sum_m a_m s^(DEGREE-2m) by Horner's rule in s^2, for a = (a_1, a_2, a_3) that broadcast over s."""
    if DEGREE == 1:
        return s
    t = s * s
    out = t + a[0]
    if DEGREE // 2 > 1:
        out = out * t + a[1]
    if DEGREE // 2 > 2:
        out = out * t + a[2]
    if DEGREE % 2 == 1:
        out *= s
    return out


@triton.jit
def slope_weights(a, C: tl.constexpr):
    """Return the weights of (dA / ds) / p, a polynomial of degree p - 1."""
    return a[0] * ((C.P - 2) / C.P), a[1] * ((C.P - 4) / C.P), a[2] * ((C.P - 6) / C.P)


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
def key_block_of_terms(
    dk, dv, sums, keys, values, queries, cotangents, query_stats, gate, m0, n0, end,
    OF_KEYS: tl.constexpr, OF_VALUES: tl.constexpr, OWN: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Do the work of `backward._key_block` with lower degrees, which have no w and delta."""
    BLOCK_M: tl.constexpr = C.BLOCK_M
    BLOCK_N: tl.constexpr = C.BLOCK_N
    a, row_gate = load_stored_weights(query_stats, m0, end, BLOCK_M, C.WHOLE)
    s = tl.dot(keys, tl.trans(queries), input_precision=C.PRECISION)
    score = polynomial(s, (a[0][None, :], a[1][None, :], a[2][None, :]), C.P)
    weights = score
    if OWN:
        causal = (tl.arange(0, BLOCK_N)[:, None] - tl.arange(0, BLOCK_M)[None, :]) <= m0 - n0
    if C.GATED:
        if OWN:
            decay = tl.where(causal, row_gate[None, :] - gate[:, None], float("-inf"))
            decay = tl.exp2(decay)
        else:
            decay = tl.exp2(row_gate - gate)[None, :]
        weights = score * decay
    elif OWN:
        weights = tl.where(causal, score, 0.0)
    if OF_VALUES:
        dv = tl.dot(weights.to(C.DOT), cotangents, dv, input_precision=C.PRECISION)
    if OF_KEYS:
        ds = tl.dot(values, tl.trans(cotangents), input_precision=C.PRECISION)
        if C.GATED:
            ds *= decay
            sums += part_sums(ds * score, BLOCK_N, BLOCK_M)
        elif OWN:
            ds = tl.where(causal, ds, 0.0)
        e = slope_weights(a, C)
        ds *= polynomial(s, (e[0][None, :], e[1][None, :], e[2][None, :]), C.P - 1)
        dk = tl.dot(ds.to(C.DOT), queries, dk, input_precision=C.PRECISION)
    return dk, dv, sums


@triton.jit
def add_weight_gradients(found, da, s, BLOCK_N: tl.constexpr, C: tl.constexpr):
    """Add parts of sum_j dA_ij s_ij^(p-2m) for m = 1, 2, 3 to `found`, for dA with its decay."""
    BLOCK_M: tl.constexpr = C.BLOCK_M
    first, second, third = found
    first += part_sums(_times_power(da, s, C.P - 2), BLOCK_M, BLOCK_N)
    if C.TERMS > 1:
        second += part_sums(_times_power(da, s, C.P - 4), BLOCK_M, BLOCK_N)
    if C.TERMS > 2:
        third += part_sums(_times_power(da, s, C.P - 6), BLOCK_M, BLOCK_N)
    return first, second, third


@triton.jit
def _times_power(x, s, P: tl.constexpr):
    return x if P == 0 else x * power(s, P)


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


@triton.jit
def store_weight_gradients(
    acc, found, queries, lower, d_lower, heads, start, end, scale_out, C: tl.constexpr
):  # fmt: skip
    """Store dw_m = da_m N^m, with N = |q|^2; return acc + the part of dq through N, and sum_m 2m/p a_m da_m.

    The part is sum_m da_m w_m m N^(m-1) 2 q; acc is dq without its last factors, which it is divided by. The
    sum is what sum_j dA_ij A_ij of the chunk has beyond sum_j ds_ij s_ij: the slope has (p - 2m) / p of a term.
    BY_TOKEN: [N, T, H, TERMS]; else the sum of each program's rows, as [N, blocks, H, TERMS]. `d_lower` begins at the
    head.
    """
    BLOCK_M: tl.constexpr = C.BLOCK_M
    TERMS: tl.constexpr = C.TERMS
    norms = squared_norms(queries)
    index = start + tl.arange(0, BLOCK_M)
    along = tl.zeros([BLOCK_M], tl.float32)
    beyond = along
    power_before = tl.full([BLOCK_M], 1.0, tl.float32)
    for m in tl.static_range(TERMS):
        da = tl.sum(found[m], 1)
        weight = load_weight(lower, m, start, end, BLOCK_M, C)
        beyond += da * weight * power_before * norms * (2 * (m + 1) / C.P)
        along += da * weight * power_before * (m + 1)
        power_before *= norms
        if C.BY_TOKEN:
            place = d_lower + index.to(tl.int64) * heads * TERMS + m
            tl.store(place, da * power_before * scale_out, mask=index < end)
        else:  # rows past the end are zeros
            tl.store(d_lower + (start // BLOCK_M) * heads * TERMS + m, tl.sum(da * power_before, 0) * scale_out)
    return acc + (along * (2.0 / C.P))[:, None] * queries.to(tl.float32), beyond


@triton.jit
def gradient_of_keys(du, dx, keys, values, length, C: tl.constexpr):
    """dk = (du + (p x.dx - u.du) u) / |k| from the gradients of u = k / |k| and x = |k|^p v, the two tiles."""
    u = keys.to(tl.float32)
    along = C.P * tl.sum(values.to(tl.float32) * dx, 1) - tl.sum(u * du, 1)
    return (du + along[:, None] * u) / tl.where(length > 0, length, 1.0)[:, None]


@triton.jit
def lower_weights(lower, n, h, share):
    """Return the view of the weights of head h of sequence n, of which `share` in a row have the same ones."""
    return View(at_head(lower, n // share, h).ptr, lower.n, lower.t, lower.h)
