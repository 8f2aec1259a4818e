"""Launches of the kernels for short sequences; the caller makes the device of the tensors current."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from icl_bench.kernels.power.triton.launch import empty_gradient
from icl_bench.kernels.power.triton.problem import LowerTerms, PowerProblem, kernel_constants
from icl_bench.kernels.power.triton.short import (
    power_short_forward_kernel,
    power_short_key_gradient_kernel,
    power_short_query_gradient_kernel,
)
from icl_bench.kernels.triton.common import View, padded, view_of

ARITHMETIC = {"bf16", "tf32"}
"""Arithmetic that is served: without matrix units, tiles of this size spill their registers."""
TOKENS = {16: 128, 32: 128}
"""Tokens of the longest sequences, by the padded width of keys and values: more would spill registers."""


class ShortGradients(NamedTuple):
    """Gradients of a call over short sequences."""

    q: Tensor
    """[N, T, H, K]; as those of keys, in float32 where heads share them, and not yet summed."""
    k: Tensor
    v: Tensor
    weights: Tensor
    """Of the weights of lower degrees, float32 [N, T or 1, H, TERMS]: of each token, or their sums."""
    log_g: Tensor
    """[N, T, H] float32; empty without gates."""


def is_short(problem: PowerProblem) -> bool:
    """Return whether these kernels serve a call: one chunk, no state, no normaliser, and a head for each state."""
    whole = problem.chunk >= problem.t and not problem.stateful and not problem.normalize
    longest = TOKENS.get(padded(problem.width, 16), 0)
    fits = problem.arithmetic in ARITHMETIC and problem.layout.p > 1 and problem.t <= longest
    return whole and fits and problem.heads == problem.groups


def short_outputs(
    problem: PowerProblem, q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, lower: LowerTerms
) -> tuple[Tensor, Tensor]:
    """Return y [N, T, H, V] in the type of v, and sums of log gates, float32 [N, H, T]; empty without gates."""
    y = torch.empty(problem.n, problem.t, problem.heads, problem.v, device=q.device, dtype=v.dtype)
    gates = _vectors(problem, q, log_g is not None)
    g = gates if log_g is None else View(log_g, *log_g.stride())
    _launch(power_short_forward_kernel, "short_forward", problem, q, k, v, lower, g, view_of(y), gates)
    return y, gates


def short_gradients(
    problem: PowerProblem, q: Tensor, k: Tensor, v: Tensor, dy: Tensor, gates: Tensor, lower: LowerTerms
) -> ShortGradients:
    """Return all gradients of `short_outputs`, of whose results `gates` is one."""
    gated = gates.numel() > 0
    dq, dk = (empty_gradient(x, problem.heads) for x in (q, k))
    dv = torch.empty_like(v, memory_format=torch.contiguous_format)
    row_sums = _vectors(problem, q, gated)
    rows = problem.t if problem.by_token else 1
    d_weights = row_sums.new_empty(problem.n, rows, problem.heads, problem.terms)
    dg = row_sums.new_empty((problem.n, problem.t, problem.heads) if gated else 0)
    inputs = q, k, v, lower, gates, view_of(dy)
    _launch(
        power_short_query_gradient_kernel, "short_query_gradient", problem, *inputs, view_of(dq), d_weights, row_sums
    )
    _launch(
        power_short_key_gradient_kernel, "short_key_gradient", problem, *inputs, row_sums, view_of(dk), view_of(dv), dg
    )
    return ShortGradients(dq, dk, dv, d_weights, dg)


def _vectors(problem: PowerProblem, x: Tensor, gated: bool) -> Tensor:
    """Return memory for a number for each token and head, float32 [N, H, T]; empty without gates."""
    return x.new_empty((problem.n, problem.heads, problem.t) if gated else 0, dtype=torch.float32)


def _launch(
    kernel: Any, name: str, problem: PowerProblem, q: Tensor, k: Tensor, v: Tensor, lower: LowerTerms,
    gates: View | Tensor, *others: View | Tensor,
) -> None:  # fmt: skip
    gated = isinstance(gates, View) or gates.numel() > 0
    blocks = problem.blocks(name, tiled=False, gated=gated)
    most = padded(problem.t, 16)
    blocks = blocks._replace(m=min(blocks.m, most), n=min(blocks.n, most))
    larger = max(blocks.m, blocks.n)
    weights, share = lower.arguments(problem.n)
    kernel[(problem.n * problem.heads,)](
        *map(view_of, (q, k, v)), weights, gates, *others,
        problem.t, problem.heads, share, problem.scale**problem.layout.p, LENGTH=-(-problem.t // larger) * larger,
        C=kernel_constants(problem, blocks, gated, False, False), num_warps=blocks.warps, maxnreg=blocks.registers,
    )  # fmt: skip
