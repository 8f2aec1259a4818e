"""Keys of RWKV-7 in Triton: one launch each way, and one that adds up the gradients of the parameters.

A program has all heads of some tokens, as in `token_bonus`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.fleet.records import LEAST_LENGTH
from icl_bench.kernels.fleet.triton.token_bonus import head_rows, load_heads, place_heads, store_heads, store_sums
from icl_bench.kernels.triton.common import RESIDENT_PROGRAMS, add_parts_of, logistic, padded, spaced_rows, split_rows

GRADIENT_STAGES = 4
"""Of the gradient, by launches on an H200."""


class Bonus(NamedTuple):
    """Tensors of a bonus w v of each token with w = sum(q k u)."""

    q: Any
    weights: Any
    """w, [M, ..., H] in float32, to be written."""
    strength: Any
    """u, [M, H, K]."""


class BonusGradient(NamedTuple):
    """Parts of the gradients of q, k and u, for a bonus w v of each token with w = sum(q k u)."""

    q: Any
    dq: Any
    """Gradient of q [M, ..., H, K], to which that of the bonus is added."""
    slopes: Any
    """Gradients of w, [M, ..., H] in float32."""
    strength: Any
    """u, [M, H, K]."""


@triton.jit
def erasing_keys_kernel(
    k, rate, shift, erasing, weakening, written, read, erase, bonus, count, heads, width, apart, least,
    BONUS: tl.constexpr, HEADS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write the three vectors of all heads; tokens of k are `apart` elements apart. Grid (tokens, M).

    Where BONUS, also write the weights of a bonus, whose queries are as far apart.
    """
    member, whole = tl.program_id(1), heads * width
    start = tl.program_id(0) * (BLOCK_R // HEADS)
    token, head, inside = place_heads(start, count, heads, HEADS, BLOCK_R)
    tokens = member.to(tl.int64) * count + token
    key = load_heads(k, tokens, head, apart, width, inside, BLOCK_C)
    share = load_heads(rate, tokens, head, whole, width, inside, BLOCK_C)
    share = logistic(share + load_heads(shift, member, head, whole, width, inside, BLOCK_C))
    scaled = key * load_heads(erasing, member, head, whole, width, inside, BLOCK_C)
    unit = scaled * (1.0 / tl.maximum(tl.sqrt(tl.sum(scaled * scaled, 1)), least))[:, None]
    weak = load_heads(weakening, member, head, whole, width, inside, BLOCK_C)
    made = key * (1.0 + (share - 1.0) * weak)
    store_heads(written, made, tokens, head, whole, width, inside, BLOCK_C)
    if BONUS:
        query = load_heads(bonus.q, tokens, head, apart, width, inside, BLOCK_C)
        strength = load_heads(bonus.strength, member, head, whole, width, inside, BLOCK_C)
        tl.store(bonus.weights + tokens * heads + head, tl.sum(query * made * strength, 1), mask=inside)
    store_heads(read, -unit, tokens, head, whole, width, inside, BLOCK_C)
    store_heads(erase, share * unit, tokens, head, whole, width, inside, BLOCK_C)


@triton.jit
def erasing_keys_gradient_kernel(
    k, rate, shift, erasing, weakening, from_written, from_read, from_erase, dk, drate, bonus, partial_shift,
    partial_erasing, partial_weakening, partial_bonus, count, heads, width, apart, dk_apart, least, each,
    BONUS: tl.constexpr, SPARSE: tl.constexpr, HEADS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Write dk and drate of `each` tokens, and their part of those of the parameters. Grid (parts, M).

    Where BONUS, also add the gradients of a bonus, whose queries are as far apart as keys; where SPARSE, nothing of the
    bonus is read where its gradient is 0.
    """
    part, member, whole = tl.program_id(0), tl.program_id(1), heads * width
    _, head, inside = place_heads(0, count, heads, HEADS, BLOCK_R)
    before = load_heads(shift, member, head, whole, width, inside, BLOCK_C)
    strength = load_heads(erasing, member, head, whole, width, inside, BLOCK_C)
    weak = load_heads(weakening, member, head, whole, width, inside, BLOCK_C)
    total_erasing = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    total_weakening, total_shift, total_bonus = total_erasing, total_erasing, total_erasing
    if BONUS:
        weight = load_heads(bonus.strength, member, head, whole, width, inside, BLOCK_C)
    step: tl.constexpr = BLOCK_R // HEADS
    for start in tl.range(part * each, tl.minimum((part + 1) * each, count), step, num_stages=STAGES):
        token, head, inside = place_heads(start, count, heads, HEADS, BLOCK_R)
        tokens = member.to(tl.int64) * count + token
        key = load_heads(k, tokens, head, apart, width, inside, BLOCK_C)
        share = logistic(load_heads(rate, tokens, head, whole, width, inside, BLOCK_C) + before)
        written = load_heads(from_written, tokens, head, whole, width, inside, BLOCK_C)
        erase = load_heads(from_erase, tokens, head, whole, width, inside, BLOCK_C)
        read = load_heads(from_read, tokens, head, whole, width, inside, BLOCK_C)
        if BONUS:
            bonus_slope = tl.load(bonus.slopes + tokens * heads + head, mask=inside, other=0.0)
            sought = inside
            if SPARSE:
                sought = inside & (bonus_slope != 0.0)
            bonus_slope = bonus_slope[:, None]
            query = load_heads(bonus.q, tokens, head, apart, width, sought, BLOCK_C)
            upstream = load_heads(bonus.dq, tokens, head, dk_apart, width, sought, BLOCK_C)
            made = bonus_slope * key * (1.0 + (share - 1.0) * weak)
            total_bonus += made * query
            store_heads(bonus.dq, upstream + made * weight, tokens, head, dk_apart, width, sought, BLOCK_C)
            written += bonus_slope * weight * query
        scaled = key * strength
        length = tl.sqrt(tl.sum(scaled * scaled, 1))
        inverse = (1.0 / tl.maximum(length, least))[:, None]
        unit = scaled * inverse
        slope = (written * key * weak + erase * unit) * share * (1.0 - share)
        total_shift += slope
        store_heads(drate, slope, tokens, head, whole, width, inside, BLOCK_C)
        along = erase * share - read
        # a key shorter than the least length is divided by a constant
        shrink = tl.where(length > least, tl.sum(along * unit, 1), 0.0)[:, None]
        along = (along - unit * shrink) * inverse
        total_erasing += along * key
        total_weakening += written * key * (share - 1.0)
        result = written * (1.0 + (share - 1.0) * weak) + along * strength
        store_heads(dk, result, tokens, head, dk_apart, width, inside, BLOCK_C)
    store_sums(partial_shift, total_shift, member, heads, width, HEADS, BLOCK_R, BLOCK_C)
    store_sums(partial_erasing, total_erasing, member, heads, width, HEADS, BLOCK_R, BLOCK_C)
    store_sums(partial_weakening, total_weakening, member, heads, width, HEADS, BLOCK_R, BLOCK_C)
    if BONUS:
        store_sums(partial_bonus, total_bonus, member, heads, width, HEADS, BLOCK_R, BLOCK_C)


def launch_erasing_keys(
    k: Tensor, rate: Tensor, numbers: Sequence[Tensor], bonus: Bonus | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the three vectors of keys whose tokens may lie apart; all else is contiguous.

    With a bonus, its weights are filled; its queries are columns of the same rows as k.
    """
    k, apart = spaced_rows(k, 2)
    members, (heads, width) = k.shape[0], k.shape[-2:]
    count, rows = k[0].numel() // (heads * width), head_rows(heads, width)
    written, read, erase = (k.new_empty(k.shape) for _ in range(3))
    with launch_on(k):
        erasing_keys_kernel[(-(-count // rows.tokens), members)](
            k, rate, *numbers, written, read, erase, Bonus(k, k, k) if bonus is None else bonus, count, heads, width,
            apart, LEAST_LENGTH, BONUS=bonus is not None, HEADS=rows.heads, BLOCK_R=rows.rows, BLOCK_C=padded(width),
            num_warps=4,
        )  # fmt: skip
    return written, read, erase


def launch_erasing_gradient(
    k: Tensor, rate: Tensor, numbers: Sequence[Tensor], gradients: Sequence[Tensor], dk: Tensor,
    bonus: BonusGradient | None = None, *, sparse: bool = False,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Fill dk, whose tokens may lie apart as those of k may; return the gradients of the rate and of the parameters.

    With a bonus, its gradient is added to that of its queries, and the one of its strength returned last. Its queries
    and their gradient are columns of the same rows as k and dk. It is `sparse` where most of its slopes are 0.
    """
    (k, apart), (dk, dk_apart) = spaced_rows(k, 2), spaced_rows(dk, 2)
    members, (heads, width) = k.shape[0], k.shape[-2:]
    count, rows = k[0].numel() // (heads * width), head_rows(heads, width).halved()
    parts, each = split_rows(count, rows.tokens, members, RESIDENT_PROGRAMS)
    drate, numbers = torch.empty_like(rate), [*numbers, *([] if bonus is None else [bonus.strength])]
    sums = k.new_empty(len(numbers), members, parts * rows.tokens, heads, width, dtype=torch.float32)
    with launch_on(k):
        erasing_keys_gradient_kernel[(parts, members)](
            k, rate, *numbers[:3], *gradients, dk, drate, BonusGradient(k, dk, k, k) if bonus is None else bonus,
            *sums[:3], sums[-1], count, heads, width, apart, dk_apart, LEAST_LENGTH, each, BONUS=bonus is not None,
            SPARSE=sparse, HEADS=rows.heads, BLOCK_R=rows.rows, BLOCK_C=padded(width),
            **rows.loop_options(width, GRADIENT_STAGES),
        )  # fmt: skip
    return drate, *add_parts_of(sums, numbers)


class FusedErasingKeys(torch.autograd.Function):
    """`erasing_keys` in one launch each way."""

    @staticmethod
    def forward(
        ctx: Any, k: Tensor, rate: Tensor, shift: Tensor, erasing: Tensor, weakening: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        rate, *numbers = (part.contiguous() for part in (rate, shift, erasing, weakening))
        ctx.save_for_backward(k, rate, *numbers)
        return launch_erasing_keys(k, rate, numbers)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        k, rate, *numbers = ctx.saved_tensors
        dk = torch.empty_like(rate)
        return dk, *launch_erasing_gradient(k, rate, numbers, [part.contiguous() for part in gradients], dk)
