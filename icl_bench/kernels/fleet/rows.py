"""Rows of sequences at positions: out_mbs = x_mb[positions_mbs]; gradients of a row that is taken twice are added."""

import torch
from torch import Tensor

from icl_bench.kernels.arguments import check_pair
from icl_bench.kernels.backends import FleetImpl, takes_triton


def take_rows(x: Tensor, positions: Tensor, *, impl: FleetImpl = "auto") -> Tensor:
    """Take rows of x [M, B, T, C] at positions [M, B, S] int64, 0 to T - 1 in any order: [M, B, S, C], typed as x."""
    return take_rows_beside(x, positions, impl=impl)[1]


def take_rows_beside(x: Tensor, positions: Tensor, *, impl: FleetImpl = "auto") -> tuple[Tensor, Tensor]:
    """Return x for its other uses, and what `take_rows` returns: their gradient is added in the same launch."""
    fit = x.ndim == 4 and positions.ndim == 3 and x.shape[:2] == positions.shape[:2]
    check_pair(fit, "x must be [M, B, T, C] and positions [M, B, S]", x, positions)
    if takes_triton(impl, x):
        from icl_bench.kernels.fleet.triton.rows import FusedTakeRows

        taken: tuple[Tensor, Tensor] = FusedTakeRows.apply(x, positions)
        return taken
    if impl == "reference":
        return x, take_rows_reference(x, positions).to(x.dtype)
    return x, x.gather(2, positions[..., None].expand(*positions.shape, x.shape[-1]))


def take_rows_reference(x: Tensor, positions: Tensor) -> Tensor:
    """Take rows by the definition, in float64: x [M, B, T, C], positions [M, B, S] -> [M, B, S, C]."""
    pairs = zip(x.double().flatten(0, 1), positions.flatten(0, 1), strict=True)
    return torch.stack([sequence[chosen] for sequence, chosen in pairs]).view(*positions.shape, -1)
