"""AdamW over a fleet: every parameter is [M, ...], every member has its own rate, decay, clipping and fate."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from icl_bench.kernels.fleet.adamw import adamw_step
from icl_bench.kernels.fleet.layout import Fleet, Layout, Slots
from icl_bench.runs.spec import TrainSpec


class FleetAdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101), a warm-up and a cosine.

    Parameters, gradients and moments lie in flat buffers; the parameters become views of theirs. Works on device
    tensors throughout, the step counter included, so that a step can be captured in a graph. A member whose loss or
    gradient is not finite is never updated again; the others do not notice.

    Args:
        parameters: [M, ...] float32 each.
        specs: How each member is trained; rates and decays may differ.
        working: A type that matrices are rounded to for the forward pass, once a step; None to use them as they are.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], specs: Sequence[TrainSpec], working: torch.dtype | None = None
    ) -> None:
        self.parameters = list(parameters)
        self.shared = specs[0]
        device = self.parameters[0].device
        self.shapes = [parameter.shape for parameter in self.parameters]
        self.layout = Layout(len(specs), tuple(shape[1:].numel() for shape in self.shapes))
        flat = torch.cat([parameter.detach().flatten() for parameter in self.parameters])
        copy = None if working is None else flat.to(working)
        gradients = torch.zeros_like(flat if copy is None else copy)
        self.slots = Slots(flat, gradients, torch.zeros_like(flat), torch.zeros_like(flat), copy)
        for parameter, view in zip(self.parameters, self.views(flat), strict=True):
            parameter.data = view
        self.tiles = self.layout.tiles().to(device)
        self.state = Fleet(
            losses=torch.zeros(len(specs), device=device),
            steps=torch.zeros((), device=device, dtype=torch.int64),
            table=schedule_table(self.shared).to(device),
            peak=torch.tensor([spec.lr for spec in specs], device=device),
            decay=torch.tensor([spec.weight_decay for spec in specs], device=device),
            alive=torch.ones(len(specs), device=device, dtype=torch.bool),
            died_at=torch.zeros(len(specs), device=device, dtype=torch.int64),
        )
        self.working = self.working_copies()
        self.ones = torch.ones_like(self.state.losses)
        self.gradients, self.means = self.views(gradients), self.views(self.slots.means)

    def views(self, flat: Tensor) -> list[Tensor]:
        """A flat buffer as tensors of the shapes of the parameters."""
        return self.layout.views(flat, self.shapes)

    def working_copies(self) -> list[Tensor]:
        """What the forward pass uses for each parameter: a rounded copy of a matrix, a vector as it is."""
        if self.slots.working is None:
            return list(self.parameters)
        copies = [view.detach().requires_grad_() for view in self.views(self.slots.working)]
        return [copy if copy.dim() > 2 else own for copy, own in zip(copies, self.parameters, strict=True)]

    @property
    def died_at(self) -> Tensor:
        """Step at which a member's loss or gradient was first not finite, [M]; 0 where it never was."""
        return self.state.died_at

    def differentiate(self, losses: Tensor) -> None:
        """Fill the gradients, from the losses [M]."""
        found = torch.autograd.grad(losses, self.working, self.ones, materialize_grads=True)
        # Copied in one launch for each type that there is.
        for kind in {gradient.dtype for gradient in found}:
            pairs = [(view, own) for view, own in zip(self.gradients, found, strict=True) if own.dtype == kind]
            torch._foreach_copy_([view for view, _ in pairs], [own for _, own in pairs])

    @torch.no_grad()
    def step(self, losses: Tensor) -> None:
        """Update from the gradients in place; losses [M] tell which members are still finite."""
        spec = self.shared
        adamw_step(
            self.slots,
            self.state._replace(losses=losses),
            self.layout,
            tiles=self.tiles,
            beta1=spec.beta1,
            beta2=spec.beta2,
            clip=spec.clip,
        )


def schedule_table(spec: TrainSpec) -> Tensor:
    """By step, from 0: the learning rate relative to its peak, a linear rise, then half a cosine; 1 - beta^step."""
    steps = torch.arange(spec.steps + 1, dtype=torch.float64)
    rise = max(1.0, spec.warmup * spec.steps)
    along = ((steps - rise) / max(1.0, spec.steps - rise)).clamp(0.0, 1.0)
    cosine = spec.final_lr + (1 - spec.final_lr) * (1 + torch.cos(math.pi * along)) / 2
    rate = torch.minimum(steps / rise, cosine)
    return torch.stack([rate, 1 - spec.beta1**steps, 1 - spec.beta2**steps], dim=1).float()
