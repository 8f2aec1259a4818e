"""AdamW over a fleet (Loshchilov and Hutter, arXiv 1711.05101): every member has its own rate, decay and clipping.

    g' = g min(1, clip / |g|),   m = b1 m + (1 - b1) g',   v = b2 v + (1 - b2) g'^2
    p = p - lr (m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + decay p)

with |g| over all parameters of a member, and decay 0 for the blocks that are exempt. A member whose loss or |g| is not
finite is never updated again.
"""

from functools import reduce

import torch
from torch import Tensor

from icl_bench.errors import ArgumentError
from icl_bench.kernels.arguments import check_shape
from icl_bench.kernels.backends import FleetImpl, takes_triton
from icl_bench.kernels.fleet.layout import AdamWOptions, MemberState, OptimiserBuffers, ParameterLayout


def adamw_step(
    buffers: OptimiserBuffers,
    members: MemberState,
    layout: ParameterLayout,
    *,
    tiles: Tensor | None = None,
    beta1: float,
    beta2: float,
    clip: float | None = None,
    eps: float = 1e-8,
    impl: FleetImpl = "auto",
) -> None:
    """Update all members in place, without waiting for the device.

    Of `members`, steps, active and diverged_at are written. `beta1` and `beta2` are the decays b1 of the mean gradient
    and b2 of the mean square, `clip` is the largest norm of a member's gradient, None for no clipping. "triton" makes
    two launches, and reads `tiles`, which are `layout.tiles()` on the device; it makes them where they are not given.
    """
    for name, part in zip(OptimiserBuffers._fields, buffers, strict=True):
        if part is not None:
            check_shape(name, part, (layout.elements,), "[elements]")
            if not part.is_contiguous():
                raise ArgumentError(f"{name} must be contiguous; got strides {part.stride()}: use one flat buffer")
    for name in ("losses", "peak", "decay", "active", "diverged_at"):
        check_shape(name, getattr(members, name), (layout.members,), "[M]")
    options = AdamWOptions(beta1, beta2, clip, eps)
    if takes_triton(impl, buffers.parameters):
        from icl_bench.kernels.fleet.triton.adamw import adamw_triton

        tiles = layout.tiles().to(buffers.parameters.device) if tiles is None else tiles
        adamw_triton(buffers, members, layout, tiles, options)
        return
    (adamw_reference if impl == "reference" else adamw_torch)(buffers, members, layout, options)
    if buffers.working is not None:
        buffers.working.copy_(buffers.parameters)


def adamw_reference(
    buffers: OptimiserBuffers, members: MemberState, layout: ParameterLayout, options: AdamWOptions
) -> None:
    """Update by the definition: one member after the other, computed in float64, kept in the type of the buffers."""
    step = int(members.steps.add_(1))
    schedule, bias1, bias2 = members.table[min(step, len(members.table) - 1)].double()
    blocks = list(zip(*(layout.rows(part) for part in buffers[:4]), strict=True))
    for m in range(layout.members):
        norm = torch.cat([gradient[m].double() for _, gradient, _, _ in blocks]).norm()
        if members.active[m] and not (members.losses[m].isfinite() and norm.isfinite()):
            members.active[m] = False
            members.diverged_at[m] = step
        if not members.active[m]:
            continue
        factor = 1.0 if options.clip is None else (options.clip / norm).clamp(max=1.0)
        for i, block in enumerate(blocks):
            decay = 0.0 if i in layout.exempt else members.decay[m]
            parameter, gradient, mean, square = (part[m].double() for part in block)
            mean = options.beta1 * mean + (1 - options.beta1) * gradient * factor
            square = options.beta2 * square + (1 - options.beta2) * (gradient * factor).square()
            change = mean / bias1 / ((square / bias2).sqrt() + options.eps) + decay * parameter
            parameter = parameter - members.peak[m] * schedule * change
            for part, new in zip((block[0], *block[2:]), (parameter, mean, square), strict=True):
                part[m] = new


def adamw_torch(
    buffers: OptimiserBuffers, members: MemberState, layout: ParameterLayout, options: AdamWOptions
) -> None:
    """Update in operators of torch: in place, block by block, with few passes over memory."""
    beta1, beta2, clip, eps = options
    members.steps.add_(1)
    parameters, gradients, means, squares = (layout.blocks(part) for part in buffers[:4] if part is not None)
    # One after the other: torch adds the rows of a matrix in an order that depends on the number of columns.
    norms = reduce(torch.add, [gradient.float().square().sum(1) for gradient in gradients]).sqrt()
    finite = torch.isfinite(members.losses) & torch.isfinite(norms)
    members.diverged_at.copy_(torch.where(members.active & ~finite, members.steps, members.diverged_at))
    members.active.logical_and_(finite)
    factor = torch.ones_like(norms) if clip is None else (clip / norms).clamp(max=1.0)
    factor = torch.where(members.active, factor, 0.0)[:, None]
    schedule, bias1, bias2 = members.table[members.steps.clamp(max=len(members.table) - 1)].unbind()
    rate = (members.peak * schedule * members.active)[:, None]
    kept = 1 - rate * members.decay[:, None]
    step, spread, stopped = rate * bias2.sqrt() / bias1, eps * bias2.sqrt(), ~members.active[:, None]
    for i, (parameter, gradient, mean, square) in enumerate(zip(parameters, gradients, means, squares, strict=True)):
        # The gradient of a diverged member is not finite, and 0 times that is not 0.
        scaled = gradient.float().mul(factor).masked_fill_(stopped, 0.0)
        mean.lerp_(scaled, 1 - beta1)
        square.mul_(beta2).addcmul_(scaled, scaled, value=1 - beta2)
        # mean / bias1 / (sqrt(square / bias2) + eps), with the factors of the biases taken out of the pass.
        change = torch.div(mean, square.sqrt().add_(spread), out=scaled)
        if i not in layout.exempt:
            parameter.mul_(kept)
        parameter.sub_(change.mul_(step))
