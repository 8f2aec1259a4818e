"""Softmax and sliding-window attention in Triton, as operators of torch: differentiable, traceable, capturable."""

from typing import Any

import torch
from torch import Tensor

from icl_bench.errors import KernelUnavailableError
from icl_bench.kernels.attention.records import WIDEST_KEY, WIDEST_VALUE, AttentionInputs, AttentionOptions
from icl_bench.kernels.attention.triton import launch
from icl_bench.kernels.attention.triton.table import short_tile, tile_of
from icl_bench.kernels.attention.triton.tiles import Gates
from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.operators import operator, runs_at_once

ATTENTION_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FORWARD_SCHEMA = (
    "(Tensor q, Tensor k, Tensor v, Tensor? log_g, int? window, float scale) -> (Tensor, Tensor, Tensor, Tensor)"
)
BACKWARD_SCHEMA = (
    "(Tensor q, Tensor k, Tensor v, Tensor local, Tensor base, Tensor o, Tensor lse, Tensor do, bool gated, "
    "int? window, float scale, bool joint) -> (Tensor, Tensor, Tensor, Tensor)"
)


def attention_triton(inputs: AttentionInputs, options: AttentionOptions) -> Tensor:
    """Return attention [N, T, H, V] in the type of v, by one kernel forward and two backward.

    Strided views are read in place where the last stride is 1. Raise KernelUnavailableError for widths or types that
    the kernels do not take.
    """
    q, k, v, log_g = inputs
    if q.dtype not in ATTENTION_DTYPES or k.dtype != q.dtype or v.dtype != q.dtype:
        raise KernelUnavailableError(
            "impl='triton' needs q, k and v of one type, float32, bfloat16 or float16; "
            f"got {q.dtype}, {k.dtype}, {v.dtype}: cast them, or use impl='torch'"
        )
    if q.shape[-1] > WIDEST_KEY or v.shape[-1] > WIDEST_VALUE:
        raise KernelUnavailableError(
            f"impl='triton' takes key widths up to {WIDEST_KEY} and value widths up to {WIDEST_VALUE}; "
            f"got K={q.shape[-1]}, V={v.shape[-1]}: use more heads, or impl='torch'"
        )
    window = options.window if options.hides(q.shape[1]) else None
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    o: Tensor = _forward(q, k, v, log_g, window, options.scale)[0]
    return o


@operator("icl_bench::attention_forward", FORWARD_SCHEMA)
def _forward(
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, window: int | None, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return o, the base-2 log-sum-exp [N, H, padded T], and the gates as the kernels read them (empty without)."""
    gates = None if log_g is None else launch.cumulate(log_g, q.dtype)
    call = launch.AttentionCall(q, k, v, gates, window, scale)
    with launch_on(q):
        o, lse = launch.launch_forward(call, tile_of("forward", q.element_size(), q.shape[-1], v.shape[-1], call.reach))
    return o, lse, *(gates or (_nothing(q), _nothing(q)))


@_forward.register_fake
def _forward_fake(
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, window: int | None, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n, t, h, _ = q.shape
    o = torch.empty(n, t, h, v.shape[-1], device=q.device, dtype=v.dtype)
    length, g = launch.statistics_length(t), k.shape[2]
    lse = torch.empty(n, h, length, device=q.device, dtype=torch.float32)
    if log_g is None:
        return o, lse, _nothing(q), _nothing(q)
    kind = torch.float64 if q.dtype == torch.float32 else torch.float32
    local = torch.empty(n, g, length, device=q.device, dtype=kind)
    return o, lse, local, torch.empty(n, g, length // launch.STATISTICS_BLOCK, device=q.device, dtype=torch.float64)


@operator("icl_bench::attention_backward", BACKWARD_SCHEMA)
def _backward(
    q: Tensor, k: Tensor, v: Tensor, local: Tensor, base: Tensor, o: Tensor, lse: Tensor, do: Tensor, gated: bool,
    window: int | None, scale: float, joint: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return dq, dk, dv and dlog_g [N, T, G] (empty without a gate); for `joint` see `AttentionCall`."""
    sizes = q.element_size(), q.shape[-1], v.shape[-1]
    call = launch.AttentionCall(q, k, v, Gates(local, base) if gated else None, window, scale, joint)
    whole = short_tile(*sizes, q.shape[1])
    with launch_on(q):
        if whole is not None:
            dq, dk, dv, cumulated = launch.launch_short_backward(call, o, lse, do.contiguous(), whole)
        else:
            query, key_value = (tile_of(side, *sizes, call.reach) for side in ("query", "key_value"))
            dq, dk, dv, cumulated = launch.launch_backward(call, o, lse, do.contiguous(), query, key_value)
    return dq, dk, dv, _gate_gradient(cumulated, k.shape[2]) if gated else _nothing(q)


@_backward.register_fake
def _backward_fake(
    q: Tensor, k: Tensor, v: Tensor, local: Tensor, base: Tensor, o: Tensor, lse: Tensor, do: Tensor, gated: bool,
    window: int | None, scale: float, joint: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dq, dk, dv = (torch.empty(x.shape, device=x.device, dtype=x.dtype) for x in (q, k, v))
    gates = torch.empty(k.shape[:3], device=q.device, dtype=torch.float32) if gated else _nothing(q)
    return dq, dk, dv, gates


def _gate_gradient(cumulated: Tensor, g: int) -> Tensor:
    """Sum the gradient of the cumulated gates from t on: gate t decays the keys before t for queries from t on."""
    shared = cumulated.unflatten(1, (g, -1)).sum(2, dtype=torch.float64)
    after: Tensor = shared.flip(-1).cumsum(-1).flip(-1).float()
    return after.transpose(1, 2).contiguous()


def _nothing(q: Tensor) -> Tensor:
    return torch.empty(0, device=q.device, dtype=torch.float32)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    q, k, v, log_g, ctx.window, ctx.scale = inputs
    o, lse, local, base = output
    ctx.gated = log_g is not None
    ctx.set_materialize_grads(False)  # no zeros for the statistics
    ctx.save_for_backward(q, k, v, local, base, o, lse)


def _differentiate(ctx: Any, do: Tensor, *_unused: None) -> tuple[Tensor | None, ...]:
    joint = runs_at_once(do) and not torch.is_grad_enabled()
    dq, dk, dv, dlog_g = _backward(*ctx.saved_tensors, do, ctx.gated, ctx.window, ctx.scale, joint)
    return dq, dk, dv, (dlog_g if ctx.gated else None), None, None


_forward.register_autograd(_differentiate, setup_context=_keep)
