"""Power attention with lower degrees in Triton: polynomials of scores in the place of powers, in the same passes.

Keys and values go to the kernels as k / |k| and |k|^p v, which leaves a score free of the key's length; see `lower`.
The kernels of short sequences (`short`) make them of the tiles that they load, else one pass does. For p = 2 over
longer sequences, the lower degree is added to the plain power as scores of rank one; see `rank_one`. A state that
enters, that of p >= 3, and weights by token beside a state are left to calls of each degree.
"""

from typing import Any

import torch
from torch import Tensor

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.power.key_blocks import WIDEST_KEY
from icl_bench.kernels.power.records import PowerInputs, PowerOptions
from icl_bench.kernels.power.triton import launch as launch
from icl_bench.kernels.power.triton import table
from icl_bench.kernels.power.triton.ops import MAX_VALUE_WIDTH, whole_chunk
from icl_bench.kernels.power.triton.problem import LowerTerms, PowerProblem, TokenWeights, make_problem
from icl_bench.kernels.power.triton.rank_one_launch import norms_and_sums, query_reach, state_traces
from icl_bench.kernels.power.triton.short_launch import is_short, short_gradients, short_outputs
from icl_bench.kernels.triton.common import add_parts

MOST_TERMS = 3
"""Most lower degrees of a score, those of p = 7."""


def fits_one_pass(inputs: PowerInputs, lower: Tensor, p: int, chunk: int | None) -> bool:
    """Return whether the kernels make all degrees at once: by width, type, weights and form."""
    q, k, v, _, state = inputs
    width = q.shape[3]
    kinds = q.dtype in table.ARITHMETIC and q.dtype == k.dtype == v.dtype
    narrow = width <= WIDEST_KEY and v.shape[3] <= MAX_VALUE_WIDTH and p // 2 <= MOST_TERMS
    if not (kinds and narrow and state is None):
        return False
    constant = (lower.ndim < 3 or lower.shape[-3] == 1) and q.shape[2] <= v.shape[2]
    return _chunk(inputs, p, chunk) >= q.shape[1] or (p == 2 and constant)


def spectrum_attention_triton(inputs: PowerInputs, lower: Tensor, p: int, scale: float, chunk: int | None) -> Tensor:
    """Return y [N, T, H, V]; `lower` fits [M, T or 1, H, p // 2] by broadcasting, for M that divides N."""
    q, k, v = (x if x.stride(3) == 1 else x.contiguous() for x in inputs[:3])
    weights = lower.float().view(*(1,) * (4 - lower.ndim), *lower.shape)
    weights = weights.expand(*weights.shape[:2], inputs.heads, p // 2)
    weights = weights if weights.stride(3) == 1 else weights.contiguous()
    y: Tensor = spectrum_forward(q, k, v, inputs.log_g, weights, p, scale, _chunk(inputs, p, chunk))[0]
    return y


@torch.library.custom_op("icl_bench::spectrum_forward", mutates_args=())
def spectrum_forward(
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, weights: Tensor, p: int, scale: float, chunk: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return y and what the backward pass needs, empty where it needs nothing of the kind.

    These are keys of length 1 with their values, `norms`, `query_norms` and `sums` of `LowerTerms`, sums of log gates,
    and states before chunks.
    """
    problem = _problem(q, k, v, weights, p, scale, chunk)
    one, two, three, four, five, six = _nothing(q)
    with launch_on(q):
        if is_short(problem):
            y, gate_sums = short_outputs(problem, q, k, v, log_g, LowerTerms(weights, one, two, three, four))
            return y, one, two, three, four, five, gate_sums, six
        gates, decay = (None, None) if log_g is None else launch.cumulative_gates(log_g, chunk)
        gate_sums = one if gates is None else gates
        if not problem.rank_one:
            keys, values, norms = launch.unit_keys(problem, k, v)
            lower = LowerTerms(weights, norms, two, three, four)
            y, _, _ = launch.power_outputs(problem, q, keys, values, gates, None, False, 0, lower)
            return y.to(v.dtype), keys, values, norms, two, three, gate_sums, four
        norms, query_norms, sums = norms_and_sums(problem, q, k, v, gates)
        states, lower = None, LowerTerms(weights, norms, query_norms, sums, two)
        if problem.chunks > 1:
            token_weights = None if decay is None else TokenWeights(decay, decay)
            states = launch.chunk_states(
                problem, k, k, v, token_weights, gates, None, reverse=False, want_final=False
            ).before
            lower = lower._replace(traces=state_traces(problem, states, lower, weighted=False))
        y, _, _ = launch.power_outputs(problem, q, k, v, gates, states, False, 0, lower)
    return y, three, four, norms, query_norms, sums, gate_sums, five if states is None else states


@spectrum_forward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, weights: Tensor, p: int, scale: float, chunk: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    problem = _problem(q, k, v, weights, p, scale, chunk)
    y = v.new_empty(problem.n, problem.t, problem.heads, problem.v)
    one, two, three, four, five, six = _nothing(q)
    if is_short(problem):
        gate_sums = one.new_empty(0 if log_g is None else (problem.n, problem.heads, problem.t))
        return y, one, two, three, four, five, gate_sums, six
    norms = one.new_empty(problem.n, problem.key_heads, problem.t)
    gates = one if log_g is None else one.new_empty(problem.n, problem.groups, problem.t)
    if not problem.rank_one:
        kind = torch.float32 if k.dtype == torch.float16 else k.dtype
        return y, k.new_empty(k.shape, dtype=kind), v.new_empty(v.shape, dtype=kind), norms, two, three, gates, four
    query_norms = one.new_empty(problem.n, problem.query_heads, problem.t)
    sums = one.new_empty(problem.n, problem.groups, -(-problem.t // problem.lower_rows), problem.v)
    states = five
    if problem.chunks > 1:
        shape = (problem.n * problem.groups, problem.chunks, problem.elements)
        states = q.new_empty(shape, dtype=table.state_type(problem.arithmetic))
    return y, three, four, norms, query_norms, sums, gates, states


@torch.library.custom_op("icl_bench::spectrum_backward", mutates_args=())
def spectrum_backward(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, weights: Tensor, keys: Tensor, values: Tensor,
    norms: Tensor, query_norms: Tensor, sums: Tensor, gate_sums: Tensor, states: Tensor, p: int, scale: float,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return dq, dk, dv, the gradient of the weights in float32, and d log_g (empty without gates)."""
    problem = _problem(q, k, v, weights, p, scale, chunk)
    lower = LowerTerms(weights, norms, query_norms, sums, norms.new_empty(0))
    gates = None if log_g is None else gate_sums
    with launch_on(q):
        if is_short(problem):
            dq, dk, dv, d_weights, dg = short_gradients(problem, q, k, v, dy, gate_sums, lower)
        elif problem.rank_one:
            dq, dk, dv, d_weights, dg = _rank_one_gradients(problem, dy, q, k, v, lower, gates, states)
        else:
            dq, dk, dv, d_weights, dg = _long_gradients(problem, dy, q, keys, values, lower, gates)
        of_members = d_weights.unflatten(0, (len(weights), -1))
        found = of_members.sum(1) if problem.by_token else add_parts(of_members.flatten(1, 2), torch.float32)[:, None]
    shared = launch.add_shared_heads(dq, q), launch.add_shared_heads(dk, k).to(k.dtype)
    return *shared, dv.to(v.dtype), found, dg


def _long_gradients(
    problem: PowerProblem, dy: Tensor, q: Tensor, keys: Tensor, values: Tensor, lower: LowerTerms, gates: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of `spectrum_backward`, by polynomials of scores, before heads and programs are summed."""
    den, low, d_weights = _query_memory(problem, dy, tiled=False, gated=gates is not None)
    with launch_on(q):
        dq, row_sums, stats = launch.query_gradient(
            problem, q, keys, values, dy, low, dy, den, None, gates, None, False, lower, d_weights
        )
        dk, dv, column_sums = launch.key_gradient(problem, q, keys, values, dy, stats, gates, None, False, lower)
        dg = den.new_empty(0)
        if row_sums is not None and column_sums is not None:
            dg = launch.gate_gradient(problem, row_sums, column_sums, None)
    return dq, dk, dv, d_weights, dg


def _rank_one_gradients(
    problem: PowerProblem, dy: Tensor, q: Tensor, k: Tensor, v: Tensor, lower: LowerTerms, gates: Tensor | None,
    states: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of `spectrum_backward` for p = 2, by scores of rank one, before heads are summed.

    The trace of a state is a vector more that queries read, with one weight w for a head: the product of a state with
    its gradient then has the product of both traces, w times, too.
    """
    read = states if problem.chunks > 1 else None
    den, low, d_weights = _query_memory(problem, dy, tiled=read is not None, gated=gates is not None)
    with launch_on(q):
        if read is not None:
            lower = lower._replace(traces=state_traces(problem, read, lower, weighted=False))
        found = query_reach(problem, dy, gates, lower)
        of_keys, after, dots = lower._replace(sums=found.sums), None, None
        if read is not None:
            reach = None if gates is None else gates.exp2()
            after, _, dots = launch.chunk_states(
                problem, q, q, dy, None if reach is None else TokenWeights(reach, reach), gates, None, reverse=True,
                want_final=False, prefix=None if gates is None else read,
            )  # fmt: skip
            of_keys = of_keys._replace(traces=state_traces(problem, after, lower, weighted=True))
            if dots is not None and gates is not None:
                last = torch.arange(1, problem.chunks + 1, device=q.device).mul(problem.chunk).clamp(max=problem.t) - 1
                dots = dots + (lower.traces * of_keys.traces).sum(2) * gates.flatten(0, 1)[:, last].exp2()
        of_queries = lower._replace(sums=found.reach)
        dq, row_sums, stats = launch.query_gradient(
            problem, q, k, v, dy, low, dy, den, found.stats, gates, read, False, of_queries, d_weights
        )
        dk, dv, column_sums = launch.key_gradient(problem, q, k, v, dy, stats, gates, after, False, of_keys)
        dg = den.new_empty(0)
        if row_sums is not None and column_sums is not None:
            dg = launch.gate_gradient(problem, row_sums, column_sums, dots)
    return dq, dk, dv, d_weights, dg


def _query_memory(problem: PowerProblem, dy: Tensor, *, tiled: bool, gated: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return sums of weights and rests of y, which nothing reads without a normaliser, and memory for `d_weights`."""
    den = dy.new_empty(problem.n, problem.heads, problem.t, dtype=torch.float32)
    rows = launch.query_rows(problem, tiled=tiled, gated=gated)
    return (
        den,
        dy.new_empty(problem.n, 0, *dy.shape[2:]),
        den.new_empty(problem.n, rows, problem.heads, max(problem.terms, 1)),
    )


@spectrum_backward.register_fake
def _(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, weights: Tensor, keys: Tensor, values: Tensor,
    norms: Tensor, query_norms: Tensor, sums: Tensor, gate_sums: Tensor, states: Tensor, p: int, scale: float,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dg = norms.new_empty(0) if log_g is None else norms.new_empty(q.shape[0], q.shape[1], v.shape[2])
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), weights.new_empty(weights.shape), dg


def _chunk(inputs: PowerInputs, p: int, chunk: int | None) -> int:
    return whole_chunk(inputs, PowerOptions(p, 1.0, "none", 0.0, chunk), keep_state=False)


def _nothing(q: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return empty tensors, each its own, as an operator must not return one twice."""
    one, two, three, four, five, six = (q.new_empty(0, dtype=torch.float32) for _ in range(6))
    return one, two, three, four, five, six


def _problem(q: Tensor, k: Tensor, v: Tensor, weights: Tensor, p: int, scale: float, chunk: int) -> PowerProblem:
    plain = make_problem(q, k, v, p, scale, False, 0.0, chunk, False)
    problem = plain._replace(terms=p // 2, by_token=weights.shape[1] > 1)
    return problem if p > 2 or is_short(problem) else problem._replace(terms=0, rank_one=True)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.p, ctx.scale, ctx.chunk = inputs
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.set_materialize_grads(False)  # PyTorch would write zeros for the gradients of all outputs but y


def _differentiate(ctx: Any, dy: Tensor, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, log_g, *rest = ctx.saved_tensors
    dy = dy if dy.stride(3) == 1 else dy.contiguous()
    dq, dk, dv, dw, dg = spectrum_backward(dy, q, k, v, log_g, *rest, ctx.p, ctx.scale, ctx.chunk)
    return dq, dk, dv, None if log_g is None else dg.to(log_g.dtype), dw, None, None, None


torch.library.register_autograd("icl_bench::spectrum_forward", _differentiate, setup_context=_save)
