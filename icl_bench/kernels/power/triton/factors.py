"""The state's part of the gradients of queries and keys for p >= 3, through the factor vectors u and w.

The expanded row is u (x) w with u and w of about half the degree, so that the gradient along one factor is the product
of the state with the other factor and the output gradient (`contract_tiles`); that of the query or key follows by the
chain rule.
"""

import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.power.expansion import expand, power_basis
from icl_bench.kernels.power.triton.contract import contract_tiles
from icl_bench.kernels.power.triton.facts import load_facts
from icl_bench.kernels.power.triton.tiles import load_columns, load_rows, load_vector


@triton.jit(do_not_specialize=["T", "chunk", "chunks", "heads", "repeat"])
def factor_gradient_kernel(
    y, x, facts, gates, states, out,
    y_n, y_t, y_h, x_n, x_t, x_h,
    T, chunk, chunks, heads, repeat, elements, expanded, factor,
    U: tl.constexpr, W: tl.constexpr, V: tl.constexpr, V_BLOCK: tl.constexpr, SIDE: tl.constexpr,
    OF_KEYS: tl.constexpr, EDGE: tl.constexpr, GATED: tl.constexpr, SUM: tl.constexpr,
    BLOCK: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient [N, H, T, columns] along the factor that SIDE names, in float32.

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
    y += n * y_n + h * y_h
    rows = load_rows(x + n * x_n + h * x_h, start, x_t, end, V, BLOCK, V_BLOCK, False).to(DOT)
    if not OF_KEYS:
        weight, delta, _ = load_facts(facts + row * T * 4, start, end, BLOCK, False)
    acc = tl.zeros([BLOCK, COLUMNS], tl.float32)
    last = c + 1 == chunks if OF_KEYS else c == 0
    if EDGE | (last == 0):
        states += (state_row * chunks + c) * elements
        acc = contract_tiles(
            acc, y, y_t, rows, start, end, states, first, U, W, V, V_BLOCK, COLUMNS, SIDE,
            BLOCK, DEPTH, DOT, PRECISION, 1,
        )  # fmt: skip
        if SUM:  # only for a symmetric state: the gradient of u Z u is 2 Z u, and that of the values is doubled below
            column = first + tl.arange(0, COLUMNS)
            product = tl.zeros([BLOCK, COLUMNS], tl.float32)
            for b in range(0, other, 16):
                index = b + tl.arange(0, 16)
                mask = (index < other)[:, None] & (column < width)[None, :]
                z = tl.load(states + expanded + index[:, None] * W + column[None, :], mask=mask, other=0.0)
                left = load_columns(y, start, y_t, end, b, other, BLOCK, 16).to(DOT)
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
    """dx [.., K] from the gradient du [.., D] of u = phi(x) of a degree, by a gather, so that the bits repeat.

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
