"""Keys of RWKV-7 in Triton: one launch each way, and two that add up the gradients of the parameters."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.fleet.records import LEAST_LENGTH
from icl_bench.kernels.fleet.triton.products import spaced_rows
from icl_bench.kernels.triton.common import add_parts, split_rows, tile_shape


@triton.jit
def erasing_keys_kernel(
    k, rate, erasing, weakening, written, read, erase, count, width, apart, least, BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write the three vectors of a head; tokens of k are `apart` elements apart. Grid (rows, heads, M)."""
    head, heads, member = tl.program_id(1), tl.num_programs(1), tl.program_id(2)
    rows, columns = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_C)
    valid, own = columns < width, (member * heads + head) * width + columns
    mask, tokens = (rows < count)[:, None] & valid[None, :], member.to(tl.int64) * count + rows
    offsets = (tokens * heads + head)[:, None] * width + columns[None, :]
    key = tl.load(k + (tokens * apart + head * width)[:, None] + columns[None, :], mask=mask, other=0.0).to(tl.float32)
    share = tl.sigmoid(tl.load(rate + offsets, mask=mask, other=0.0).to(tl.float32))
    scaled = key * tl.load(erasing + own, mask=valid, other=0.0).to(tl.float32)[None, :]
    unit = scaled / tl.maximum(tl.sqrt(tl.sum(scaled * scaled, 1)), least)[:, None]
    weak = tl.load(weakening + own, mask=valid, other=0.0).to(tl.float32)[None, :]
    tl.store(written + offsets, (key * (1.0 + (share - 1.0) * weak)).to(written.dtype.element_ty), mask=mask)
    tl.store(read + offsets, (-unit).to(read.dtype.element_ty), mask=mask)
    tl.store(erase + offsets, (share * unit).to(erase.dtype.element_ty), mask=mask)


@triton.jit
def erasing_keys_gradient_kernel(
    k, rate, erasing, weakening, from_written, from_read, from_erase, dk, drate, partial_erasing, partial_weakening,
    count, width, apart, least, each, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write dk and drate of `each` rows, and their part of those of the parameters. Grid (parts, heads, M)."""
    part, head, heads, member = tl.program_id(0), tl.program_id(1), tl.num_programs(1), tl.program_id(2)
    columns = tl.arange(0, BLOCK_C)
    valid, own = columns < width, (member * heads + head) * width + columns
    strength = tl.load(erasing + own, mask=valid, other=0.0).to(tl.float32)[None, :]
    weak = tl.load(weakening + own, mask=valid, other=0.0).to(tl.float32)[None, :]
    total_erasing = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    total_weakening = total_erasing
    for start in range(part * each, tl.minimum((part + 1) * each, count), BLOCK_R):
        rows = start + tl.arange(0, BLOCK_R)
        mask, tokens = (rows < count)[:, None] & valid[None, :], member.to(tl.int64) * count + rows
        offsets = (tokens * heads + head)[:, None] * width + columns[None, :]
        places = (tokens * apart + head * width)[:, None] + columns[None, :]
        key = tl.load(k + places, mask=mask, other=0.0).to(tl.float32)
        share = tl.sigmoid(tl.load(rate + offsets, mask=mask, other=0.0).to(tl.float32))
        written = tl.load(from_written + offsets, mask=mask, other=0.0).to(tl.float32)
        erase = tl.load(from_erase + offsets, mask=mask, other=0.0).to(tl.float32)
        read = tl.load(from_read + offsets, mask=mask, other=0.0).to(tl.float32)
        scaled = key * strength
        length = tl.sqrt(tl.sum(scaled * scaled, 1))
        inverse = (1.0 / tl.maximum(length, least))[:, None]
        unit = scaled * inverse
        slope = (written * key * weak + erase * unit) * share * (1.0 - share)
        tl.store(drate + offsets, slope.to(drate.dtype.element_ty), mask=mask)
        along = erase * share - read
        # a key shorter than the least length is divided by a constant
        shrink = tl.where(length > least, tl.sum(along * unit, 1), 0.0)[:, None]
        along = (along - unit * shrink) * inverse
        total_erasing += along * key
        total_weakening += written * key * (share - 1.0)
        result = written * (1.0 + (share - 1.0) * weak) + along * strength
        tl.store(dk + offsets, result.to(dk.dtype.element_ty), mask=mask)
    sums = ((member * tl.num_programs(0) + part) * heads + head) * width + columns
    tl.store(partial_erasing + sums, tl.sum(total_erasing, 0), mask=valid)
    tl.store(partial_weakening + sums, tl.sum(total_weakening, 0), mask=valid)


class FusedErasingKeys(torch.autograd.Function):
    """`erasing_keys` in one launch each way."""

    @staticmethod
    def forward(ctx: Any, k: Tensor, rate: Tensor, erasing: Tensor, weakening: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        k, ctx.apart = spaced_rows(k, 2)
        rate, erasing, weakening = rate.contiguous(), erasing.contiguous(), weakening.contiguous()
        ctx.save_for_backward(k, rate, erasing, weakening)
        members, (heads, width) = k.shape[0], k.shape[-2:]
        count, (rows, columns) = k[0].numel() // (heads * width), tile_shape(width)
        written, read, erase = (k.new_empty(k.shape) for _ in range(3))
        with launch_on(k):
            erasing_keys_kernel[(-(-count // rows), heads, members)](
                k, rate, erasing, weakening, written, read, erase, count, width, ctx.apart, LEAST_LENGTH,
                BLOCK_R=rows, BLOCK_C=columns, num_warps=4,
            )  # fmt: skip
        return written, read, erase

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        k, rate, erasing, weakening = ctx.saved_tensors
        members, (heads, width) = k.shape[0], k.shape[-2:]
        count, (rows, columns) = k[0].numel() // (heads * width), tile_shape(width)
        parts, each = split_rows(count, rows, members * heads)
        dk, drate = torch.empty_like(rate), torch.empty_like(rate)
        sums = [k.new_empty(members, parts, heads, width, dtype=torch.float32) for _ in range(2)]
        with launch_on(k):
            erasing_keys_gradient_kernel[(parts, heads, members)](
                k, rate, erasing, weakening, *(gradient.contiguous() for gradient in gradients), dk, drate, *sums,
                count, width, ctx.apart, LEAST_LENGTH, each, BLOCK_R=rows, BLOCK_C=columns, num_warps=4,
            )  # fmt: skip
        return dk, drate, add_parts(sums[0], erasing.dtype), add_parts(sums[1], weakening.dtype)
