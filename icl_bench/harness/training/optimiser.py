"""The optimiser of a fleet, AdamW or Muon, and the rule by which a loss that explodes counts as diverged.

Parameters are [M, ...]; each member has its own learning rate, decay and clipping.
"""

import math
from collections.abc import Iterable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from icl_bench.architectures.layers import decays, kind_of
from icl_bench.harness.training.muon import muon_step
from icl_bench.kernels.fleet.adamw import adamw_step
from icl_bench.kernels.fleet.layout import MATRIX_UNIT, MemberState, OptimiserBuffers, ParameterLayout
from icl_bench.kernels.fleet.monitored_means import LossLimit, monitored_means
from icl_bench.runs.spec import TrainSpec

LOSS_LIMIT = LossLimit(factor=10.0, margin=10.0, patience=50)
"""A loss has exploded once it is above factor x its first value + margin for `patience` steps in a row."""
LARGE_GRADIENT = 1 << 19
"""Numbers from which on a gradient is copied alone: a launch for many has one block for each 65,536 numbers."""
MIDDLE_GRADIENT, FEW_COPIES = 1 << 13, 4
"""Numbers from which on it is copied alone where there are at most so many of them: 2 us each on an H200, where a block
of the launch for many takes 11."""


class DivergenceMonitor:
    """Sums and history of the losses of a fleet of M members, on the device; each step writes them in place."""

    def __init__(self, members: int, device: torch.device) -> None:
        self.sums = torch.zeros(2, members, device=device, dtype=torch.float64)
        """Sums of mean losses and of mean hits over the steps, [2, M]."""
        self.history = torch.zeros(2, members, device=device)
        """First mean loss (-1 before the first step) and steps in a row above the limit, [2, M]."""
        self.history[0] = -1.0

    def mean_losses(self, losses: Tensor, hits: Tensor) -> Tensor:
        """Average losses and hits [M, B S] into the sums; return the mean losses [M], infinite if exploded."""
        return monitored_means(losses, hits, self.sums, self.history, LOSS_LIMIT)


class FleetOptimiser:
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101) or Muon, a warm-up and a cosine.

    Parameters, gradients and moments lie in flat buffers, of which the parameters become views; the matrices that Muon
    updates come last. A step works on device tensors alone, the step counter included, so that a CUDA graph can hold
    it. A member whose loss or gradient is not finite is never updated again; the other members are not affected.

    Args:
        parameters: [M, ...] float32 each, declared by a layer.
        specs: Training of each member; learning rates and decays may differ.
        working: Type that matrices are rounded to for the forward pass, once a step; None to use them as they are.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], specs: Sequence[TrainSpec], working: torch.dtype | None = None
    ) -> None:
        self.shared = specs[0]
        by_muon = [self.shared.optimiser == "muon" and kind_of(parameter) == "matrix" for parameter in parameters]
        order = sorted(range(len(parameters)), key=by_muon.__getitem__)
        self.parameters = [parameters[i] for i in order]
        self.first_matrix = by_muon.count(False)
        device = self.parameters[0].device
        self.shapes = [parameter.shape for parameter in self.parameters]
        exempt = tuple(i for i, parameter in enumerate(self.parameters) if not decays(parameter, self.shared.recipe))
        sizes, unit = tuple(shape[1:].numel() for shape in self.shapes), MATRIX_UNIT if device.type == "cuda" else 1
        self.layout = ParameterLayout(len(specs), sizes, exempt, unit)
        flat = self.layout.joined([parameter.detach() for parameter in self.parameters])
        copy = None if working is None else flat.to(working)
        # Without their factor, gradients of float16 would vanish in it.
        gradients = torch.zeros_like(flat if copy is None or working == torch.float16 else copy)
        self.buffers = OptimiserBuffers(flat, gradients, torch.zeros_like(flat), torch.zeros_like(flat), copy)
        for parameter, view in zip(self.parameters, self.views(flat), strict=True):
            parameter.data = view
        self.adamw_layout = self.layout._replace(sizes=self.layout.sizes[: self.first_matrix])
        self.tiles = self.adamw_layout.tiles().to(device)
        self.state = MemberState(
            losses=torch.zeros(len(specs), device=device),
            steps=torch.zeros((), device=device, dtype=torch.int64),
            table=schedule_table(self.shared).to(device),
            peak=torch.tensor([spec.lr for spec in specs], device=device),
            decay=torch.tensor([spec.weight_decay for spec in specs], device=device),
            active=torch.ones(len(specs), device=device, dtype=torch.bool),
            diverged_at=torch.zeros(len(specs), device=device, dtype=torch.int64),
        )
        self.working: list[Tensor] = list(self.parameters)
        """Parameters as the forward pass uses them: rounded copies of matrices, vectors as they are; in flat order."""
        if copy is not None:
            copies = [view.detach().requires_grad_() for view in self.views(copy)]
            self.working = [own if own.dim() > 2 else full for own, full in zip(copies, self.parameters, strict=True)]
        self.given_order = [self.working[order.index(i)] for i in range(len(order))]
        """The working parameters in the order in which they were given."""
        self.scales: dict[int, Tensor] = {}
        """Gradients [M] of each of so many losses of a member, written once."""
        self.gradients, self.means = self.views(gradients), self.views(self.buffers.means)
        middle = [shape for shape in self.shapes if MIDDLE_GRADIENT <= shape.numel() < LARGE_GRADIENT]
        self.alone = MIDDLE_GRADIENT if len(middle) <= FEW_COPIES else LARGE_GRADIENT
        """Numbers from which on a gradient is copied alone."""

    def views(self, flat: Tensor) -> list[Tensor]:
        """View a flat buffer as tensors of the shapes of the parameters."""
        return self.layout.views(flat, self.shapes)

    def differentiate(self, losses: Tensor) -> None:
        """Write the gradients of the losses [M], or of the means of the losses [M, R], into their buffer."""
        common: dict[torch.dtype, list[tuple[Tensor, Tensor]]] = {}
        for view, new in zip(self.gradients, self.gradients_of(losses), strict=True):
            if new.numel() >= self.alone:
                view.copy_(new)
            else:
                common.setdefault(new.dtype, []).append((view, new))
        for pairs in common.values():
            torch._foreach_copy_([view for view, _ in pairs], [new for _, new in pairs])
        self.unscale()

    def unscale(self) -> None:
        """Take the factor on the loss out of the gradients."""
        if self.shared.loss_scale != 1.0:
            self.buffers.gradients.mul_(1 / self.shared.loss_scale)

    def differentiate_pieces(self, pieces: Iterable[Tensor]) -> None:
        """Write the gradients of the sum of losses, [M] each, into their buffer.

        Each loss is differentiated before the next one is computed; gradients are added in float32.
        """
        sums = [torch.zeros_like(parameter) for parameter in self.parameters]
        for losses in pieces:
            torch._foreach_add_(sums, [gradient.float() for gradient in self.gradients_of(losses)])
        torch._foreach_copy_(self.gradients, sums)
        self.unscale()

    def gradients_of(self, losses: Tensor) -> Sequence[Tensor]:
        """Return the gradients of losses [M], or of means of [M, R], times the factor on the loss, in flat order."""
        rows = losses[0].numel()
        if rows not in self.scales:
            self.scales[rows] = torch.full_like(self.state.losses, self.shared.loss_scale / rows)
        root = _Root.apply(losses, self.scales[rows])
        return torch.autograd.grad(root, self.working, materialize_grads=True)

    @torch.no_grad()
    def step(self, losses: Tensor) -> None:
        """Update the parameters from the gradients, in place; a member whose loss [M] is not finite stays as it is."""
        spec, state, buffers, clip = self.shared, self.state._replace(losses=losses), self.buffers, self.shared.clip
        by_muon = self.first_matrix < len(self.parameters)
        if by_muon or (clip is not None and spec.clip_by == "tensor"):
            # AdamW clips by one norm, of the parameters that it sees.
            buffers, clip = buffers._replace(gradients=self.clipped_gradients()), None
        own = head_of(buffers, self.adamw_layout.elements)
        adamw_step(
            own, state, self.adamw_layout,
            tiles=self.tiles, beta1=spec.beta1, beta2=spec.beta2, clip=clip, eps=spec.eps,
        )  # fmt: skip
        if by_muon:
            self.step_matrices(buffers)

    def clipped_gradients(self) -> Tensor:
        """Return the gradients as one flat buffer in float32, scaled to the norm that the run allows.

        The norm is that of all gradients of a member, or that of each tensor.
        """
        gradients = self.buffers.gradients.to(torch.float32, copy=True)
        rows = self.layout.rows(gradients)
        squares = [row.square().sum(1) for row in rows]
        norms = reduce(torch.add, squares).sqrt()
        if self.shared.clip is not None:
            for row, own in zip(rows, squares, strict=True):
                limited = own.sqrt() if self.shared.clip_by == "tensor" else norms
                row.mul_((self.shared.clip / limited).clamp(max=1.0)[:, None])
        # A member with an infinite gradient anywhere has one everywhere, so that AdamW finds it.
        rows[0].masked_fill_(~norms.isfinite()[:, None], math.inf)
        return gradients

    def step_matrices(self, buffers: OptimiserBuffers) -> None:
        """Update the matrices by Muon, after AdamW has counted the step and found the members that diverged."""
        state, begin = self.state, self.adamw_layout.elements
        row = state.table.index_select(0, state.steps.clamp(max=len(state.table) - 1).view(1))
        rate = state.peak * row[0, 0] * state.active
        dtype = torch.float32 if buffers.working is None else torch.bfloat16
        parameters, gradients, means = (
            self.views(flat)[self.first_matrix :] for flat in buffers[:3] if flat is not None
        )
        for i, matrix in enumerate(zip(parameters, gradients, means, strict=True), start=self.first_matrix):
            matrix[1].masked_fill_(~state.active[:, None, None], 0.0)
            muon_step(*matrix, rate, state.decay * (i not in self.layout.exempt), dtype)
        if buffers.working is not None:
            buffers.working[begin:].copy_(buffers.parameters[begin:])


class _Root(torch.autograd.Function):
    """A number that nobody reads, with a given gradient [M] for the losses [M, ...].

    Given to `torch.autograd.grad` itself, gradients of several numbers make torch import sympy for half a second; a
    mean of the losses would be launched in every step, and so would be its own gradient, did it lie on a GPU.
    """

    @staticmethod
    def forward(ctx: Any, losses: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        ctx.shape = losses.shape
        return torch.empty(())

    @staticmethod
    def backward(ctx: Any, _one: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient.view(-1, *[1] * (len(ctx.shape) - 1)).expand(ctx.shape), None


def head_of(buffers: OptimiserBuffers, elements: int) -> OptimiserBuffers:
    """Return views of the first elements of each buffer."""
    parameters, gradients, means, squares, working = buffers
    moments = (means[:elements], squares[:elements])
    return OptimiserBuffers(
        parameters[:elements], gradients[:elements], *moments, None if working is None else working[:elements]
    )


def schedule_table(spec: TrainSpec) -> Tensor:
    """Return the schedule by step, from 0: [steps + 1, 3].

    The columns are the learning rate relative to its peak, a linear rise and then half a cosine, and the bias
    corrections 1 - beta1^step and 1 - beta2^step.
    """
    steps = torch.arange(spec.steps + 1, dtype=torch.float64)
    rise = max(1.0, spec.warmup * spec.steps)
    along = ((steps - rise) / max(1.0, spec.steps - rise)).clamp(0.0, 1.0)
    cosine = spec.final_lr + (1 - spec.final_lr) * (1 + torch.cos(math.pi * along)) / 2
    rate = torch.minimum(steps / rise, cosine)
    return torch.stack([rate, 1 - spec.beta1**steps, 1 - spec.beta2**steps], dim=1).float()
