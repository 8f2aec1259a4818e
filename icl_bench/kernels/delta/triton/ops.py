"""The delta rule in Triton, as operators of torch: differentiable, traceable, capturable."""

import math
from typing import Any

import torch
from torch import Tensor

from icl_bench.errors import KernelUnavailableError
from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.delta.records import WIDEST_KEY, WIDEST_VALUE, DeltaInputs, DeltaOptions
from icl_bench.kernels.delta.reference import current_weights
from icl_bench.kernels.delta.triton import launch, table

DELTA_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
INPUTS = (
    "Tensor q, Tensor k, Tensor v, Tensor? beta, Tensor? log_decay, Tensor? read, Tensor? erase, "
    "Tensor? log_value_decay, Tensor? state, str rule, bool undecayed, bool ahead, float scale, float least"
)
FORWARD_SCHEMA = f"({INPUTS}, bool save) -> ({', '.join(6 * ['Tensor'])})"
KEPT = "Tensor states, Tensor inverses, Tensor maps, Tensor rows"
BACKWARD_SCHEMA = f"({INPUTS}, {KEPT}, Tensor dy, Tensor? dlast) -> ({', '.join(9 * ['Tensor'])})"


def delta_triton(inputs: DeltaInputs, options: DeltaOptions) -> tuple[Tensor, Tensor]:
    """Return y [N, T, G, V] and the last state, by one kernel forward and one backward.

    Strided views are read in place where the last stride is 1. Raise KernelUnavailableError for widths or types that
    the kernels do not take.
    """
    q, v = inputs.q, inputs.v
    if q.dtype not in DELTA_DTYPES:
        raise KernelUnavailableError(
            f"impl='triton' takes float32, bfloat16 and float16; got {q.dtype}: cast the inputs, or use impl='chunked'"
        )
    if q.shape[3] > WIDEST_KEY or v.shape[3] > WIDEST_VALUE:
        raise KernelUnavailableError(
            f"impl='triton' takes key widths up to {WIDEST_KEY} and value widths up to {WIDEST_VALUE}; "
            f"got K={q.shape[3]}, V={v.shape[3]}: use more heads, or impl='chunked'"
        )
    assert options.scale is not None
    given = [None if x is None else x if x.ndim == 3 or x.stride(-1) == 1 else x.contiguous() for x in inputs[:8]] + [
        None if inputs.state is None else inputs.state.contiguous()
    ]
    save = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in given)
    least = -math.inf if options.least_log_decay is None else options.least_log_decay
    y, last, *_ = delta_forward(
        *given, options.rule, options.reads == "undecayed", options.ahead, options.scale, least, save
    )
    if inputs.bonus is not None:
        shared = v.shape[2] // q.shape[2]
        rows, keys = (x.float().repeat_interleave(shared, dim=2) for x in (q, inputs.k))
        y = y + (options.scale * current_weights(rows, keys, inputs.bonus.float(), shared) * v).to(y.dtype)
    return y, last


@torch.library.custom_op("icl_bench::delta_forward", mutates_args=(), schema=FORWARD_SCHEMA)
def delta_forward(*arguments: Any) -> tuple[Tensor, ...]:
    """Return y, the last state and, where the last argument asks for it, what `delta_backward` reads (else empty)."""
    *given, save = arguments
    call = launch.DeltaCall(*given)
    with launch_on(call.q):
        y, last, kept = launch.launch_delta_forward(call, save, table.forward_launch(call.shape))
    return y, last, *kept


@delta_forward.register_fake
def _(*arguments: Any) -> tuple[Tensor, ...]:
    *given, save = arguments
    y, last, kept = launch.empty_outputs(launch.DeltaCall(*given), save)
    return y, last, *kept


@torch.library.custom_op("icl_bench::delta_backward", mutates_args=(), schema=BACKWARD_SCHEMA)
def delta_backward(*arguments: Any) -> tuple[Tensor, ...]:
    """Return the gradients of the nine tensors, shaped as they are (empty for those not given)."""
    *given, states, inverses, maps, rows, dy, dlast = arguments
    call = launch.DeltaCall(*given)
    kept = launch.DeltaKept(states, inverses, maps, rows)
    with launch_on(call.q):
        best, walk = table.backward_launch(call.shape), table.walk_launch(call.shape)
        return launch.launch_delta_gradient(call, dy, dlast, kept, best, walk)


@delta_backward.register_fake
def _(*arguments: Any) -> tuple[Tensor, ...]:
    q = arguments[0]
    return tuple(q.new_empty(0, dtype=torch.float32) if x is None else x.new_empty(x.shape) for x in arguments[:9])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:9], *output[2:])
    ctx.options = inputs[9:-1]
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, dy: Tensor | None, dlast: Tensor | None, *_unused: Tensor | None) -> tuple[Any, ...]:
    *tensors, states, inverses, maps, rows = ctx.saved_tensors
    v, q = tensors[2], tensors[0]
    if dy is None:
        dy = v.new_zeros(v.shape[0], q.shape[1], *v.shape[2:])
    dy = dy if dy.stride(3) == 1 else dy.contiguous()
    dlast = None if dlast is None else dlast.contiguous()
    gradients = delta_backward(*tensors, *ctx.options, states, inverses, maps, rows, dy, dlast)
    kept = (None if x is None else gradient.to(x.dtype) for x, gradient in zip(tensors, gradients, strict=True))
    return *kept, *(None,) * (len(ctx.options) + 1)


delta_forward.register_autograd(_differentiate, setup_context=_keep)
