"""Softmax and sliding-window attention in Triton, as torch operators: differentiable, traceable, capturable."""

from typing import Any

import torch
from torch import Tensor

from icl_bench.errors import KernelUnavailableError
from icl_bench.kernels.attention.triton import launch as triton_launch
from icl_bench.kernels.attention.triton.table import WIDEST, one_tile, tile

WIDEST_KEY = 128
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def attention_triton(q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, window: int | None, scale: float) -> Tensor:
    """Causal attention over all keys so far, or the last `window` of them, in one kernel forward and two backward.

    Args:
        q: Queries [N, T, H, K], K <= 128, in float32, bfloat16 or float16; strided views are read
            in place where the last stride is 1.
        k: Keys [N, T, G, K], H a multiple of G.
        v: Values [N, T, G, V], V <= 256.
        log_g: Logarithms of the gates [N, T, G], or None.
        window: How many keys a query sees, itself included; None for all.
        scale: Factor on q.k, positive.

    Returns:
        [N, T, H, V] in the type of v.

    Raises:
        KernelUnavailableError: The widths or types are none that the kernels take.
    """
    _check(q, k, v)
    if window is not None and window >= q.shape[1]:
        window = None
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    o: Tensor = _forward(q, k, v, log_g, window, scale)[0]
    return o


def _check(q: Tensor, k: Tensor, v: Tensor) -> None:
    if q.dtype not in DTYPES or k.dtype != q.dtype or v.dtype != q.dtype:
        raise KernelUnavailableError(
            "impl='triton' needs q, k and v of one type, float32, bfloat16 or float16; "
            f"got {q.dtype}, {k.dtype}, {v.dtype}: cast them, or use impl='torch'"
        )
    if q.shape[-1] > WIDEST_KEY or v.shape[-1] > WIDEST:
        raise KernelUnavailableError(
            f"impl='triton' takes key widths up to {WIDEST_KEY} and value widths up to {WIDEST}; "
            f"got K={q.shape[-1]}, V={v.shape[-1]}: use more heads, or impl='torch'"
        )


@torch.library.custom_op(
    "icl_bench::attention_forward",
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, Tensor? log_g, int? window, float scale) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
)
def _forward(
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, window: int | None, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return o, the base-2 log-sum-exp [N, H, padded T], and the gates as the kernels read them (empty without)."""
    gates = None if log_g is None else triton_launch.cumulate(log_g, q.dtype)
    chosen = tile("forward", q.element_size(), q.shape[-1], v.shape[-1], _reach(q, window))
    o, lse = triton_launch.forward(q, k, v, gates, window, scale, chosen)
    return o, lse, *(gates or (_nothing(q), _nothing(q)))


@_forward.register_fake
def _forward_fake(
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, window: int | None, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n, t, h, _ = q.shape
    o = torch.empty(n, t, h, v.shape[-1], device=q.device, dtype=v.dtype)
    lse = torch.empty(n, h, triton_launch.padded_length(t), device=q.device, dtype=torch.float32)
    if log_g is None:
        return o, lse, _nothing(q), _nothing(q)
    blocks = lse.shape[-1] // triton_launch.BLOCK
    local = torch.float64 if q.dtype == torch.float32 else torch.float32
    g = k.shape[2]
    return (
        o,
        lse,
        torch.empty(n, g, lse.shape[-1], device=q.device, dtype=local),
        torch.empty(n, g, blocks, device=q.device, dtype=torch.float64),
    )


@torch.library.custom_op(
    "icl_bench::attention_backward",
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, Tensor local, Tensor base, Tensor o, Tensor lse, Tensor do, bool gated, "
    "int? window, float scale) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _backward(
    q: Tensor, k: Tensor, v: Tensor, local: Tensor, base: Tensor, o: Tensor, lse: Tensor, do: Tensor, gated: bool,
    window: int | None, scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return dq, dk, dv and dlog_g [N, T, G] (empty without a gate)."""
    size, key, value, t = q.element_size(), q.shape[-1], v.shape[-1], q.shape[1]
    gates = triton_launch.Gates(local, base) if gated else None
    saved = (q, k, v, gates, o, lse, do.contiguous(), window, scale)
    single = one_tile(size, key, value, t)
    if single is not None:
        made = triton_launch.backward_one_tile(*saved, *single)
    else:
        reach = _reach(q, window)
        tiles = (tile("query", size, key, value, reach), tile("key_value", size, key, value, reach))
        made = triton_launch.backward(*saved, *tiles)
    return made.q, made.k, made.v, _gate_gradient(made.gates, k.shape[2]) if gated else _nothing(q)


@_backward.register_fake
def _backward_fake(
    q: Tensor, k: Tensor, v: Tensor, local: Tensor, base: Tensor, o: Tensor, lse: Tensor, do: Tensor, gated: bool,
    window: int | None, scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    made = [torch.empty(x.shape, device=x.device, dtype=x.dtype) for x in (q, k, v)]
    n, t, g, _ = k.shape
    gates = torch.empty(n, t, g, device=q.device, dtype=torch.float32) if gated else _nothing(q)
    return made[0], made[1], made[2], gates


def _gate_gradient(cumulated: Tensor, g: int) -> Tensor:
    """Gate t decays the keys before t for queries from t on: sum the cumulated gates' gradient from t on."""
    shared = cumulated.unflatten(1, (g, -1)).sum(2, dtype=torch.float64)
    after: Tensor = shared.flip(-1).cumsum(-1).flip(-1).float()
    return after.transpose(1, 2).contiguous()


def _reach(q: Tensor, window: int | None) -> int:
    """How many keys a query can see."""
    return q.shape[1] if window is None else window


def _nothing(q: Tensor) -> Tensor:
    return torch.empty(0, device=q.device, dtype=torch.float32)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    q, k, v, log_g, ctx.window, ctx.scale = inputs
    o, lse, local, base = output
    ctx.gated = log_g is not None
    ctx.save_for_backward(q, k, v, local, base, o, lse)


def _differentiate(ctx: Any, do: Tensor, *_unused: Tensor) -> tuple[Tensor | None, ...]:
    dq, dk, dv, dlog_g = _backward(*ctx.saved_tensors, do, ctx.gated, ctx.window, ctx.scale)
    return dq, dk, dv, (dlog_g if ctx.gated else None), None, None


_forward.register_autograd(_differentiate, setup_context=_keep)
