"""Embedding in Triton: a gather, and for the gradient a product with a one-hot matrix for each tile of tokens."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.fleet.records import TILE_WORDS
from icl_bench.kernels.triton.common import add_parts, padded

INPUTS_AT_ONCE = 64
"""Inputs whose gradients are added at once."""
FEW_WORDS = 2048
"""Largest vocabulary in which several programs share the inputs of a tile: one token may have most of them."""
MOST_SHARES, SHARED_NUMBERS = 16, 1 << 22
"""Most programs of a tile, and most numbers, about, that they leave to be added."""


@triton.jit
def embedding_kernel(ids, weight, out, count, words, width, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Gather the rows of inputs. Grid (inputs, columns, M)."""
    member = tl.program_id(2).to(tl.int64)
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (rows < count)[:, None] & (columns < width)[None, :]
    word = tl.load(ids + member * count + rows, mask=rows < count, other=0)
    row = tl.load(weight + (member * words + word)[:, None] * width + columns[None, :], mask=mask, other=0.0)
    tl.store(out + (member * count + rows)[:, None] * width + columns[None, :], row, mask=mask)


@triton.jit
def embedding_gradient_kernel(
    ids, order, starts, gradient, through, out, count, words, width,
    ADD: tl.constexpr, SHARES: tl.constexpr, WORDS: tl.constexpr, INPUTS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Add up a share of the gradients of each token of a tile of the vocabulary. Grid (tiles, columns, M SHARES).

    Where ADD, the first share adds the gradient of other uses of the table.
    """
    place = tl.program_id(2).to(tl.int64)
    member = place // SHARES
    tile, tiles = tl.program_id(0), tl.num_programs(0)
    names, columns = tile + tiles * tl.arange(0, WORDS), tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    starts += member * (tiles * WORDS + 1) + tile * WORDS
    begin, end = tl.load(starts), tl.load(starts + WORDS)
    each = tl.cdiv(tl.cdiv(end - begin, SHARES), INPUTS) * INPUTS
    begin += place % SHARES * each
    end = tl.minimum(begin + each, end)
    total = tl.zeros([WORDS, BLOCK_C], tl.float32)
    for start in range(begin, end, INPUTS):
        entries = start + tl.arange(0, INPUTS)
        token = tl.load(order + member * count + entries, mask=entries < end, other=0)
        word = tl.load(ids + member * count + token, mask=entries < end, other=-1)
        mask = (entries < end)[:, None] & (columns < width)[None, :]
        rows = tl.load(gradient + (member * count + token)[:, None] * width + columns[None, :], mask=mask, other=0.0)
        chosen = (names[:, None] == word[None, :]).to(rows.dtype)
        total = tl.dot(chosen, rows, total, input_precision="ieee")
    mask = (names < words)[:, None] & (columns < width)[None, :]
    if ADD:
        if place % SHARES == 0:
            others = through + (member * words + names)[:, None] * width + columns[None, :]
            total += tl.load(others, mask=mask, other=0.0).to(tl.float32)
    pointers = out + (place * words + names)[:, None] * width + columns[None, :]
    tl.store(pointers, total.to(out.dtype.element_ty), mask=mask)


class FusedEmbedding(torch.autograd.Function):
    """`embed_beside` in one launch each way; the gradient needs the occurrences."""

    @staticmethod
    def forward(
        ctx: Any, ids: Tensor, weight: Tensor, order: Tensor | None, starts: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        ids, weight = ids.contiguous(), weight.contiguous()
        members, words, width = weight.shape
        count = ids[0].numel()
        out = weight.new_empty(*ids.shape, width)
        block = padded(width, 16, 128)
        with launch_on(weight):
            embedding_kernel[(-(-count // 32), -(-width // block), members)](
                ids, weight, out, count, words, width, BLOCK_R=32, BLOCK_C=block, num_warps=4
            )
        ctx.save_for_backward(ids, order, starts)
        ctx.words = words
        ctx.set_materialize_grads(False)
        return out, weight

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, through: Tensor | None) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return None, through, None, None
        ids, order, starts = ctx.saved_tensors
        gradient = gradient.contiguous()
        members, width = gradient.shape[0], gradient.shape[-1]
        shares = shares_of_tile(members, ctx.words, width)
        kind = gradient.dtype if shares == 1 else torch.float32
        out = gradient.new_empty(members, shares, ctx.words, width, dtype=kind)
        block = padded(width, 16, 128)
        with launch_on(gradient):
            embedding_gradient_kernel[(-(-ctx.words // TILE_WORDS), -(-width // block), members * shares)](
                ids, order.contiguous(), starts.contiguous(), gradient,
                gradient if through is None else through.contiguous(), out, ids[0].numel(), ctx.words, width,
                ADD=through is not None, SHARES=shares, WORDS=TILE_WORDS, INPUTS=INPUTS_AT_ONCE, BLOCK_C=block,
                num_warps=4,
            )  # fmt: skip
        return None, out[:, 0] if shares == 1 else add_parts(out, gradient.dtype), None, None


def shares_of_tile(members: int, words: int, width: int) -> int:
    """Return the number of programs that share the inputs of a tile of the vocabulary: 1, 2, 4, 8 or 16."""
    if words > FEW_WORDS:
        return 1
    most = max(1, min(MOST_SHARES, SHARED_NUMBERS // (members * words * width)))
    return 1 << (most.bit_length() - 1)
