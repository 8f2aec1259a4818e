"""AdamW over a fleet (Loshchilov and Hutter, arXiv 1711.05101): every member has its own rate, decay and clipping.

    g' = g min(1, clip / |g|),   m = b1 m + (1 - b1) g',   v = b2 v + (1 - b2) g'^2
    p = p - lr (m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + decay p)

with |g| over all parameters of a member. A member whose loss or |g| is not finite is never updated again.
"""

from typing import Literal, get_args

from torch import Tensor

from icl_bench.errors import ArgumentError
from icl_bench.kernels.arguments import check_choice, check_shape
from icl_bench.kernels.backends import check_triton, has_triton
from icl_bench.kernels.fleet.adamw_reference import adamw_torch
from icl_bench.kernels.fleet.layout import Fleet, Layout, Slots

Impl = Literal["auto", "torch", "triton"]


def adamw_step(
    slots: Slots,
    fleet: Fleet,
    layout: Layout,
    *,
    tiles: Tensor | None = None,
    beta1: float,
    beta2: float,
    clip: float | None = None,
    eps: float = 1e-8,
    impl: Impl = "auto",
) -> None:
    """One update in place, without waiting for the device.

    Args:
        slots: Parameters, gradients and moments.
        fleet: Losses, step counter, rates and fates; steps, alive and died_at are written.
        layout: Where each parameter lies in the slots.
        tiles: `layout.tiles()` on the device, for "triton"; made there where it is not given.
        beta1: Decay of the mean gradient.
        beta2: Decay of the mean squared gradient.
        clip: Largest norm of a member's gradient; None for no clipping.
        eps: Added to the root of the mean square.
        impl: "torch" (any device), "triton" (two launches, on CUDA), or "auto": Triton where it can run.

    Raises:
        ArgumentError: A buffer does not fit the layout.
        KernelUnavailableError: The implementation asked for cannot run here.
    """
    check_choice("impl", impl, get_args(Impl))
    for name, part in zip(Slots._fields, slots, strict=True):
        if part is not None:
            check_shape(name, part, (layout.elements,), "[elements]")
            if not part.is_contiguous():
                raise ArgumentError(f"{name} must be contiguous; got strides {part.stride()}: use one flat buffer")
    for name in ("losses", "peak", "decay", "alive", "died_at"):
        check_shape(name, getattr(fleet, name), (layout.members,), "[M]")
    if impl == "triton" or (impl == "auto" and has_triton(slots.parameters)):
        check_triton(slots.parameters)
        from icl_bench.kernels.fleet.triton.adamw import adamw_triton

        tiles = layout.tiles().to(slots.parameters.device) if tiles is None else tiles
        adamw_triton(slots, fleet, layout, tiles, beta1, beta2, clip, eps)
    else:
        adamw_torch(slots, fleet, layout, beta1, beta2, clip, eps)
