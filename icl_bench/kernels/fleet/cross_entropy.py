"""Cross-entropy of rows against a vocabulary, by member, without the logits in memory.

logits_rw = x_r.weight_w,   loss_r = log sum_w exp(logits_rw) - logits_rt,   hit_r = logits_rt > logits_rw, all w != t
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from icl_bench.errors import ArgumentError
from icl_bench.kernels.arguments import check_choice, check_shape
from icl_bench.kernels.backends import check_triton, has_triton
from icl_bench.kernels.fleet.cross_entropy_reference import LOGITS_AT_ONCE, ChunkedCrossEntropy, cross_entropy_reference

Impl = Literal["auto", "reference", "torch", "triton"]

WIDEST = 256
"""The widest row of the Triton form."""


def cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, *, impl: Impl = "auto", at_once: int = LOGITS_AT_ONCE
) -> tuple[Tensor, Tensor]:
    """Loss and hit of every row.

    Args:
        x: Rows [M, R, C].
        weight: One row for each word, [M, W, C], in the type of x; any strides.
        targets: The right words [M, R], int64.
        impl: "reference" (float64 by the definition), "torch" (chunks of rows, any device), "triton" (tiles of the
            logits on chip, products accumulated in float32, IEEE for float32), or "auto": Triton for half precision
            on CUDA and C up to 256, elsewhere torch, whose products are the faster ones in float32.
        at_once: Logits that the torch form holds at most.

    Returns:
        Losses and hits, 1 or 0, [M, R] each, in float32 (float64 for float64). A tie with the target is no hit, though
        Triton leaves a tie to rounding. The losses are differentiable, once, with respect to x and weight.

    Raises:
        ArgumentError: A shape or type breaks one of these rules.
        KernelUnavailableError: The implementation asked for cannot run here.
    """
    check_choice("impl", impl, get_args(Impl))
    _check(x, weight, targets)
    if impl == "auto":
        half = x.dtype in (torch.bfloat16, torch.float16)
        impl = "triton" if has_triton(x) and half and x.shape[-1] <= WIDEST else "torch"
    if impl == "reference":
        losses, hits = cross_entropy_reference(x, weight, targets)
        kind = torch.float64 if x.dtype == torch.float64 else torch.float32
        return losses.to(kind), hits.to(kind)
    if impl == "triton":
        check_triton(x)
        from icl_bench.kernels.fleet.triton.cross_entropy import cross_entropy_triton

        return cross_entropy_triton(x, weight, targets)
    chunked: tuple[Tensor, Tensor] = ChunkedCrossEntropy.apply(x, weight, targets, at_once)
    return chunked


def _check(x: Tensor, weight: Tensor, targets: Tensor) -> None:
    if x.ndim != 3 or weight.ndim != 3:
        raise ArgumentError(
            f"x must be [M, R, C] and weight [M, W, C]; got {list(x.shape)} and {list(weight.shape)}: reshape them"
        )
    check_shape("weight", weight, (x.shape[0], weight.shape[1], x.shape[2]), "[M, W, C]")
    check_shape("targets", targets, tuple(x.shape[:2]), "[M, R]")
    if x.dtype != weight.dtype or not x.is_floating_point():
        raise ArgumentError(f"x and weight must share a floating type; got {x.dtype}, {weight.dtype}: cast one")
    if targets.dtype != torch.int64:
        raise ArgumentError(f"targets must be int64; got {targets.dtype}: cast them")
