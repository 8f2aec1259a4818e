"""Both scans in Triton, as operators of torch: differentiable, traceable, capturable. No kernel adds atomically."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from icl_bench.errors import KernelUnavailableError
from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.scan.records import WIDEST_STATE, LinearInputs, SelectiveInputs
from icl_bench.kernels.scan.triton import launch as launch
from icl_bench.kernels.scan.triton.steps import selective_steps
from icl_bench.kernels.triton.common import add_parts

SCAN_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def selective_scan_triton(inputs: SelectiveInputs) -> tuple[Tensor, Tensor]:
    """Return y [N, T, C] and the last state [N, C, S] of the selective scan, by one kernel each way, and one for steps.

    Strided views are read in place where the last stride is 1. Raise KernelUnavailableError for a type or a width of
    the state that the kernels do not take.
    """
    x, dt, a, b, c, d, dt_bias, state = inputs
    if x.dtype not in SCAN_DTYPES or a.shape[2] > WIDEST_STATE:
        raise KernelUnavailableError(
            f"impl='triton' needs x in bfloat16, float16 or float32 and S up to {WIDEST_STATE}; "
            f"got {x.dtype}, S={a.shape[2]}: cast it, or use impl='sequential'"
        )
    x, dt, b, c = (tensor if tensor.stride(2) == 1 else tensor.contiguous() for tensor in (x, dt, b, c))
    if dt_bias is not None:
        dt = selective_steps(dt, dt_bias)
    width = a.shape[2]
    if width % 4:
        # Rows of the state then begin at multiples of 16 bytes. Places of zeros stay zero.
        a, b, c = (pad(tensor, (0, -width % 4)) for tensor in (a, b, c))
        state = None if state is None else pad(state, (0, -width % 4))
    given = [tensor for tensor in (x, dt, a, b, c, d, state) if tensor is not None]
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given)
    y, final, _ = _selective_forward(x, dt, a, b, c, d, state, keep)
    return y, final[..., :width]


@torch.library.custom_op("icl_bench::selective_forward", mutates_args=())
def _selective_forward(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor | None, state: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, the last state, and the states before spans of tokens (none unless they are kept)."""
    with launch_on(x):
        return launch.launch_selective_forward(_selective_call(x, dt, a, b, c, d, state), keep)


@_selective_forward.register_fake
def _selective_forward_fake(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor | None, state: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    n, t, channels = x.shape
    spans = launch.count_spans(t) if keep else 0
    final = x.new_empty(n, channels, a.shape[2], dtype=torch.float32)
    return x.new_empty(n, t, channels), final, final.new_empty(n, spans, channels, a.shape[2])


@torch.library.custom_op("icl_bench::selective_backward", mutates_args=())
def _selective_backward(
    dy: Tensor, dfinal: Tensor, x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor | None,
    state: Tensor | None, kept: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return dx, ddt, da, those of b and c [N, T, 2, S], dd and that of the state (empty where there is none)."""
    members = a.shape[0]
    with launch_on(x):
        made = launch.launch_selective_backward(
            _selective_call(x, dt, a, b, c, d, state), kept, dy, dfinal.contiguous()
        )
        da = add_parts(made.a.unflatten(0, (members, -1)), a.dtype)
        dd = made.d if d is None else add_parts(made.d.unflatten(0, (members, -1)), d.dtype)
    return made.x, made.dt, da, made.vectors.sum(0).to(b.dtype), dd, made.state


@_selective_backward.register_fake
def _selective_backward_fake(
    dy: Tensor, dfinal: Tensor, x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor | None,
    state: Tensor | None, kept: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dd = dfinal.new_empty(0, x.shape[2]) if d is None else d.new_empty(d.shape)
    dstate = dfinal.new_empty(0, *a.shape[1:]) if state is None else dfinal.new_empty(dfinal.shape)
    vectors = b.new_empty(*b.shape[:2], 2, b.shape[2])
    return x.new_empty(x.shape), dt.new_empty(dt.shape), a.new_empty(a.shape), vectors, dd, dstate


def _selective_call(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor | None, state: Tensor | None
) -> launch.SelectiveCall:
    d, state = (None if tensor is None else tensor.contiguous() for tensor in (d, state))
    return launch.SelectiveCall(x, dt, a.contiguous(), b, c, d, state)


def _keep_selective(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    # Without this the states, to which no gradient comes, would be given one of zeros.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:7], *output)


def _differentiate_selective(ctx: Any, dy: Tensor | None, dfinal: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    x, dt, a, b, c, d, state, y, final, kept = ctx.saved_tensors
    dy = torch.zeros_like(y) if dy is None else dy if dy.stride(2) == 1 else dy.contiguous()
    dfinal = torch.zeros_like(final) if dfinal is None else dfinal
    dx, ddt, da, vectors, dd, dstate = _selective_backward(dy, dfinal, x, dt, a, b, c, d, state, kept)
    given = (None if d is None else dd, None if state is None else dstate)
    return dx, ddt, da, *vectors.unbind(2), *given, None


_selective_forward.register_autograd(_differentiate_selective, setup_context=_keep_selective)


def linear_scan_triton(inputs: LinearInputs) -> tuple[Tensor, Tensor]:
    """Return all h [N, T, C] of the linear scan, and the last one [N, C] in float32, by one kernel each way.

    Raise KernelUnavailableError for a type that the kernels do not take.
    """
    a, b, state = inputs
    if b.dtype not in SCAN_DTYPES:
        raise KernelUnavailableError(
            f"impl='triton' needs b in bfloat16, float16 or float32; got {b.dtype}: use impl='sequential'"
        )
    a, b = (tensor if tensor.stride(2) == 1 else tensor.contiguous() for tensor in (a, b))
    made: tuple[Tensor, Tensor] = _linear_forward(a, b, state)
    return made


@torch.library.custom_op("icl_bench::linear_scan_forward", mutates_args=())
def _linear_forward(a: Tensor, b: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return all h in the type of b, and the last one in float32."""
    with launch_on(a):
        return launch.launch_linear_forward(a, b, None if state is None else state.contiguous())


@_linear_forward.register_fake
def _linear_forward_fake(a: Tensor, b: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    return b.new_empty(b.shape), b.new_empty(b.shape[0], b.shape[2], dtype=torch.float32)


@torch.library.custom_op("icl_bench::linear_scan_backward", mutates_args=())
def _linear_backward(
    dy: Tensor, dfinal: Tensor | None, a: Tensor, y: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return da, db, and the gradient of the initial state (empty without one)."""
    state, dfinal = (None if tensor is None else tensor.contiguous() for tensor in (state, dfinal))
    with launch_on(a):
        return launch.launch_linear_backward(a, y, state, dy, dfinal)


@_linear_backward.register_fake
def _linear_backward_fake(
    dy: Tensor, dfinal: Tensor | None, a: Tensor, y: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    dstate = y.new_empty(0 if state is None else a.shape[0], a.shape[2], dtype=torch.float32)
    return a.new_empty(a.shape), dy.new_empty(dy.shape), dstate


def _keep_linear(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(inputs[0], output[0], inputs[2])


def _differentiate_linear(ctx: Any, dy: Tensor | None, dfinal: Tensor | None) -> tuple[Tensor | None, ...]:
    a, y, state = ctx.saved_tensors
    dy = torch.zeros_like(y) if dy is None else dy if dy.stride(2) == 1 else dy.contiguous()
    da, db, dstate = _linear_backward(dy, dfinal, a, y, state)
    return da, db, None if state is None else dstate


_linear_forward.register_autograd(_differentiate_linear, setup_context=_keep_linear)
