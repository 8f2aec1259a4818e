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
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.power.triton.problem import WALK_BLOCK, PowerProblem, TokenWeights
from icl_bench.kernels.power.triton.walk_tiles import (
    SYNCHRONISE,
    expanded_rows,
    in_order,
    multiply,
    product_layout,
    store_dots,
    wait_for_products,
    write_tile,
)

# The name that Triton 3.6 has, or that of later versions.
LOAD = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared


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
    BLOCK: int
    """Tokens of a block: a turn of the loop, in two halves."""
    STAGES: int
    """Blocks of tokens in shared memory."""
    REGISTERS: int = 240
    """Most registers of a thread that multiplies."""


@gluon.jit
def _chunk(c, T, chunk, chunks, C: gl.constexpr):
    """Return the place of the chunk that comes c-th, its blocks, and its last token."""
    place = chunks - 1 - c if C.REVERSE else c
    end = gl.minimum(T, (place + 1) * chunk)
    return place, (end - place * chunk) // C.BLOCK, end - 1


@gluon.jit
def _load_gate(gates, c, T, chunk, chunks, C: gl.constexpr):
    """Load the sum of gates of the chunk that comes c-th, or of the last one, as it is asked for a chunk ahead."""
    _, _, last = _chunk(gl.minimum(c, chunks - 1), T, chunk, chunks, C)
    return gl.load(gates + last)


@gluon.jit
def _blocks(T, chunk, C: gl.constexpr):
    """Return the blocks of all chunks that are summed: all but the last in order."""
    return (T - chunk if C.REVERSE else (T - 1) // chunk * chunk) // C.BLOCK


@gluon.jit
def _walk_tile(
    pieces, values, weights, staging, before, ready, empty, out, dots, gates, row, pairs, T, chunk, chunks,
    HALF: gl.constexpr, C: gl.constexpr,
):  # fmt: skip
    """Walk half a tile, `pairs` times in the full product, through all chunks. See `power_walk_kernel`.

    The products of one block wait behind those of another while the rows of the next are made. None is in flight from
    turn to turn, or ptxas waits after each.
    """
    V: gl.constexpr = C.V
    STEPS: gl.constexpr = C.BLOCK // 32
    acc = gl.zeros([128, V], gl.float32, product_layout(V))
    other = pairs - 1  # a tile on the diagonal has one piece of keys
    total = _blocks(T, chunk, C)
    mbarrier.wait(ready.index(0), 0)
    rows = expanded_rows(pieces, weights, 0, other, 0, STEPS, HALF, V, C.VALUES)
    i = 0
    gate = _load_gate(gates, 0, T, chunk, chunks, C) if C.GATED else 0.0
    for c in range(chunks):
        place, blocks, _ = _chunk(c, T, chunk, chunks, C)
        tile = in_order(acc, V)
        if C.GATED:
            decay = gl.exp2(gate)
            gate = _load_gate(gates, c + 1, T, chunk, chunks, C)
            if C.DOTS:
                mbarrier.wait(ready.index(C.STAGES), c & 1)
                store_dots(dots + place, tile, before, pairs * decay, chunks, V)
        write_tile(out, staging, tile, row + place * C.ROWS)
        if C.GATED:
            if C.DOTS:  # all have read it, as the writing of the tile has waited for them
                mbarrier.arrive(empty.index(C.STAGES))
            acc *= decay
        if c + 1 < chunks:
            for _ in range(blocks):
                stage = i % C.STAGES
                moving = multiply(rows, values.index(stage), acc, 0, STEPS)
                second = expanded_rows(pieces, weights, stage, other, STEPS, STEPS, HALF, V, C.VALUES)
                moving = multiply(second, values.index(stage), moving, STEPS, STEPS)
                moving, rows = wait_for_products(STEPS, moving, rows, STEPS)
                i += 1
                after = gl.minimum(i, total - 1)  # the last block is looked at again, for nothing
                mbarrier.wait(ready.index(after % C.STAGES), after // C.STAGES & 1)
                rows = expanded_rows(pieces, weights, after % C.STAGES, other, 0, STEPS, HALF, V, C.VALUES)
                acc, second = wait_for_products(0, moving, second, STEPS)
                mbarrier.arrive(empty.index(stage))
    tma.store_wait(0)


@gluon.jit
def _walk_normaliser(vectors, weights, before, ready, empty, out, dots, gates, T, chunk, chunks, C: gl.constexpr):
    """Walk the normaliser of a head, [V, V], through all chunks, by the first group alone."""
    V: gl.constexpr = C.V
    LAYOUT: gl.constexpr = product_layout(V)
    LEFT: gl.constexpr = gl.DotOperandLayout(0, LAYOUT, 2)
    acc = gl.zeros([V, V], gl.float32, LAYOUT)
    index = gl.arange(0, V, gl.SliceLayout(1, LAYOUT))[:, None] * V
    index += gl.arange(0, V, gl.SliceLayout(0, LAYOUT))[None, :]
    i = 0
    gate = _load_gate(gates, 0, T, chunk, chunks, C) if C.GATED else 0.0
    for c in range(chunks):
        place, blocks, _ = _chunk(c, T, chunk, chunks, C)
        gl.store(out + place * (C.ROWS * V) + index, acc.to(gl.bfloat16))
        if C.GATED:
            decay = gl.exp2(gate)
            gate = _load_gate(gates, c + 1, T, chunk, chunks, C)
            if C.DOTS:
                mbarrier.wait(ready.index(C.STAGES), c & 1)
                products = before.slice(0, V).load(LAYOUT).to(gl.float32) * acc
                gl.store(dots + place, gl.sum(gl.sum(products, 1), 0) * decay)
                SYNCHRONISE()
                mbarrier.arrive(empty.index(C.STAGES), count=2)
            acc *= decay
        if c + 1 < chunks:
            for _ in range(blocks):
                s = i % C.STAGES
                mbarrier.wait(ready.index(s), i // C.STAGES & 1)
                rows = vectors.index(s).permute((1, 0)).load(LEFT)
                if C.WEIGHTED:
                    weight = weights.index(s).load(gl.SliceLayout(0, LEFT))
                    rows = (rows.to(gl.float32) * weight.to(gl.float32)[None, :]).to(gl.bfloat16)
                moving = warpgroup_mma(rows, vectors.index(s), acc, is_async=True)
                acc, rows = warpgroup_mma_wait(0, deps=[moving, rows])
                mbarrier.arrive(empty.index(s), count=2)
                i += 1


@gluon.jit
def _first_group(
    pieces, values, weights, staging, before, ready, empty, out, states, dots, gates, row, normaliser, pairs,
    T, chunk, chunks, C: gl.constexpr,
):  # fmt: skip
    if pairs > 0:
        _walk_tile(
            pieces, values, weights, staging.index(0), before.index(0), ready, empty, out, dots, gates, row, pairs, T,
            chunk, chunks, 0, C,
        )  # fmt: skip
    else:
        _walk_normaliser(
            values, weights, before.index(0), ready, empty, states + normaliser, dots, gates, T, chunk, chunks, C
        )


@gluon.jit
def _second_group(
    pieces, values, weights, staging, before, ready, empty, out, dots, gates, row, pairs, T, chunk, chunks,
    C: gl.constexpr,
):  # fmt: skip
    if pairs > 0:
        _walk_tile(
            pieces, values, weights, staging.index(1), before.index(1), ready, empty, out, dots + 4 * chunks, gates,
            row + 128, pairs, T, chunk, chunks, 1, C,
        )  # fmt: skip


@gluon.jit
def _load_block(
    i, keys, vectors, x, value_weights, sum_weights, pieces, values, weights, ready, empty, token, weight, column,
    a, b, pairs, T, C: gl.constexpr,
):  # fmt: skip
    """Load the block of tokens that comes i-th."""
    s = i % C.STAGES
    mbarrier.wait(empty.index(s), (i // C.STAGES & 1) ^ 1)
    start = T - (i + 1) * C.BLOCK if C.REVERSE else i * C.BLOCK
    if pairs > 0:
        piece: gl.constexpr = C.BLOCK * 32
        rest: gl.constexpr = C.BLOCK * (2 * C.V + 2 * C.VALUES)
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
        weight_bytes: gl.constexpr = weights.dtype.primitive_bitwidth // 8 if C.WEIGHTED else 0
        mbarrier.expect(ready.index(s), C.BLOCK * (2 * C.V + weight_bytes))
        if C.WEIGHTED:
            LOAD(sum_weights, [weight + start], ready.index(s), weights.index(s))
        LOAD(vectors, [token + start, column], ready.index(s), values.index(s))


@gluon.jit
def _load_tokens(
    keys, vectors, x, value_weights, sum_weights, prefix, pieces, values, weights, before, ready, empty, token, weight,
    column, a, b, row, pairs, T, chunk, chunks, C: gl.constexpr,
):  # fmt: skip
    """Load the blocks of tokens in the order of the walk; the last chunk in order is not summed.

    DOTS: also the tile of the other states for each chunk, behind the blocks that are summed before it is needed.
    """
    i = 0
    for c in range(chunks):
        place, blocks, _ = _chunk(c, T, chunk, chunks, C)
        if C.DOTS:
            mbarrier.wait(empty.index(C.STAGES), (c & 1) ^ 1)
            if pairs > 0:
                mbarrier.expect(ready.index(C.STAGES), 512 * C.V)
                LOAD(prefix, [row + place * C.ROWS + 128, 0], ready.index(C.STAGES), before.index(1))
            else:  # all rows of the normaliser are in the first half
                mbarrier.expect(ready.index(C.STAGES), 256 * C.V)
            LOAD(prefix, [row + place * C.ROWS, 0], ready.index(C.STAGES), before.index(0))
        if c + 1 < chunks:
            for _ in range(blocks):
                _load_block(
                    i, keys, vectors, x, value_weights, sum_weights, pieces, values, weights, ready, empty, token,
                    weight, column, a, b, pairs, T, C,
                )  # fmt: skip
                i += 1


@gluon.jit(do_not_specialize=["T", "chunk", "heads"])
def power_walk_kernel(
    keys, vectors, x, value_weights, sum_weights, out, prefix, states, dots, gates, T, chunk, heads, C: gl.constexpr
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
    weights = gl.allocate_shared_memory(value_weights.dtype, [STAGES, BLOCK], value_weights.layout)
    staging = gl.allocate_shared_memory(gl.bfloat16, [2, 128, V], out.layout)
    before = gl.allocate_shared_memory(gl.bfloat16, [2, 128, V], out.layout) if C.DOTS else staging
    ready = gl.allocate_shared_memory(gl.int64, [STAGES + 1, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES + 1, 1], mbarrier.MBarrierLayout())
    for s in gl.static_range(STAGES + 1):
        mbarrier.init(ready.index(s), count=1)
        mbarrier.init(empty.index(s), count=2)
    row = head * chunks * C.ROWS + tile * 256
    normaliser = ((head * chunks).to(gl.int64) * C.ROWS + C.TILES * 256) * C.V
    dots += (head * C.DOT_PARTS + tile * 8) * chunks
    gates += head.to(gl.int64) * T
    token = head // heads * T
    column = head % heads * C.V
    gl.warp_specialize([
        (_first_group, (pieces, values, weights, staging, before, ready, empty, out, states, dots, gates, row,
                        normaliser, pairs, T, chunk, chunks, C)),
        (_second_group, (pieces, values, weights, staging, before, ready, empty, out, dots, gates, row, pairs, T,
                         chunk, chunks, C)),
        (_load_tokens, (keys, vectors, x, value_weights, sum_weights, prefix, pieces, values, weights, before, ready,
                        empty, token, head * T, column, a, b, row, pairs, T, chunk, chunks, C)),
    ], [4, 1], [C.REGISTERS, 24])  # fmt: skip


def walk_states(
    problem: PowerProblem, u: Tensor, x: Tensor, weights: TokenWeights | None, gates: Tensor | None, states: Tensor,
    prefix: Tensor | None, *, reverse: bool,
) -> Tensor | None:  # fmt: skip
    """Write the states before the chunks (in reverse, after them) as `chunk_states` gives them; return its `dots`."""
    width, layout = problem.v, problem.layout
    unused = states.view(-1)[: 2 * WALK_BLOCK].view(torch.float32)  # of all states may be too long for a copy of tiles
    valued = False
    if weights is not None and weights.value is not None:  # a factor of vectors in bfloat16, also in the normaliser
        valued = True
        value = weights.value.bfloat16()
        weights = TokenWeights(value, value if weights.sum is weights.value else weights.sum.bfloat16())
    numbers = [unused if w is None else w.view(-1) for w in weights or (None, None)]
    parts = 8 * layout.tiles + problem.normalize
    constants = WalkConstants(
        V=width, TILES=layout.tiles, PROGRAMS=problem.walk_programs, ROWS=problem.elements // width, DOT_PARTS=parts,
        REVERSE=reverse, GATED=gates is not None, WEIGHTED=weights is not None, VALUES=valued,
        DOTS=prefix is not None, BLOCK=WALK_BLOCK * 64 // width,
        STAGES=6 if width == 128 and prefix is None else 4,
    )  # fmt: skip
    block, heads = constants.BLOCK, problem.n * problem.groups
    dots = None if prefix is None else torch.empty(heads, parts, problem.chunks, device=x.device)
    vectors, values = (y.as_strided((problem.n * problem.t, problem.groups * width), y.stride()[1::2]) for y in (u, x))
    with launch_on(states):
        power_walk_kernel[(constants.PROGRAMS * heads,)](
            _described(vectors, [block, 16], 32), _described(vectors, [block, width], 128),
            _described(values, [block, width], 128), *(_described(w, [block], 0) for w in numbers),
            *(_described(y.view(-1, width), [128, width], 128) for y in (states, states if prefix is None else prefix)),
            states, *(unused if y is None else y for y in (dots, gates)),
            problem.t, problem.chunk, problem.groups, C=constants, num_warps=4,
        )  # fmt: skip
    return None if dots is None else dots.sum(1)


def _described(x: Tensor, block: list[int], swizzle: int) -> TensorDescriptor:
    """Return what the hardware needs to copy blocks of x; `swizzle` bytes of shared memory are spread over banks."""
    layout = gl.NVMMASharedLayout(swizzle_byte_width=swizzle, element_bitwidth=8 * x.element_size(), rank=x.ndim)
    return TensorDescriptor.from_tensor(x, block, layout)
