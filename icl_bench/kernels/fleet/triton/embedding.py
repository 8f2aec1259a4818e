"""Embedding in Triton: a gather, and for the gradient a product with a one-hot matrix over each tile of words."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.fleet.places import Places, find_places

WORDS = 16
"""Words of a program: the least that a matrix product takes."""
TOKENS = 64
"""Tokens added up at once."""


@triton.jit
def gather_kernel(ids, weight, out, count, words, width, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Grid (tokens, columns, M)."""
    member = tl.program_id(2).to(tl.int64)
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    kept = (rows < count)[:, None] & (columns < width)[None, :]
    word = tl.load(ids + member * count + rows, mask=rows < count, other=0)
    row = tl.load(weight + (member * words + word)[:, None] * width + columns[None, :], mask=kept, other=0.0)
    tl.store(out + (member * count + rows)[:, None] * width + columns[None, :], row, mask=kept)


@triton.jit
def table_gradient_kernel(
    ids, order, starts, gradient, out, count, words, width,
    WORDS: tl.constexpr, TOKENS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Grid (tiles of words, columns, M)."""
    member = tl.program_id(2).to(tl.int64)
    first = tl.program_id(0) * WORDS
    names, columns = first + tl.arange(0, WORDS), tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    starts += member * (words + 1)
    begin, end = tl.load(starts + first), tl.load(starts + tl.minimum(first + WORDS, words))
    total = tl.zeros([WORDS, BLOCK_C], tl.float32)
    for start in range(begin, end, TOKENS):
        places = start + tl.arange(0, TOKENS)
        token = tl.load(order + member * count + places, mask=places < end, other=0)
        word = tl.load(ids + member * count + token, mask=places < end, other=-1)
        kept = (places < end)[:, None] & (columns < width)[None, :]
        rows = tl.load(gradient + (member * count + token)[:, None] * width + columns[None, :], mask=kept, other=0.0)
        chosen = (names[:, None] == word[None, :]).to(rows.dtype)
        total = tl.dot(chosen, rows, total, input_precision="ieee")
    kept = (names < words)[:, None] & (columns < width)[None, :]
    spot = out + (member * words + names)[:, None] * width + columns[None, :]
    tl.store(spot, total.to(out.dtype.element_ty), mask=kept)


def embed_triton(ids: Tensor, weight: Tensor, places: Places | None) -> Tensor:
    """`api.embed` in one launch each way, and a sort where there are no places."""
    order, starts = (None, None) if places is None else places
    out: Tensor = Lookup.apply(ids, weight, order, starts)
    return out


class Lookup(torch.autograd.Function):
    """Rows of the table."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor, order: Tensor | None, starts: Tensor | None) -> Tensor:
        """One launch."""
        ids, weight = ids.contiguous(), weight.contiguous()
        members, words, width = weight.shape
        count = ids[0].numel()
        out = weight.new_empty(*ids.shape, width)
        block = columns_block(width)
        with launch_on(weight):
            gather_kernel[(-(-count // 32), -(-width // block), members)](
                ids, weight, out, count, words, width, BLOCK_R=32, BLOCK_C=block, num_warps=4
            )
        ctx.save_for_backward(ids, order, starts)
        ctx.words = words
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """One launch, with the places given."""
        ids, order, starts = ctx.saved_tensors
        if order is None:
            order, starts = find_places(ids, ctx.words)
        gradient = gradient.contiguous()
        members, width = gradient.shape[0], gradient.shape[-1]
        out = gradient.new_empty(members, ctx.words, width)
        block = columns_block(width)
        with launch_on(gradient):
            table_gradient_kernel[(-(-ctx.words // WORDS), -(-width // block), members)](
                ids, order.contiguous(), starts.contiguous(), gradient, out, ids[0].numel(), ctx.words, width,
                WORDS=WORDS, TOKENS=TOKENS, BLOCK_C=block, num_warps=4,
            )  # fmt: skip
        return None, out, None, None


def columns_block(width: int) -> int:
    """Columns of a program: a power of two that a matrix product takes."""
    return max(16, min(128, 1 << (width - 1).bit_length()))
