"""AdamW over a fleet in plain torch: in place, block by block, with few passes over memory."""

from functools import reduce

import torch

from icl_bench.kernels.fleet.layout import Fleet, Layout, Slots


def adamw_torch(
    slots: Slots, fleet: Fleet, layout: Layout, beta1: float, beta2: float, clip: float | None, eps: float
) -> None:
    """`api.adamw_step` in plain torch."""
    fleet.steps.add_(1)
    blocks = [layout.blocks(part) for part in slots[:4]]
    parameters, gradients, means, squares = blocks
    # One after the other: torch adds the rows of a matrix in an order that depends on how many columns there are.
    norms = reduce(torch.add, [gradient.float().square().sum(1) for gradient in gradients]).sqrt()
    finite = torch.isfinite(fleet.losses) & torch.isfinite(norms)
    fleet.died_at.copy_(torch.where(fleet.alive & ~finite, fleet.steps, fleet.died_at))
    fleet.alive.logical_and_(finite)
    factor = torch.ones_like(norms) if clip is None else (clip / norms).clamp(max=1.0)
    factor = torch.where(fleet.alive, factor, 0.0)[:, None]
    schedule, bias1, bias2 = fleet.table[fleet.steps.clamp(max=len(fleet.table) - 1)].unbind()
    rate = (fleet.peak * schedule * fleet.alive)[:, None]
    kept = 1 - rate * fleet.decay[:, None]
    step, spread, dead = rate * bias2.sqrt() / bias1, eps * bias2.sqrt(), ~fleet.alive[:, None]
    for parameter, gradient, mean, square in zip(parameters, gradients, means, squares, strict=True):
        # A dead member's gradient is not finite, and 0 times that is not 0.
        scaled = gradient.float().mul(factor).masked_fill_(dead, 0.0)
        mean.lerp_(scaled, 1 - beta1)
        square.mul_(beta2).addcmul_(scaled, scaled, value=1 - beta2)
        # mean / bias1 / (sqrt(square / bias2) + eps), with the factors of the biases taken out of the pass.
        change = torch.div(mean, square.sqrt().add_(spread), out=scaled)
        parameter.mul_(kept).sub_(change.mul_(step))
    if slots.working is not None:
        slots.working.copy_(slots.parameters)
