"""The state's part of the gradients of queries and keys of power attention.

For p = 2 it is trilinear, sum_j (q.k_j)(x.k_j)(dy.v_j) for the gradient along x, so it is the forward's product again
with q (x) dy as the expanded row, and needs no sums over expanded elements outside the matrix units. For p >= 3 the
expanded row is u (x) w with u and w of about half the degree: the gradient along one factor is the product of the state
with the other factor and the output gradient, and that of the query or key follows by the chain rule.
"""

import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.power.expansion import expand, power_basis
from icl_bench.kernels.power.triton.tiles import load_columns, load_matrix, load_tokens, load_vector
from icl_bench.kernels.power.triton.tokens import load_query_stats
from icl_bench.kernels.triton.common import at_head


@triton.jit
def _contract_tiles(
    acc, y, x, start, end, state, first,
    U: tl.constexpr, W: tl.constexpr, V: tl.constexpr, V_BLOCK: tl.constexpr, COLUMNS: tl.constexpr, SIDE: tl.constexpr,
    BLOCK: tl.constexpr, DEPTH: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """acc[t, a] + sum over b, e of y[t, b] x[t, e] S[a, b, e], for the columns a = first.. of the state in tiles.

    SIDE says which factor a counts: "both" for a symmetric state, "left" (a in u, b in w) or "right" (a in w, b in u).
    """
    b_width: tl.constexpr = U if SIDE == "right" else W
    a_width: tl.constexpr = W if SIDE == "right" else U
    step: tl.constexpr = DEPTH // V_BLOCK if DEPTH >= V_BLOCK else 1
    w_tiles: tl.constexpr = (W + 15) // 16
    depth = tl.arange(0, step * V_BLOCK)
    e = depth % V_BLOCK
    column = first + tl.arange(0, COLUMNS)
    a_tile = (column // 16)[None, :]
    a_in = (column % 16)[None, :]
    for b0 in tl.range(0, b_width, step, num_stages=STAGES):
        left = load_columns(y, start, end, b0, b_width, BLOCK, step).to(DOT)
        phi = tl.reshape(left[:, :, None] * x[:, None, :], [BLOCK, step * V_BLOCK])
        b_tile = b0 // 16
        b_in = (b0 % 16 + depth // V_BLOCK)[:, None]
        if SIDE == "both":
            low = tl.minimum(a_tile, b_tile)
            high = tl.maximum(a_tile, b_tile)
            place = (high * (high + 1) // 2 + low) * 256
            place = place + tl.where(a_tile < b_tile, a_in * 16 + b_in, b_in * 16 + a_in)
        elif SIDE == "left":
            place = (a_tile * w_tiles + b_tile) * 256 + a_in * 16 + b_in
        else:
            place = (b_tile * w_tiles + a_tile) * 256 + b_in * 16 + a_in
        pointer = state + place * V + e[:, None]
        if (V == V_BLOCK) and (a_width % COLUMNS == 0):
            values = tl.load(pointer)
        else:
            values = tl.load(pointer, mask=(column < a_width)[None, :] & (e < V)[:, None], other=0.0)
        acc = tl.dot(phi, values.to(DOT), acc, input_precision=PRECISION)
    return acc


@triton.jit
def gradient_of_state(acc, x, values, rows, start, end, state, expanded, delta, BLOCK: tl.constexpr, C: tl.constexpr):
    """acc + (d/dx (<values, phi(x) S> - delta z.phi(x))) / p along the rows x of queries or keys, for p <= 2."""
    if C.LINEAR:
        block = load_matrix(state, C.K, C.V, C.K_BLOCK, C.V_BLOCK).to(C.DOT)
        acc = tl.dot(values, tl.trans(block), acc, input_precision=C.PRECISION)
        if C.SUM:
            index = tl.arange(0, C.K_BLOCK)
            z = tl.load(state + expanded + index, mask=index < C.K, other=0.0).to(tl.float32)
            acc -= delta[:, None] * z[None, :]
    else:
        PRECISION: tl.constexpr = C.PRECISION
        acc = _contract_tiles(
            acc, x, values, start, end, state, 0, C.K, C.K, C.V, C.V_BLOCK, C.K_BLOCK, "both",
            BLOCK, C.DEPTH, C.DOT, PRECISION, C.STATE_STAGES,
        )  # fmt: skip
        if C.SUM:
            block = load_matrix(state + expanded, C.K, C.K, C.K_BLOCK, C.K_BLOCK).to(C.DOT)
            acc -= delta[:, None] * tl.dot(rows, block, input_precision=C.PRECISION)
    return acc


@triton.jit(do_not_specialize=["T", "chunk", "chunks", "heads", "repeat"])
def power_factor_gradient_kernel(
    y, x, query_stats, gates, states, out, T, chunk, chunks, heads, repeat, factor,
    U: tl.constexpr, W: tl.constexpr, V: tl.constexpr, V_BLOCK: tl.constexpr, SIDE: tl.constexpr,
    OF_KEYS: tl.constexpr, EDGE: tl.constexpr, GATED: tl.constexpr, SUM: tl.constexpr,
    BLOCK: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
    SHARE: tl.constexpr,
):  # fmt: skip
    """du_a = f sum over b, e of y_b x_e S[a, b, e], float32 [N, H, T, columns]: u is the factor of SIDE, y the other.

    x is the output gradient for queries, the value for keys (OF_KEYS); EDGE says that the outermost chunk has a state.
    Grid: (row blocks times N * H, column blocks).
    """
    blocks = tl.cdiv(T, BLOCK)
    start = tl.program_id(0) % blocks * BLOCK
    row = (tl.program_id(0) // blocks).to(tl.int64)
    n = row // heads
    h = row % heads
    state_row = n * (heads // repeat) + h // repeat
    first = tl.program_id(1) * COLUMNS
    c = start // chunk
    end = tl.minimum(T, (c + 1) * chunk)
    width: tl.constexpr = W if SIDE == "right" else U
    other: tl.constexpr = U if SIDE == "right" else W
    y = at_head(y, n, h // SHARE)
    rows = load_tokens(at_head(x, n, h), start, end, V, BLOCK, V_BLOCK, False).to(DOT)
    if not OF_KEYS:
        weight, delta, _ = load_query_stats(query_stats + row * T * 4, start, end, BLOCK, False)
    acc = tl.zeros([BLOCK, COLUMNS], tl.float32)
    last = c + 1 == chunks if OF_KEYS else c == 0
    if EDGE | (last == 0):
        state = states.ptr + (state_row * chunks + c) * states.elements
        acc = _contract_tiles(
            acc, y, rows, start, end, state, first, U, W, V, V_BLOCK, COLUMNS, SIDE, BLOCK, DEPTH, DOT, PRECISION, 1
        )
        if SUM:  # only for a symmetric state: the gradient of u Z u is 2 Z u, and that of the values is doubled below
            column = first + tl.arange(0, COLUMNS)
            product = tl.zeros([BLOCK, COLUMNS], tl.float32)
            for b in range(0, other, 16):
                index = b + tl.arange(0, 16)
                mask = (index < other)[:, None] & (column < width)[None, :]
                z = tl.load(state + states.expanded + index[:, None] * W + column[None, :], mask=mask, other=0.0)
                left = load_columns(y, start, end, b, other, BLOCK, 16).to(DOT)
                product = tl.dot(left, z.to(DOT), product, input_precision=PRECISION)
            if OF_KEYS:
                acc += product
            else:
                acc -= delta[:, None] * product
    scale = tl.full([BLOCK], 1.0, tl.float32) * factor
    if SIDE == "both":
        scale *= 2.0
    if not OF_KEYS:
        scale *= weight
    if GATED:
        gates += state_row * T
        gate = load_vector(gates, start, end, BLOCK)
        scale *= tl.exp2(tl.load(gates + end - 1) - gate) if OF_KEYS else tl.exp2(gate)
    acc *= scale[:, None]
    index = start + tl.arange(0, BLOCK)
    column = first + tl.arange(0, COLUMNS)
    pointer = out + (row * T + index)[:, None] * width + column[None, :]
    tl.store(pointer, acc, mask=(index < end)[:, None] & (column < width)[None, :])


def expansion_gradient(x: Tensor, du: Tensor, degree: int) -> Tensor:
    """Return dx [.., K] from the gradient du [.., D] of u = phi(x) of a degree, by a gather, so that the bits repeat.

    u_t = w_t m_t, and dm_t / dx_k = mult_k(t) m_r for the one tuple r that k joined to it makes t.
    """
    if degree == 1:
        return du
    basis = power_basis(x.shape[-1], degree, x.device)
    lower = expand(x.float(), degree - 1) / power_basis(x.shape[-1], degree - 1, x.device).weight[:, 0].float()
    weighted = (du * basis.weight[:, 0].float()).index_select(-1, basis.join)
    pairs = weighted.unflatten(-1, (x.shape[-1], -1)) * basis.multiplicity[..., 0].float()
    dx: Tensor = (pairs @ lower[..., None])[..., 0]
    return dx
