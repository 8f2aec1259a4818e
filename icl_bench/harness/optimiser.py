"""AdamW over a fleet: every parameter is [M, ...], every member has its own rate, decay, clipping and fate."""

from collections.abc import Sequence

import torch
from torch import Tensor

from icl_bench.harness.spec import TrainSpec

ADAM_EPS = 1e-8


class FleetAdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101), a warm-up and a cosine.

    Works on device tensors throughout, the step counter included, so that a step can be captured in a graph. A member
    whose loss or gradient is not finite is never updated again; the others do not notice.
    """

    def __init__(self, parameters: Sequence[Tensor], specs: Sequence[TrainSpec]) -> None:
        self.parameters = list(parameters)
        self.shared = specs[0]
        device = self.parameters[0].device
        self.peak = torch.tensor([spec.lr for spec in specs], device=device)
        self.decay = torch.tensor([spec.weight_decay for spec in specs], device=device)
        self.means = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.squares = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.steps = torch.zeros((), device=device, dtype=torch.int64)
        self.alive = torch.ones(len(specs), device=device, dtype=torch.bool)
        self.died_at = torch.zeros(len(specs), device=device, dtype=torch.int64)

    @torch.no_grad()
    def step(self, losses: Tensor) -> None:
        """Update from the gradients in place; losses [M] tell which members are still finite."""
        self.steps += 1
        gradients = [parameter.grad for parameter in self.parameters]
        present = [gradient for gradient in gradients if gradient is not None]
        assert len(present) == len(self.parameters)
        norms = torch.stack([gradient.flatten(1).square().sum(1) for gradient in present]).sum(0).sqrt()
        finite = torch.isfinite(losses) & torch.isfinite(norms)
        self.died_at.copy_(torch.where(self.alive & ~finite, self.steps, self.died_at))
        self.alive &= finite
        factor = torch.ones_like(norms) if self.shared.clip is None else (self.shared.clip / norms).clamp(max=1.0)
        self.update(present, torch.where(self.alive, factor, 0.0))

    def update(self, gradients: Sequence[Tensor], factor: Tensor) -> None:
        """One Adam update of all members that are alive, with gradients scaled by `factor` [M]."""
        beta1, beta2 = self.shared.beta1, self.shared.beta2
        rate = self.peak * self.schedule() * self.alive
        bias1, bias2 = 1 - beta1**self.steps, 1 - beta2**self.steps
        rows = zip(self.parameters, gradients, self.means, self.squares, strict=True)
        for parameter, gradient, mean, square in rows:
            spread = (-1, *[1] * (parameter.dim() - 1))
            dead = ~self.alive.view(spread)
            scaled = (gradient * factor.view(spread)).masked_fill(dead, 0.0)
            mean.lerp_(scaled, 1 - beta1)
            square.lerp_(scaled.square(), 1 - beta2)
            change = mean / bias1 / ((square / bias2).sqrt() + ADAM_EPS)
            change.addcmul_(parameter, self.decay.view(spread))
            parameter.sub_(change * rate.view(spread))

    def schedule(self) -> Tensor:
        """The learning rate of this step relative to its peak: a linear rise, then half a cosine."""
        spec = self.shared
        rise = max(1.0, spec.warmup * spec.steps)
        along = ((self.steps - rise) / max(1.0, spec.steps - rise)).clamp(0.0, 1.0)
        cosine = spec.final_lr + (1 - spec.final_lr) * (1 + torch.cos(torch.pi * along)) / 2
        return torch.minimum(self.steps / rise, cosine)
