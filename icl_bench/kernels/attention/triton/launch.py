"""Launches of the attention kernels: shapes, strides and outputs, with the configuration given."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from icl_bench.kernels.attention.triton.backward import (
    key_value_gradient_kernel,
    one_tile_gradient_kernel,
    query_gradient_kernel,
)
from icl_bench.kernels.attention.triton.forward import forward_kernel
from icl_bench.kernels.attention.triton.table import Tile, block_width

LOG2E = 1.4426950408889634
# The kernels' BLOCK.
BLOCK = 128


class Gates(NamedTuple):
    """Log gates cumulated in blocks of 128 positions, base 2: within a block, and at its start."""

    local: Tensor
    """[N, G, padded T], float64 beside float32 inputs, else float32."""
    base: Tensor
    """[N, G, padded T / 128] float64."""


class Gradients(NamedTuple):
    """dq, dk and dv, and the gradient of the gates gates [N, H, T], empty without a gate."""

    q: Tensor
    k: Tensor
    v: Tensor
    gates: Tensor


def cumulate(log_g: Tensor, dtype: torch.dtype) -> Gates:
    """Inclusive sums over T of log_g [N, T, G], for inputs of `dtype`.

    In float64: a float32 sum over thousands of tokens loses the digits in which neighbours differ.
    """
    t = log_g.shape[1]
    sums = log_g.transpose(1, 2).to(torch.float64, memory_format=torch.contiguous_format).cumsum(-1) * LOG2E
    blocks = torch.nn.functional.pad(sums, (0, padded_length(t) - t)).unflatten(-1, (-1, BLOCK))
    base = blocks[..., 0].contiguous()
    local = (blocks - base[..., None]).flatten(-2)
    return Gates(local if dtype == torch.float32 else local.float(), base)


def forward(
    q: Tensor, k: Tensor, v: Tensor, gates: Gates | None, window: int | None, scale: float, tile: Tile
) -> tuple[Tensor, Tensor]:
    """Return o [N, T, H, V] and the base-2 log-sum-exp [N, H, padded T]."""
    n, t, h, _ = q.shape
    o = torch.empty(n, t, h, v.shape[-1], device=q.device, dtype=v.dtype)
    lse = torch.empty(n, h, padded_length(t), device=q.device, dtype=torch.float32)
    with _on(q):
        forward_kernel[_grid(q, tile.queries)](
            q, k, v, *_or_unread(gates, lse), o, lse, *_sizes(q, k, v, window), scale * LOG2E,
            **_constants(q, v, gates, window, tile),
        )  # fmt: skip
    return o, lse


def backward(
    q: Tensor, k: Tensor, v: Tensor, gates: Gates | None, o: Tensor, lse: Tensor, do: Tensor,
    window: int | None, scale: float, query: Tile, key_value: Tile,
) -> Gradients:  # fmt: skip
    """Return the gradients, by one kernel for the queries and one for the keys and values. `do` is contiguous."""
    dq, delta, rows = query_gradient(q, k, v, gates, o, lse, do, window, scale, query)
    dk, dv, columns = key_value_gradient(q, k, v, gates, lse, delta, do, window, scale, key_value)
    return Gradients(dq, _sum_heads(dk, k), _sum_heads(dv, v), rows + columns)


def query_gradient(
    q: Tensor, k: Tensor, v: Tensor, gates: Gates | None, o: Tensor, lse: Tensor, do: Tensor,
    window: int | None, scale: float, tile: Tile,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return dq, delta = sum(do * o) by row [N, H, padded T], and the gates' row sums [N, H, T]."""
    dq = torch.empty(q.shape, device=q.device, dtype=q.dtype)
    delta = torch.empty_like(lse)
    rows = _empty_sums(q, gates)
    with _on(q):
        query_gradient_kernel[_grid(q, tile.queries)](
            q, k, v, *_or_unread(gates, lse), o, do, lse, delta, dq, rows, *_sizes(q, k, v, window),
            scale, scale * LOG2E, EXACT=_exact(q), **_constants(q, v, gates, window, tile),
        )  # fmt: skip
    return dq, delta, rows


def key_value_gradient(
    q: Tensor, k: Tensor, v: Tensor, gates: Gates | None, lse: Tensor, delta: Tensor, do: Tensor,
    window: int | None, scale: float, tile: Tile,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return each query head's part of dk [N, T, H, K] and dv [N, T, H, V], and of the gates' column sums [N, H, T]."""
    dk, dv = _empty_parts(q, k, v)
    columns = _empty_sums(q, gates)
    with _on(q):
        key_value_gradient_kernel[_grid(q, tile.keys)](
            q, k, v, *_or_unread(gates, lse), do, lse, delta, dk, dv, columns, *_sizes(q, k, v, window),
            scale, scale * LOG2E, EXACT=_exact(q), **_constants(q, v, gates, window, tile),
        )  # fmt: skip
    return dk, dv, columns


def backward_one_tile(
    q: Tensor, k: Tensor, v: Tensor, gates: Gates | None, o: Tensor, lse: Tensor, do: Tensor,
    window: int | None, scale: float, block: int, warps: int,
) -> Gradients:  # fmt: skip
    """Return the gradients of sequences of at most `block` tokens, by one program a head."""
    dq = torch.empty(q.shape, device=q.device, dtype=q.dtype)
    dk, dv = _empty_parts(q, k, v)
    rows, columns = _empty_sums(q, gates), _empty_sums(q, gates)
    constants = _constants(q, v, gates, window, Tile(block, block, warps, 1))
    del constants["BLOCK_M"], constants["BLOCK_N"]
    with _on(q):
        one_tile_gradient_kernel[_grid(q, block)](
            q, k, v, _or_unread(gates, lse).local, o, do, lse, dq, dk, dv, rows, columns,
            *_sizes(q, k, v, window), scale, scale * LOG2E, BLOCK_T=block, EXACT=_exact(q), **constants,
        )  # fmt: skip
    return Gradients(dq, _sum_heads(dk, k), _sum_heads(dv, v), rows + columns)


def padded_length(t: int) -> int:
    """Row length of the per-query statistics, as the kernels compute it."""
    return -(-t // BLOCK) * BLOCK


def _empty_parts(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """dk and dv of each query head, in float32 where heads that share a key will be summed."""
    n, t, h, _ = q.shape
    kind = q.dtype if h == k.shape[2] else torch.float32
    dk, dv = (torch.empty(n, t, h, x.shape[-1], device=q.device, dtype=kind) for x in (k, v))
    return dk, dv


def _empty_sums(q: Tensor, gates: Gates | None) -> Tensor:
    n, t, h, _ = q.shape
    kind = torch.float64 if _exact(q) else torch.float32
    return torch.empty(n, h, 0 if gates is None else t, device=q.device, dtype=kind)


def _exact(q: Tensor) -> bool:
    """Whether the backward pass handles gates in float64: beside float32 products it costs little."""
    return q.dtype == torch.float32


def _sum_heads(part: Tensor, shared: Tensor) -> Tensor:
    """The gradient of keys or values that several query heads read: the sum of the heads' parts."""
    return part if part.shape == shared.shape else part.unflatten(2, (shared.shape[2], -1)).sum(3).to(shared.dtype)


def _grid(q: Tensor, block: int) -> tuple[int]:
    return (q.shape[0] * q.shape[2] * -(-q.shape[1] // block),)


def _or_unread(gates: Gates | None, lse: Tensor) -> Gates:
    """Pointers must point somewhere: without a gate to a tensor that the kernels do not read through them."""
    return Gates(lse, lse) if gates is None else gates


def _sizes(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> tuple[int, ...]:
    strides = [s for x in (q, k, v) for s in x.stride()[:3]]
    return (*strides, q.shape[1], q.shape[2], k.shape[2], q.shape[1] if window is None else window)


def _constants(q: Tensor, v: Tensor, gates: Gates | None, window: int | None, tile: Tile) -> dict[str, Any]:
    key, value = q.shape[-1], v.shape[-1]
    return {
        "K": key,
        "V": value,
        "BLOCK_K": block_width(key),
        "BLOCK_V": block_width(value),
        "BLOCK_M": tile.queries,
        "BLOCK_N": tile.keys,
        "WINDOWED": window is not None,
        "GATED": gates is not None,
        # Triton's own default for float32 is tf32, whose products have 10 bits.
        "PRECISION": "ieee",
        "num_warps": tile.warps,
        "num_stages": tile.stages,
        "maxnreg": tile.registers,
        # Triton 3.10 turns multiply-adds off unless they are asked for.
        "enable_fp_fusion": True,
    }


def _on(x: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, which need not be the tensors'."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
