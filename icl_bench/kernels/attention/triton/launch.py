"""Launches of the attention kernels with the tile given; the caller makes the device of the tensors current."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from icl_bench.kernels.attention.triton.backward import (
    attention_key_value_gradient_kernel,
    attention_query_gradient_kernel,
    attention_short_gradient_kernel,
)
from icl_bench.kernels.attention.triton.forward import attention_forward_kernel
from icl_bench.kernels.attention.triton.table import Tile
from icl_bench.kernels.attention.triton.tiles import AttentionConstants, Gates
from icl_bench.kernels.columns import gradient_memory
from icl_bench.kernels.triton.common import padded, view_of

LOG2E = 1.4426950408889634
STATISTICS_BLOCK = 128
"""The kernels' BLOCK."""


class AttentionCall(NamedTuple):
    """The inputs and options of a call (`AttentionInputs`, `AttentionOptions`), with unit strides in the last axis."""

    q: Tensor
    k: Tensor
    v: Tensor
    gates: Gates | None
    window: int | None
    scale: float
    joint: bool = False
    """Write the gradients of heads that lie side by side so; an operator of torch may not return such tensors."""

    @property
    def reach(self) -> int:
        """Largest number of keys that a query sees."""
        return self.q.shape[1] if self.window is None else self.window

    @property
    def exact(self) -> bool:
        """Handle gates in float64 in the backward pass: beside float32 products it costs little."""
        return self.q.dtype == torch.float32

    def pointers(self, unread: Tensor) -> tuple[Any, ...]:
        """Return views of q, k, v, and the gates; without gates a tensor that the kernels do not read through them."""
        return view_of(self.q), view_of(self.k), view_of(self.v), self.gates or Gates(unread, unread)

    def numbers(self) -> tuple[float, ...]:
        """Return T, H, G, the window, the scale, and the scale of scores in base 2."""
        return self.q.shape[1], self.q.shape[2], self.k.shape[2], self.reach, self.scale, self.scale * LOG2E

    def grid(self, block: int) -> tuple[int]:
        """Return the grid of one program for each block of each query head."""
        return (self.q.shape[0] * self.q.shape[2] * -(-self.q.shape[1] // block),)

    def empty_sums(self) -> Tensor:
        """Return an empty tensor for sums over the scores' gradient, [N, H, T]; [N, H, 0] without gates."""
        n, t, h, _ = self.q.shape
        kind = torch.float64 if self.exact else torch.float32
        return torch.empty(n, h, 0 if self.gates is None else t, device=self.q.device, dtype=kind)

    def empty_parts(self) -> list[Tensor]:
        """Return memory for dq, and for dk and dv of each query head: float32 where heads that share a key are summed.

        With `joint`, gradients of heads that lie side by side do so too.
        """
        n, t, h, _ = self.q.shape
        if h == self.k.shape[2] and self.joint:
            return gradient_memory([self.q, self.k, self.v])
        kind = self.q.dtype if h == self.k.shape[2] else torch.float32
        parts = [torch.empty(n, t, h, x.shape[-1], device=x.device, dtype=kind) for x in (self.k, self.v)]
        return [torch.empty(self.q.shape, device=self.q.device, dtype=self.q.dtype), *parts]

    def options(self, tile: Tile, exact: bool) -> dict[str, Any]:
        """Return the constants and the launch options of a kernel."""
        key, value = self.q.shape[-1], self.v.shape[-1]
        constants = AttentionConstants(
            K=key,
            V=value,
            BLOCK_K=padded(key, 16),
            BLOCK_V=padded(value, 16),
            BLOCK_M=tile.queries,
            BLOCK_N=tile.keys,
            WINDOWED=self.window is not None,
            GATED=self.gates is not None,
            EXACT=exact,
            PRECISION="ieee",  # Triton's own default for float32 is tf32, whose products have 10 bits
        )
        # Triton 3.10 turns multiply-adds off unless they are asked for.
        return {"C": constants, "enable_fp_fusion": True, **tile.launch_options()}


Gradients = tuple[Tensor, Tensor, Tensor, Tensor]
"""dq, dk, dv, and the gradient of the cumulated gates [N, H, T], empty without a gate."""


def cumulate(log_g: Tensor, dtype: torch.dtype) -> Gates:
    """Sum log_g [N, T, G] inclusively over T, in float64: float32 would lose the digits in which neighbours differ."""
    t = log_g.shape[1]
    sums = log_g.transpose(1, 2).to(torch.float64, memory_format=torch.contiguous_format).cumsum(-1) * LOG2E
    blocks = torch.nn.functional.pad(sums, (0, statistics_length(t) - t)).unflatten(-1, (-1, STATISTICS_BLOCK))
    base = blocks[..., 0].contiguous()
    local = (blocks - base[..., None]).flatten(-2)
    return Gates(local if dtype == torch.float32 else local.float(), base)


def statistics_length(t: int) -> int:
    """Return the row length of statistics and gates, as the kernels' `padded_length` does."""
    return -(-t // STATISTICS_BLOCK) * STATISTICS_BLOCK


def launch_forward(call: AttentionCall, tile: Tile) -> tuple[Tensor, Tensor]:
    """Return o [N, T, H, V] and the base-2 log-sum-exp [N, H, padded T]."""
    n, t, h, _ = call.q.shape
    o = torch.empty(n, t, h, call.v.shape[-1], device=call.q.device, dtype=call.v.dtype)
    lse = torch.empty(n, h, statistics_length(t), device=call.q.device, dtype=torch.float32)
    attention_forward_kernel[call.grid(tile.queries)](
        *call.pointers(lse), o, lse, *call.numbers()[:4], call.scale * LOG2E, **call.options(tile, exact=False)
    )
    return o, lse


def launch_backward(call: AttentionCall, o: Tensor, lse: Tensor, do: Tensor, query: Tile, key_value: Tile) -> Gradients:
    """Return the gradients, by one kernel for the queries and one for the keys and values. `do` is contiguous."""
    dq, dk, dv = call.empty_parts()
    delta, rows = launch_query_gradient(call, o, lse, do, query, dq)
    columns = launch_key_value_gradient(call, lse, delta, do, key_value, dk, dv)
    return dq, _sum_heads(dk, call.k), _sum_heads(dv, call.v), rows + columns


def launch_query_gradient(
    call: AttentionCall, o: Tensor, lse: Tensor, do: Tensor, tile: Tile, dq: Tensor
) -> tuple[Tensor, Tensor]:
    """Write dq; return delta = sum(do * o) of each row [N, H, padded T], and the gates' row sums [N, H, T]."""
    delta, rows = torch.empty_like(lse), call.empty_sums()
    attention_query_gradient_kernel[call.grid(tile.queries)](
        *call.pointers(lse), o, do, lse, delta, view_of(dq), rows, *call.numbers(), **call.options(tile, call.exact)
    )
    return delta, rows


def launch_key_value_gradient(
    call: AttentionCall, lse: Tensor, delta: Tensor, do: Tensor, tile: Tile, dk: Tensor, dv: Tensor
) -> Tensor:
    """Write each query head's part of dk [N, T, H, K] and dv [N, T, H, V]; return the gates' column sums [N, H, T]."""
    columns = call.empty_sums()
    attention_key_value_gradient_kernel[call.grid(tile.keys)](
        *call.pointers(lse), do, lse, delta, view_of(dk), view_of(dv), columns, *call.numbers(),
        **call.options(tile, call.exact),
    )  # fmt: skip
    return columns


def launch_short_backward(call: AttentionCall, o: Tensor, lse: Tensor, do: Tensor, tile: Tile) -> Gradients:
    """Return the gradients of sequences of at most `tile.queries` tokens, by one program for each head."""
    (dq, dk, dv), rows, columns = call.empty_parts(), call.empty_sums(), call.empty_sums()
    attention_short_gradient_kernel[call.grid(tile.queries)](
        *call.pointers(lse),
        o,
        do,
        lse,
        *map(view_of, (dq, dk, dv)),
        rows,
        columns,
        *call.numbers(),
        **call.options(tile, call.exact),
    )
    return dq, _sum_heads(dk, call.k), _sum_heads(dv, call.v), rows + columns


def _sum_heads(part: Tensor, shared: Tensor) -> Tensor:
    """Return the gradient of keys or values that several query heads read: the sum of the heads' parts."""
    return part if part.shape == shared.shape else part.unflatten(2, (shared.shape[2], -1)).sum(3).to(shared.dtype)
