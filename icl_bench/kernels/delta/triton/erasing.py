"""The core of RWKV-7 in Triton: adapters, keys, decays, the untied delta rule, and the weights of a bonus.

One function of autograd has them all: the gradients of the columns of a projection are written into one tensor, and
those of the bonus added where those of its queries and of its keys are made.
"""

from typing import Any

import torch
from torch import Tensor

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.delta.records import ErasingOptions, ErasingWeights
from icl_bench.kernels.delta.triton import table
from icl_bench.kernels.delta.triton.launch import (
    DeltaCall,
    DeltaKept,
    empty_gradients,
    launch_channel_gradient,
    launch_delta_forward,
)
from icl_bench.kernels.fleet.triton.adapters import (
    Adapter,
    AdapterOperands,
    launch_adapter,
    launch_adapter_gradient,
)
from icl_bench.kernels.fleet.triton.erasing_keys import (
    Bonus,
    BonusGradient,
    launch_erasing_gradient,
    launch_erasing_keys,
)


class ErasingDelta(torch.autograd.Function):
    """`erasing_delta`, by the launches of its parts; `save` keeps what the backward pass reads."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        values: Tensor | None,
        options: ErasingOptions,
        sparse: bool,
        save: bool,
        *numbers: Tensor,
    ) -> tuple[Tensor, ...]:
        rows, values = rows.contiguous(), None if values is None else values.contiguous()
        weights = ErasingWeights(*(number.contiguous() for number in numbers))
        columns = columns_of_rows(rows, values, options)
        rates, decays = adapters_of_rows(rows, weights, options)
        rate = launch_adapter(rates, "plain", AdapterOperands())[0].view(columns[1].shape)
        logs = launch_adapter(decays, "sigmoid", AdapterOperands(factor=options.least), save=False)[0]
        logs = logs.view(columns[1].shape)
        sums = rows.new_empty(columns[1].shape[:-1], dtype=torch.float32)
        bonus = Bonus(columns[0], sums, weights.bonus)
        vectors = launch_erasing_keys(columns[1], rate, weights[:3], bonus)
        call = delta_call(columns, vectors, logs, options.least)
        with launch_on(rows):
            y, _, kept = launch_delta_forward(call, save, table.forward_launch(call.shape))
        ctx.save_for_backward(rows, rate, values, *weights, *vectors, logs, *kept)
        ctx.options, ctx.sparse = options, sparse
        return rows, y.view(columns[2].shape), columns[2], sums

    @staticmethod
    def backward(ctx: Any, drows: Tensor, dy: Tensor, offered: Tensor, slopes: Tensor) -> tuple[Any, ...]:
        rows, rate, values, *saved = ctx.saved_tensors
        weights, (*vectors, logs), kept = ErasingWeights(*saved[:7]), saved[7:11], DeltaKept(*saved[11:])
        options = ctx.options
        columns = columns_of_rows(rows, values, options)
        own = columns_of_rows(drows, None if values is None else torch.empty_like(values), options)
        call = delta_call(columns, vectors, logs, options.least)
        out = empty_gradients(call, options.heads)._replace(q=own[0].flatten(0, 1), v=own[2].flatten(0, 1))
        dy, offered, slopes = (part.contiguous() for part in (dy, offered, slopes))
        with launch_on(rows):
            launch = table.backward_launch(call.shape)
            launch_channel_gradient(call, dy.flatten(0, 1), None, kept, out, launch, offered, sloped=True)
        bonus = BonusGradient(columns[0], own[0], slopes, weights.bonus)
        drate, dshift, derasing, dweakening, dbonus = launch_erasing_gradient(
            columns[1], rate, weights[:3], (out.k, out.read, out.erase), own[1], bonus, sparse=ctx.sparse
        )
        (rates, decays), targets = adapters_of_rows(rows, weights, options), adapters_of_rows(drows, weights, options)
        below = [(target.x, None, None) for target in targets]
        rate_adapter, _ = launch_adapter_gradient(rates, "plain", AdapterOperands(), rate, drate, below[0])
        decay_adapter, decay_bias = launch_adapter_gradient(
            decays, "plain", AdapterOperands(), logs, out.log_decay, below[1]
        )
        numbers = dshift, derasing, dweakening, decay_bias, rate_adapter, decay_adapter, dbonus
        return drows, None if values is None else own[2], None, None, None, *numbers


def adapters_of_rows(rows: Tensor, weights: ErasingWeights, options: ErasingOptions) -> tuple[Adapter, Adapter]:
    """Return the adapters of rates and of decays, with their columns as views of the rows."""
    rate, decay = (
        rows[..., first : first + weight.shape[1]]
        for first, weight in ((options.rate_at, weights.rate_adapter), (options.decay_at, weights.decay_adapter))
    )
    return Adapter(rate, weights.rate_adapter), Adapter(decay, weights.decay_adapter, "tanh", weights.decay)


def columns_of_rows(rows: Tensor, values: Tensor | None, options: ErasingOptions) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values, [M, B, T, H, width] each, as views of the rows or as they are given."""
    keys, heads = options.heads * options.key_width, (options.heads, -1)
    q, k = (rows[..., first : first + keys].unflatten(-1, heads) for first in (0, keys))
    if values is None:
        values = rows[..., 2 * keys : 2 * keys + options.heads * options.value_width].unflatten(-1, heads)
    return q, k, values


def delta_call(columns: tuple[Tensor, ...], vectors: Any, logs: Tensor, least: float) -> DeltaCall:
    """Return the call of the untied rule, members and batch in one axis."""
    q, _, v = (x.flatten(0, 1) for x in columns)
    written, read, erase, logs = (x.flatten(0, 1) for x in (*vectors, logs))
    return DeltaCall(q, written, v, None, logs, read, erase, None, None, "untied", True, False, 1.0, least)


def takes_erasing_call(rows: Tensor, options: ErasingOptions) -> bool:
    """Return whether the kernels of `channels` take the call, and a program has all values of a head."""
    q, _, v = columns_of_rows(rows, None, options)
    call = delta_call((q, q, v), (q, q, q), q, options.least)
    return call.channels and table.backward_launch(call.shape).block_v >= options.value_width
