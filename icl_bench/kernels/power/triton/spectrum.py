"""Power attention with lower degrees in Triton, over one chunk: polynomials of scores in the place of powers.

One pass makes all degrees, so that it costs little more than the plain power. Sequences of several chunks, and those
that a state enters, are left to calls of each degree.
"""

from typing import Any

import torch
from torch import Tensor

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.power.key_blocks import WIDEST_KEY
from icl_bench.kernels.power.records import PowerInputs
from icl_bench.kernels.power.triton import launch as launch
from icl_bench.kernels.power.triton import table
from icl_bench.kernels.power.triton.ops import MAX_VALUE_WIDTH, measured_chunk
from icl_bench.kernels.power.triton.problem import LowerTerms, PowerProblem, make_problem

MOST_TERMS = 3
"""Most lower degrees of a score, those of p = 7."""


def fits_one_pass(inputs: PowerInputs, p: int, chunk: int | None) -> bool:
    """Return whether one chunk covers the sequence, without a state, in widths and types that the kernels take."""
    q, k, v, _, state = inputs
    t, width = q.shape[1], q.shape[3]
    kinds = q.dtype in table.ARITHMETIC and q.dtype == k.dtype == v.dtype
    narrow = width <= WIDEST_KEY and v.shape[3] <= MAX_VALUE_WIDTH and p // 2 <= MOST_TERMS
    return kinds and narrow and state is None and (chunk or measured_chunk(t, width, p)) >= t


def spectrum_attention_triton(inputs: PowerInputs, lower: Tensor, p: int, scale: float) -> Tensor:
    """Return y [N, T, H, V] of one pass over one chunk; `lower` fits [N, T, H, p // 2] by broadcasting."""
    q, k, v = (x if x.stride(3) == 1 else x.contiguous() for x in inputs[:3])
    n, t = q.shape[:2]
    weights = lower.float().expand(n, t, inputs.heads, p // 2)
    weights = weights if weights.stride(3) == 1 else weights.contiguous()
    y: Tensor = spectrum_forward(q, k, v, inputs.log_g, weights, p, scale)[0]
    return y


@torch.library.custom_op("icl_bench::spectrum_forward", mutates_args=())
def spectrum_forward(
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, weights: Tensor, p: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, the squared norms of keys [N, J, T], and sums of log gates [N, G, T] (empty without gates)."""
    problem = _problem(q, k, v, p, scale)
    with launch_on(q):
        gates = None if log_g is None else launch.cumulative_gates(log_g, problem.t)[0]
        lower = LowerTerms(weights, launch.key_norms(k))
        y, _, _ = launch.power_outputs(problem, q, k, v, gates, None, False, 0, lower)
    return y, lower.norms, lower.norms.new_empty(0) if gates is None else gates


@spectrum_forward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, weights: Tensor, p: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    n, t, heads, _ = k.shape
    norms = k.new_empty(n, heads, t, dtype=torch.float32)
    gates = norms.new_empty(0) if log_g is None else norms.new_empty(n, v.shape[2], t)
    return v.new_empty(n, t, weights.shape[2], v.shape[3]), norms, gates


@torch.library.custom_op("icl_bench::spectrum_backward", mutates_args=())
def spectrum_backward(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, weights: Tensor, norms: Tensor, gates: Tensor | None, p: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return dq, dk, dv, the gradient of the weights [N, T, H, TERMS], and d log_g (empty without gates)."""
    problem = _problem(q, k, v, p, scale)
    lower = LowerTerms(weights, norms)
    den = norms.new_empty(problem.n, problem.heads, problem.t)
    d_weights = torch.empty(problem.n, problem.t, problem.heads, problem.terms, device=q.device)
    low = dy.new_empty(problem.n, 0, *dy.shape[2:])
    with launch_on(q):
        dq, row_sums, stats = launch.query_gradient(
            problem, q, k, v, dy, low, dy, den, None, gates, None, False, lower, d_weights
        )
        dk, dv, column_sums = launch.key_gradient(problem, q, k, v, dy, stats, gates, None, False, lower)
        dg = den.new_empty(0)
        if row_sums is not None and column_sums is not None:
            dg = launch.gate_gradient(problem, row_sums, column_sums, None)
    shared = launch.add_shared_heads(dq, q), launch.add_shared_heads(dk, k)
    return *shared, dv, d_weights, dg


@spectrum_backward.register_fake
def _(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, weights: Tensor, norms: Tensor, gates: Tensor | None, p: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dg = norms.new_empty(0) if gates is None else norms.new_empty(q.shape[0], q.shape[1], v.shape[2])
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), weights.new_empty(weights.shape), dg


def _problem(q: Tensor, k: Tensor, v: Tensor, p: int, scale: float) -> PowerProblem:
    return make_problem(q, k, v, p, scale, False, 0.0, q.shape[1], False)._replace(terms=p // 2)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, log_g, weights, *ctx.options = inputs
    ctx.save_for_backward(q, k, v, weights, *output[1:])
    ctx.gate_type = None if log_g is None else log_g.dtype


def _differentiate(ctx: Any, dy: Tensor, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, weights, norms, gates = ctx.saved_tensors
    dy = dy if dy.stride(3) == 1 else dy.contiguous()
    gated = ctx.gate_type is not None
    dq, dk, dv, dw, dg = spectrum_backward(dy, q, k, v, weights, norms, gates if gated else None, *ctx.options)
    return dq, dk, dv, dg.to(ctx.gate_type) if gated else None, dw, None, None


torch.library.register_autograd("icl_bench::spectrum_forward", _differentiate, setup_context=_save)
