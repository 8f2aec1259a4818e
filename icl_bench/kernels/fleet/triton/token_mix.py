"""Tokens mixed with those before them in Triton, as second factors of adapters: one launch for a stream each way."""

from typing import Any

import torch
from torch import Tensor

from icl_bench.kernels.fleet.triton.adapters import (
    Adapter,
    AdapterOperands,
    launch_adapter,
    launch_adapter_gradient,
)


class FusedTokenMix(torch.autograd.Function):
    """`token_mix` in one launch for each stream each way, and two that add up the gradients of its parameters."""

    @staticmethod
    def forward(ctx: Any, pairs: Tensor, low: Tensor, shares: Tensor, ups: Tensor) -> tuple[Tensor, ...]:
        operands = operands_of_pairs(pairs)
        adapters = adapters_of_streams(low, shares, ups)
        made = [launch_adapter(adapter, "mix", operands) for adapter in adapters]
        ctx.save_for_backward(pairs, low, shares, ups, *(z for _, z in made))
        return tuple(out for out, _ in made)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        pairs, low, shares, ups, *raw = ctx.saved_tensors
        dpairs, dlow, sums = pairs.new_empty(pairs.shape), low.new_empty(low.shape), []
        operands = operands_of_pairs(pairs)
        adapters, targets = adapters_of_streams(low, shares, ups), dlow.unflatten(-1, ups.shape[1:3]).unbind(-2)
        for i, (adapter, target, z, gradient) in enumerate(zip(adapters, targets, raw, gradients, strict=True)):
            given = target, *dpairs.chunk(2, dim=-1)
            sums.append(launch_adapter_gradient(adapter, "mix", operands, z, gradient, given, add=i > 0))
        dups, dshares = (torch.stack(parts, dim=1) for parts in zip(*sums, strict=True))
        return dpairs, dlow, dshares, dups


def operands_of_pairs(pairs: Tensor) -> AdapterOperands:
    """Return tokens and those before them as views."""
    x, before = pairs.chunk(2, dim=-1)
    return AdapterOperands(x, before)


def adapters_of_streams(low: Tensor, shares: Tensor, ups: Tensor) -> list[Adapter]:
    """Return the adapter of each stream, with its columns as a view of those of all."""
    columns = low.unflatten(-1, ups.shape[1:3]).unbind(-2)
    numbers = (part.transpose(0, 1).contiguous().unbind() for part in (ups, shares))
    return [Adapter(x, up, "tanh", share) for x, up, share in zip(columns, *numbers, strict=True)]
