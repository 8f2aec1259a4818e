"""Half a tile of a state in a walk (`walk`): its layouts, the expanded rows of tokens, and writing it, in Gluon."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, tma, warpgroup_mma, warpgroup_mma_wait

# Names that Triton 3.6 has, or those of later versions.
STORE = tma.async_store if hasattr(tma, "async_store") else tma.async_copy_shared_to_global
SYNCHRONISE = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier
STEP = gl.constexpr(16)
"""Tokens of a step of products, the fewest that the hardware takes."""


@gluon.constexpr_function
def product_layout(V):
    """Return the layout of an accumulator of V columns, of four warps."""
    return gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, V, 16])


@gluon.constexpr_function
def expanded_layout():
    """Return the layout of expanded rows [2, 4, 16, STEP], which is that of the left operand of a product.

    Of the channel pair (i, j), i = 2 warp + the first axis and j is the third one: a thread needs two neighbouring
    channels i of a token, one word of shared memory, and the channels j as a transposing load of matrices gives them.
    """
    return gl.DistributedLinearLayout(
        reg_bases=[[0, 0, 0, 1], [0, 0, 8, 0], [0, 0, 0, 8], [1, 0, 0, 0]],
        lane_bases=[[0, 0, 0, 2], [0, 0, 0, 4], [0, 0, 1, 0], [0, 0, 2, 0], [0, 0, 4, 0]],
        warp_bases=[[0, 1, 0, 0], [0, 2, 0, 0]], block_bases=[], shape=[2, 4, 16, 16],
    )  # fmt: skip


@gluon.constexpr_function
def left_layout():
    """Return the layout of the channels i of tokens, [8, STEP], in which they are loaded."""
    return gl.DistributedLinearLayout(
        reg_bases=[[1, 0], [0, 1], [0, 8]], lane_bases=[[0, 2], [0, 4], [0, 0], [0, 0], [0, 0]],
        warp_bases=[[2, 0], [4, 0]], block_bases=[], shape=[8, 16],
    )  # fmt: skip


@gluon.jit
def _expand_step(u, w, weights, HALF: gl.constexpr, V: gl.constexpr, VALUES: gl.constexpr):
    """f_t u_ti w_tj of the rows (i, j) of half a tile, [128, STEP], as the left operand of a product."""
    WHOLE: gl.constexpr = expanded_layout()
    u = u.slice(8 * HALF, 8, dim=1).permute((1, 0)).load(left_layout())
    if VALUES:
        weight = weights.load(gl.SliceLayout(0, left_layout()))
        u *= weight[None, :]
    u = gl.permute(gl.reshape(u, [4, 2, STEP]), [1, 0, 2])
    u = gl.convert_layout(u, gl.SliceLayout(2, WHOLE), assert_trivial=True)
    w = w.permute((1, 0)).load(gl.SliceLayout(0, gl.SliceLayout(1, WHOLE)))
    rows = gl.reshape(gl.expand_dims(u, 2) * gl.expand_dims(gl.expand_dims(w, 0), 1), [128, STEP])
    return gl.convert_layout(rows, gl.DotOperandLayout(0, product_layout(V), 2), assert_trivial=True)


@gluon.jit
def expanded_rows(
    pieces, weights, s, other, FIRST: gl.constexpr, STEPS: gl.constexpr, HALF: gl.constexpr, V: gl.constexpr,
    VALUES: gl.constexpr,
):  # fmt: skip
    """Return the expanded rows of half a tile for STEPS steps of a block of tokens, that of stage s, from FIRST on.

    Its right piece is the first, too, or `other` is 1.
    """
    rows = ()
    for k in gl.static_range(FIRST, FIRST + STEPS):
        u = pieces.index(2 * s).slice(k * STEP, STEP, dim=0)
        w = pieces.index(2 * s + other).slice(k * STEP, STEP, dim=0)
        rows += (_expand_step(u, w, weights.index(s).slice(k * STEP, STEP), HALF, V, VALUES),)
    return rows


@gluon.jit
def multiply(rows, values, acc, FIRST: gl.constexpr, STEPS: gl.constexpr):
    """acc + the products of STEPS steps of tokens from FIRST on, not waited for.

    A step is a product of each half of the rows, so that no product waits for the sum of the one before it.
    """
    for k in gl.static_range(STEPS):
        acc = warpgroup_mma(rows[k], values.slice((FIRST + k) * STEP, STEP, dim=0), acc, is_async=True)
    return acc


@gluon.jit
def wait_for_products(pending: gl.constexpr, acc, rows, STEPS: gl.constexpr):
    """Wait until at most `pending` steps of products are under way; return their sum and `rows`, to be used no earlier.

    Rows are named, or their registers would be written while a product reads them.
    """
    if STEPS == 2:
        acc, a, b = warpgroup_mma_wait(pending, deps=[acc, rows[0], rows[1]])
        rows = (a, b)
    else:
        acc, a, b, c, d = warpgroup_mma_wait(pending, deps=[acc, rows[0], rows[1], rows[2], rows[3]])
        rows = (a, b, c, d)
    return acc, rows


@gluon.constexpr_function
def stored_layout(V):
    """Return the layout of half a tile [128, V] in the order of its rows in memory, which is that of an accumulator."""
    columns = [[0, 1 << bit] for bit in range(3, V.bit_length() - 1)]
    return gl.DistributedLinearLayout(
        reg_bases=[[0, 1], [8, 0], *columns, [16, 0]], lane_bases=[[0, 2], [0, 4], [1, 0], [2, 0], [4, 0]],
        warp_bases=[[32, 0], [64, 0]], block_bases=[], shape=[128, V],
    )  # fmt: skip


@gluon.jit
def in_order(acc, V: gl.constexpr):
    """Return half a tile with its rows in the order of memory; nothing moves."""
    tile = gl.reshape(gl.permute(gl.reshape(acc, [2, 4, 16, V]), [1, 0, 2, 3]), [128, V])
    return gl.convert_layout(tile, stored_layout(V), assert_trivial=True)


@gluon.jit
def write_tile(out, staging, tile, row):
    """Write half a tile of a state to the rows row.. of all states."""
    tma.store_wait(0)
    SYNCHRONISE()
    staging.store(tile.to(gl.bfloat16))
    fence_async_shared()
    SYNCHRONISE()
    STORE(out, [row, 0], staging)


@gluon.jit
def store_dots(dots, tile, before, factor, chunks, V: gl.constexpr):
    """Store `factor` times the sum of products of half a tile with the same rows of another state, for each warp."""
    products = gl.reshape(before.load(stored_layout(V)).to(gl.float32) * tile, [4, 32, V])
    sums = gl.sum(gl.sum(products, 2), 1)
    gl.store(dots + gl.arange(0, 4, sums.type.layout) * chunks, sums * factor)
