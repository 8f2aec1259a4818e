"""The state's part of the gradients of queries and keys.

It is trilinear, sum_j (q.k_j)(x.k_j)(dy.v_j) for the gradient along x, so it is the forward's product again with
q (x) dy as the expanded row, and needs no sums over expanded elements outside the matrix units.
"""

import triton
import triton.language as tl

from icl_bench.kernels.power.triton.tiles import load_columns, load_matrix


@triton.jit
def contract_tiles(
    acc, y, y_t, x, start, end, state, first,
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
        left = load_columns(y, start, y_t, end, b0, b_width, BLOCK, step).to(DOT)
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
def gradient_of_state(
    acc, x, k, k_t, values, rows, start, end, state, expanded, delta,
    K: tl.constexpr, V: tl.constexpr, K_BLOCK: tl.constexpr, V_BLOCK: tl.constexpr,
    LINEAR: tl.constexpr, SUM: tl.constexpr, BLOCK: tl.constexpr, DEPTH: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Gradient along the rows of k (or q) of <values, phi(rows) S> - delta z.phi(rows), divided by p."""
    if LINEAR:
        block = load_matrix(state, K, V, K_BLOCK, V_BLOCK).to(DOT)
        acc = tl.dot(values, tl.trans(block), acc, input_precision=PRECISION)
        if SUM:
            index = tl.arange(0, K_BLOCK)
            z = tl.load(state + expanded + index, mask=index < K, other=0.0).to(tl.float32)
            acc -= delta[:, None] * z[None, :]
    else:
        acc = contract_tiles(
            acc, k, k_t, values, start, end, state, 0, K, K, V, V_BLOCK, K_BLOCK, "both",
            BLOCK, DEPTH, DOT, PRECISION, STAGES,
        )  # fmt: skip
        if SUM:
            block = load_matrix(state + expanded, K, K, K_BLOCK, K_BLOCK).to(DOT)
            acc -= delta[:, None] * tl.dot(rows, block, input_precision=PRECISION)
    return acc
