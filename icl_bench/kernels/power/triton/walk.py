"""States of power attention of p = 2 in one walk over a sequence, on Hopper: chunk sums and their scan in one kernel.

A program carries one tile of the state of a head through all chunks, in float32 and in registers, and writes it before
each chunk. Two groups of four warps have half of its rows each; one more warp loads the tokens of both. While the
tensor cores multiply one block of tokens, a group makes the expanded rows of the next one, and while it waits the other
one multiplies. Triton's own pipeline has one group, which does both in turn; this is written in Gluon, where layouts,
barriers and the waits for products are explicit. It has no interpreter.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.power.triton.problem import WALK_BLOCK, WALK_TURN, PowerProblem, TokenWeights

# Names that Triton 3.6 has, or those of later versions.
LOAD = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared
STORE = tma.async_store if hasattr(tma, "async_store") else tma.async_copy_shared_to_global
SYNCHRONISE = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier


class WalkConstants(NamedTuple):
    """Constants that the kernel is compiled for."""

    V: int
    """Width of keys and of values."""
    TILES: int
    """Tiles of a state."""
    PROGRAMS: int
    """Programs of a state, one for each tile and one for the normaliser."""
    ROWS: int
    """Rows of V elements of a state."""
    DOT_PARTS: int
    """Parts of a product of two states."""
    REVERSE: bool
    GATED: bool
    WEIGHTED: bool
    """Use weights of tokens in the normaliser."""
    VALUES: bool
    """Use weights of tokens in the tiles too."""
    DOTS: bool
    BLOCK: int = WALK_BLOCK
    """Tokens of a block."""
    TURN: int = WALK_TURN
    """Blocks of a turn of the loop."""
    STAGES: int = 6
    """Blocks of tokens in shared memory."""
    REGISTERS: int = 240
    """Most registers of a thread that multiplies."""


@gluon.constexpr_function
def product_layout(V):
    """Return the layout of an accumulator of V columns, of four warps."""
    return gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, V, 16])


@gluon.constexpr_function
def expanded_layout(BLOCK):
    """Return the layout of expanded rows [2, 4, 16, BLOCK], which is that of the left operand of a product.

    Of the channel pair (i, j), i = 2 warp + the first axis and j is the third one: a thread needs two neighbouring
    channels i of a token, one word of shared memory, and the channels j as a transposing load of matrices gives them.
    """
    blocks = [[0, 0, 0, 1 << bit] for bit in range(3, BLOCK.bit_length() - 1)]
    return gl.DistributedLinearLayout(
        reg_bases=[[0, 0, 0, 1], [0, 0, 8, 0], *blocks, [1, 0, 0, 0]],
        lane_bases=[[0, 0, 0, 2], [0, 0, 0, 4], [0, 0, 1, 0], [0, 0, 2, 0], [0, 0, 4, 0]],
        warp_bases=[[0, 1, 0, 0], [0, 2, 0, 0]], block_bases=[], shape=[2, 4, 16, BLOCK],
    )  # fmt: skip


@gluon.constexpr_function
def left_layout(BLOCK):
    """Return the layout of the channels i of tokens, [8, BLOCK], in which they are loaded."""
    blocks = [[0, 1 << bit] for bit in range(3, BLOCK.bit_length() - 1)]
    return gl.DistributedLinearLayout(
        reg_bases=[[1, 0], [0, 1], *blocks], lane_bases=[[0, 2], [0, 4], [0, 0], [0, 0], [0, 0]],
        warp_bases=[[2, 0], [4, 0]], block_bases=[], shape=[8, BLOCK],
    )  # fmt: skip


@gluon.jit
def _expand(pieces, weights, s, other, HALF: gl.constexpr, BLOCK: gl.constexpr, V: gl.constexpr, VALUES: gl.constexpr):
    """f_t u_ti w_tj of the rows (i, j) of half a tile, [128, BLOCK], as the left operand of a product.

    The block of tokens is that of stage s; its right piece is the first, too, or `other` is 1.
    """
    WHOLE: gl.constexpr = expanded_layout(BLOCK)
    u = pieces.index(2 * s).slice(8 * HALF, 8, dim=1).permute((1, 0)).load(left_layout(BLOCK))
    if VALUES:
        weight = weights.index(s).load(gl.SliceLayout(0, left_layout(BLOCK)))
        u = (u.to(gl.float32) * weight[None, :]).to(gl.bfloat16)
    u = gl.permute(gl.reshape(u, [4, 2, BLOCK]), [1, 0, 2])
    u = gl.convert_layout(u, gl.SliceLayout(2, WHOLE), assert_trivial=True)
    w = pieces.index(2 * s + other).permute((1, 0)).load(gl.SliceLayout(0, gl.SliceLayout(1, WHOLE)))
    rows = gl.reshape(gl.expand_dims(u, 2) * gl.expand_dims(gl.expand_dims(w, 0), 1), [128, BLOCK])
    return gl.convert_layout(rows, gl.DotOperandLayout(0, product_layout(V), 2), assert_trivial=True)


@gluon.jit
def _write_tile(out, staging, acc, row, V: gl.constexpr):
    """Write half a tile of a state to the rows row.. of all states."""
    tile = gl.permute(gl.reshape(acc, [2, 4, 16, V]), [1, 0, 2, 3])
    tile = gl.reshape(tile, [128, V]).to(gl.bfloat16)
    tma.store_wait(0)
    SYNCHRONISE()
    staging.store(tile)
    fence_async_shared()
    SYNCHRONISE()
    STORE(out, [row, 0], staging)


@gluon.jit
def _dot(prefix, acc, V: gl.constexpr):
    """Sum the products of half a tile with the same rows of another state, at `prefix`."""
    LAYOUT: gl.constexpr = product_layout(V)
    row = gl.arange(0, 128, gl.SliceLayout(1, LAYOUT))
    row = (row // 16 % 4 * 2 + row // 64) * 16 + row % 16
    before = gl.load(prefix + row[:, None] * V + gl.arange(0, V, gl.SliceLayout(0, LAYOUT))[None, :])
    return gl.sum(gl.sum(before.to(gl.float32) * acc, 1), 0)


@gluon.jit
def _chunk(c, T, chunk, chunks, REVERSE: gl.constexpr, BLOCK: gl.constexpr):
    """Return the place of the chunk that comes c-th, its blocks, and its last token."""
    place = chunks - 1 - c if REVERSE else c
    end = gl.minimum(T, (place + 1) * chunk)
    return place, (end - place * chunk) // BLOCK, end - 1


@gluon.jit
def _blocks(T, chunk, REVERSE: gl.constexpr, BLOCK: gl.constexpr):
    """Return the blocks of all chunks that are summed: all but the last in order."""
    return (T - chunk if REVERSE else (T - 1) // chunk * chunk) // BLOCK


@gluon.jit
def _walk_tile(
    pieces, values, weights, staging, ready, empty, out, prefix, dots, gates, row, pairs, T, chunk, chunks,
    HALF: gl.constexpr, V: gl.constexpr, ROWS: gl.constexpr, BLOCK: gl.constexpr, TURN: gl.constexpr,
    STAGES: gl.constexpr, REVERSE: gl.constexpr, GATED: gl.constexpr, VALUES: gl.constexpr, DOTS: gl.constexpr,
):  # fmt: skip
    """Walk half a tile, `pairs` times in the full product, through all chunks. See `power_walk_kernel`.

    The products of one block wait behind those of another while the rows of the next are made. None is in flight from
    turn to turn, or ptxas waits after each. Rows are named where a product is waited for, or their registers would be
    written while it reads them.
    """
    acc = gl.zeros([128, V], gl.float32, product_layout(V))
    other = pairs - 1  # a tile on the diagonal has one piece of keys
    total = _blocks(T, chunk, REVERSE, BLOCK)
    mbarrier.wait(ready.index(0), 0)
    rows = _expand(pieces, weights, 0, other, HALF, BLOCK, V, VALUES)
    i = 0
    for c in range(chunks):
        place, blocks, last = _chunk(c, T, chunk, chunks, REVERSE, BLOCK)
        _write_tile(out, staging, acc, row + place * ROWS, V)
        if GATED:
            decay = gl.exp2(gl.load(gates + last))
            if DOTS:
                product = _dot(prefix + (row + place * ROWS).to(gl.int64) * V, acc, V)
                gl.store(dots + place, product * pairs * decay)
            acc *= decay
        if c + 1 < chunks:
            for _ in range(blocks // TURN):
                one = i % STAGES
                moving = warpgroup_mma(rows, values.index(one), acc, is_async=True)
                for pair in gl.static_range(TURN // 2):
                    two = (i + 1) % STAGES
                    mbarrier.wait(ready.index(two), (i + 1) // STAGES & 1)
                    second = _expand(pieces, weights, two, other, HALF, BLOCK, V, VALUES)
                    moving = warpgroup_mma(second, values.index(two), moving, is_async=True)
                    moving, rows = warpgroup_mma_wait(1, deps=[moving, rows])
                    mbarrier.arrive(empty.index(one))
                    i += 2
                    after = gl.minimum(i, total - 1)  # the last block is looked at again, for nothing
                    one = after % STAGES
                    mbarrier.wait(ready.index(one), after // STAGES & 1)
                    rows = _expand(pieces, weights, one, other, HALF, BLOCK, V, VALUES)
                    if pair + 1 < TURN // 2:
                        moving = warpgroup_mma(rows, values.index(one), moving, is_async=True)
                        moving, second = warpgroup_mma_wait(1, deps=[moving, second])
                    else:
                        acc, second = warpgroup_mma_wait(0, deps=[moving, second])
                    mbarrier.arrive(empty.index(two))
    tma.store_wait(0)


@gluon.jit
def _walk_normaliser(
    vectors, weights, ready, empty, out, prefix, dots, gates, T, chunk, chunks,
    V: gl.constexpr, ROWS: gl.constexpr, BLOCK: gl.constexpr, STAGES: gl.constexpr,
    REVERSE: gl.constexpr, GATED: gl.constexpr, WEIGHTED: gl.constexpr, DOTS: gl.constexpr,
):  # fmt: skip
    """Walk the normaliser of a head, [V, V], through all chunks, by the first group alone."""
    LAYOUT: gl.constexpr = product_layout(V)
    LEFT: gl.constexpr = gl.DotOperandLayout(0, LAYOUT, 2)
    acc = gl.zeros([V, V], gl.float32, LAYOUT)
    index = gl.arange(0, V, gl.SliceLayout(1, LAYOUT))[:, None] * V
    index += gl.arange(0, V, gl.SliceLayout(0, LAYOUT))[None, :]
    i = 0
    for c in range(chunks):
        place, blocks, last = _chunk(c, T, chunk, chunks, REVERSE, BLOCK)
        gl.store(out + place * (ROWS * V) + index, acc.to(gl.bfloat16))
        if GATED:
            decay = gl.exp2(gl.load(gates + last))
            if DOTS:
                before = gl.load(prefix + place * (ROWS * V) + index).to(gl.float32)
                gl.store(dots + place, gl.sum(gl.sum(before * acc, 1), 0) * decay)
            acc *= decay
        if c + 1 < chunks:
            for _ in range(blocks):
                s = i % STAGES
                mbarrier.wait(ready.index(s), i // STAGES & 1)
                rows = vectors.index(s).permute((1, 0)).load(LEFT)
                if WEIGHTED:
                    weight = weights.index(s).load(gl.SliceLayout(0, LEFT))
                    rows = (rows.to(gl.float32) * weight[None, :]).to(gl.bfloat16)
                moving = warpgroup_mma(rows, vectors.index(s), acc, is_async=True)
                acc, rows = warpgroup_mma_wait(0, deps=[moving, rows])
                mbarrier.arrive(empty.index(s), count=2)
                i += 1


@gluon.jit
def _first_group(
    pieces, values, weights, staging, ready, empty, out, states, prefix, dots, gates, row, normaliser, pairs,
    T, chunk, chunks, C: gl.constexpr,
):  # fmt: skip
    if pairs > 0:
        _walk_tile(
            pieces, values, weights, staging.index(0), ready, empty, out, prefix, dots, gates, row, pairs, T,
            chunk, chunks, 0, C.V, C.ROWS, C.BLOCK, C.TURN, C.STAGES, C.REVERSE, C.GATED, C.VALUES, C.DOTS,
        )  # fmt: skip
    else:
        _walk_normaliser(
            values, weights, ready, empty, states + normaliser, prefix + normaliser, dots, gates, T, chunk, chunks,
            C.V, C.ROWS, C.BLOCK, C.STAGES, C.REVERSE, C.GATED, C.WEIGHTED, C.DOTS,
        )  # fmt: skip


@gluon.jit
def _second_group(
    pieces, values, weights, staging, ready, empty, out, prefix, dots, gates, row, pairs, T, chunk, chunks,
    C: gl.constexpr,
):  # fmt: skip
    if pairs > 0:
        _walk_tile(
            pieces, values, weights, staging.index(1), ready, empty, out, prefix, dots + chunks, gates, row + 128,
            pairs, T, chunk, chunks, 1, C.V, C.ROWS, C.BLOCK, C.TURN, C.STAGES, C.REVERSE, C.GATED, C.VALUES, C.DOTS,
        )  # fmt: skip


@gluon.jit
def _load_tokens(
    keys, vectors, x, value_weights, sum_weights, pieces, values, weights, ready, empty, token, weight, column,
    a, b, pairs, T, chunk, C: gl.constexpr,
):  # fmt: skip
    """Load the blocks of tokens in the order of the walk; the last chunk in order is not summed."""
    for i in range(_blocks(T, chunk, C.REVERSE, C.BLOCK)):
        s = i % C.STAGES
        mbarrier.wait(empty.index(s), (i // C.STAGES & 1) ^ 1)
        start = T - (i + 1) * C.BLOCK if C.REVERSE else i * C.BLOCK
        if pairs > 0:
            piece: gl.constexpr = C.BLOCK * 32
            rest: gl.constexpr = C.BLOCK * (2 * C.V + (4 if C.VALUES else 0))
            if pairs == 2:
                mbarrier.expect(ready.index(s), rest + 2 * piece)
                LOAD(keys, [token + start, column + b * 16], ready.index(s), pieces.index(2 * s + 1))
            else:
                mbarrier.expect(ready.index(s), rest + piece)
            LOAD(keys, [token + start, column + a * 16], ready.index(s), pieces.index(2 * s))
            if C.VALUES:
                LOAD(value_weights, [weight + start], ready.index(s), weights.index(s))
            LOAD(x, [token + start, column], ready.index(s), values.index(s))
        else:
            mbarrier.expect(ready.index(s), C.BLOCK * (2 * C.V + (4 if C.WEIGHTED else 0)))
            if C.WEIGHTED:
                LOAD(sum_weights, [weight + start], ready.index(s), weights.index(s))
            LOAD(vectors, [token + start, column], ready.index(s), values.index(s))


@gluon.jit(do_not_specialize=["T", "chunk", "heads"])
def power_walk_kernel(
    keys, vectors, x, value_weights, sum_weights, out, states, prefix, dots, gates, T, chunk, heads, C: gl.constexpr
):
    """S_c = exp2(gate of chunk c - 1) (S_(c-1) + ..): see `power_scan_kernel`. Grid: PROGRAMS of a state times N * H.

    `keys`, `vectors`, `x`, weights and `out` describe 16 columns and all of u, the values, both weights of tokens and
    the rows of all states. REVERSE goes from the last chunk to the first. DOTS: see `power_scan_kernel`.
    """
    tile = gl.program_id(0) % C.PROGRAMS
    head = gl.program_id(0) // C.PROGRAMS
    b = 0
    for i in gl.static_range(1, C.V // 16):
        b += (tile >= i * (i + 1) // 2).to(gl.int32)
    a = tile - b * (b + 1) // 2
    pairs = gl.where(tile == C.TILES, 0, gl.where(a < b, 2, 1))
    chunks = (T + chunk - 1) // chunk
    STAGES: gl.constexpr = C.STAGES
    BLOCK: gl.constexpr = C.BLOCK
    V: gl.constexpr = C.V
    pieces = gl.allocate_shared_memory(gl.bfloat16, [2 * STAGES, BLOCK, 16], keys.layout)
    values = gl.allocate_shared_memory(gl.bfloat16, [STAGES, BLOCK, V], x.layout)
    weights = gl.allocate_shared_memory(gl.float32, [STAGES, BLOCK], value_weights.layout)
    staging = gl.allocate_shared_memory(gl.bfloat16, [2, 128, V], out.layout)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for s in gl.static_range(STAGES):
        mbarrier.init(ready.index(s), count=1)
        mbarrier.init(empty.index(s), count=2)
    row = head * chunks * C.ROWS + tile * 256
    normaliser = ((head * chunks).to(gl.int64) * C.ROWS + C.TILES * 256) * C.V
    dots += (head * C.DOT_PARTS + tile * 2) * chunks
    gates += head.to(gl.int64) * T
    token = head // heads * T
    column = head % heads * C.V
    gl.warp_specialize([
        (_first_group, (pieces, values, weights, staging, ready, empty, out, states, prefix, dots, gates, row,
                        normaliser, pairs, T, chunk, chunks, C)),
        (_second_group, (pieces, values, weights, staging, ready, empty, out, prefix, dots, gates, row, pairs, T,
                         chunk, chunks, C)),
        (_load_tokens, (keys, vectors, x, value_weights, sum_weights, pieces, values, weights, ready, empty,
                        token, head * T, column, a, b, pairs, T, chunk, C)),
    ], [4, 1], [C.REGISTERS, 24])  # fmt: skip


def walk_states(
    problem: PowerProblem, u: Tensor, x: Tensor, weights: TokenWeights | None, gates: Tensor | None, states: Tensor,
    prefix: Tensor | None, *, reverse: bool,
) -> Tensor | None:  # fmt: skip
    """Write the states before the chunks (in reverse, after them) as `chunk_states` gives them; return its `dots`."""
    width, layout = problem.v, problem.layout
    unused = states.view(-1)[: 2 * WALK_BLOCK].view(torch.float32)  # of all states may be too long for a copy of tiles
    value_weights = None if weights is None else weights.value
    numbers = [unused if w is None else w.view(-1) for w in (value_weights, None if weights is None else weights.sum)]
    parts = 2 * layout.tiles + problem.normalize
    constants = WalkConstants(
        V=width, TILES=layout.tiles, PROGRAMS=problem.walk_programs, ROWS=problem.elements // width, DOT_PARTS=parts,
        REVERSE=reverse, GATED=gates is not None, WEIGHTED=weights is not None, VALUES=value_weights is not None,
        DOTS=prefix is not None,
    )  # fmt: skip
    block, heads = constants.BLOCK, problem.n * problem.groups
    dots = None if prefix is None else torch.empty(heads, parts, problem.chunks, device=x.device)
    vectors, values = (y.as_strided((problem.n * problem.t, problem.groups * width), y.stride()[1::2]) for y in (u, x))
    with launch_on(states):
        power_walk_kernel[(constants.PROGRAMS * heads,)](
            _described(vectors, [block, 16], 32), _described(vectors, [block, width], 128),
            _described(values, [block, width], 128), *(_described(w, [block], 0) for w in numbers),
            _described(states.view(-1, width), [128, width], 128), states,
            *(unused if y is None else y for y in (prefix, dots, gates)),
            problem.t, problem.chunk, problem.groups, C=constants, num_warps=4,
        )  # fmt: skip
    return None if dots is None else dots.sum(1)


def _described(x: Tensor, block: list[int], swizzle: int) -> TensorDescriptor:
    """Return what the hardware needs to copy blocks of x; `swizzle` bytes of shared memory are spread over banks."""
    layout = gl.NVMMASharedLayout(swizzle_byte_width=swizzle, element_bitwidth=8 * x.element_size(), rank=x.ndim)
    return TensorDescriptor.from_tensor(x, block, layout)
