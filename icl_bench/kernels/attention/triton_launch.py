"""Launches of the attention kernels: shapes, strides and outputs, with the configuration given."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from icl_bench.kernels.attention.triton_backward import (
    key_value_gradient_kernel,
    one_tile_gradient_kernel,
    query_gradient_kernel,
)
from icl_bench.kernels.attention.triton_configurations import Tile, block_width
from icl_bench.kernels.attention.triton_forward import forward_kernel

LOG2E = 1.4426950408889634


class Gradients(NamedTuple):
    """dq, dk and dv, and the gradient of the cumulated gates [N, H, T], empty without a gate."""

    q: Tensor
    k: Tensor
    v: Tensor
    gates: Tensor


def forward(
    q: Tensor, k: Tensor, v: Tensor, cumulated: Tensor | None, window: int | None, scale: float, tile: Tile
) -> tuple[Tensor, Tensor]:
    """Return o [N, T, H, V] and the base-2 log-sum-exp [N, H, padded T]; `cumulated` is [N, G, T] float64."""
    n, t, h, _ = q.shape
    o = torch.empty(n, t, h, v.shape[-1], device=q.device, dtype=v.dtype)
    lse = torch.empty(n, h, padded_length(t), device=q.device, dtype=torch.float32)
    grid = (n * h * -(-t // tile.queries),)
    with _on(q):
        forward_kernel[grid](
            q, k, v, _or_unread(cumulated, lse), o, lse, *_sizes(q, k, v, window), scale * LOG2E,
            **_constants(q, v, cumulated, window, tile),
        )  # fmt: skip
    return o, lse


def backward(
    q: Tensor, k: Tensor, v: Tensor, cumulated: Tensor | None, o: Tensor, lse: Tensor, do: Tensor,
    window: int | None, scale: float, query: Tile, key_value: Tile,
) -> Gradients:  # fmt: skip
    """Return the gradients, by one kernel for the queries and one for the keys and values. `do` is contiguous."""
    n, t, h, _ = q.shape
    dq, dk, dv, rows, columns = _empty_gradients(q, k, v, gated=cumulated is not None)
    delta = torch.empty_like(lse)
    sums = _or_unread(cumulated, lse)
    sizes = (*_sizes(q, k, v, window), scale, scale * LOG2E)
    with _on(q):
        query_gradient_kernel[(n * h * -(-t // query.queries),)](
            q, k, v, sums, o, do, lse, delta, dq, rows, *sizes, **_constants(q, v, cumulated, window, query)
        )
        key_value_gradient_kernel[(n * h * -(-t // key_value.keys),)](
            q, k, v, sums, do, lse, delta, dk, dv, columns, *sizes,
            **_constants(q, v, cumulated, window, key_value),
        )  # fmt: skip
    return Gradients(dq, _sum_heads(dk, k), _sum_heads(dv, v), rows + columns)


def backward_one_tile(
    q: Tensor, k: Tensor, v: Tensor, cumulated: Tensor | None, o: Tensor, lse: Tensor, do: Tensor,
    window: int | None, scale: float, block: int, warps: int,
) -> Gradients:  # fmt: skip
    """Return the gradients of sequences of at most `block` tokens, by one program a head."""
    dq, dk, dv, rows, columns = _empty_gradients(q, k, v, gated=cumulated is not None)
    constants = _constants(q, v, cumulated, window, Tile(block, block, warps, 1))
    del constants["BLOCK_M"], constants["BLOCK_N"]
    with _on(q):
        one_tile_gradient_kernel[(q.shape[0] * q.shape[2],)](
            q, k, v, _or_unread(cumulated, lse), o, do, lse, dq, dk, dv, rows, columns,
            *_sizes(q, k, v, window), scale, scale * LOG2E, BLOCK=block, **constants,
        )  # fmt: skip
    return Gradients(dq, _sum_heads(dk, k), _sum_heads(dv, v), rows + columns)


def padded_length(t: int) -> int:
    """Row length of the per-query statistics, as the kernels compute it."""
    return -(-t // 128) * 128


def _empty_gradients(q: Tensor, k: Tensor, v: Tensor, *, gated: bool) -> list[Tensor]:
    """dq; dk and dv of each query head, in float32 where heads will be summed; the gates' row and column sums."""
    n, t, h, _ = q.shape
    part = q.dtype if h == k.shape[2] else torch.float32
    shapes = [(x.shape[-1], kind) for x, kind in ((q, q.dtype), (k, part), (v, part))]
    return [
        *(torch.empty(n, t, h, width, device=q.device, dtype=kind) for width, kind in shapes),
        *(torch.empty(n, h, t if gated else 0, device=q.device, dtype=torch.float32) for _ in range(2)),
    ]


def _sum_heads(part: Tensor, shared: Tensor) -> Tensor:
    """The gradient of keys or values that several query heads read: the sum of the heads' parts."""
    return part if part.shape == shared.shape else part.unflatten(2, (shared.shape[2], -1)).sum(3).to(shared.dtype)


def _or_unread(cumulated: Tensor | None, lse: Tensor) -> Tensor:
    """A kernel's pointer must point somewhere: without a gate to a tensor that it does not read through it."""
    return lse if cumulated is None else cumulated


def _sizes(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> tuple[int, ...]:
    strides = [s for x in (q, k, v) for s in x.stride()[:3]]
    return (*strides, q.shape[1], q.shape[2], k.shape[2], q.shape[1] if window is None else window)


def _constants(q: Tensor, v: Tensor, cumulated: Tensor | None, window: int | None, tile: Tile) -> dict[str, Any]:
    key, value = q.shape[-1], v.shape[-1]
    return {
        "K": key,
        "V": value,
        "BLOCK_K": block_width(key),
        "BLOCK_V": block_width(value),
        "BLOCK_M": tile.queries,
        "BLOCK_N": tile.keys,
        "WINDOWED": window is not None,
        "GATED": cumulated is not None,
        # Triton's own default for float32 is tf32, whose products have 10 bits.
        "PRECISION": "ieee",
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


def _on(x: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, which need not be the tensors'."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
