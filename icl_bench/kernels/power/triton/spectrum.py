"""Power attention with lower degrees in Triton: polynomials of scores in the place of powers, in the same passes.

Keys and values go to the kernels as k / |k| and |k|^p v, which leaves a score free of the key's length; see `lower`.
The kernels of short sequences (`short`) make them of the tiles that they load, else one pass does. For p = 2 the state
form reads the lower degree as the trace of the state. A state that enters, that of p >= 3, and weights by token beside
a state are left to calls of each degree.
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
    return _chunk(q, p, chunk) >= q.shape[1] or (p == 2 and constant)


def spectrum_attention_triton(inputs: PowerInputs, lower: Tensor, p: int, scale: float, chunk: int | None) -> Tensor:
    """Return y [N, T, H, V]; `lower` fits [M, T or 1, H, p // 2] by broadcasting, for M that divides N."""
    q, k, v = (x if x.stride(3) == 1 else x.contiguous() for x in inputs[:3])
    weights = lower.float().view(*(1,) * (4 - lower.ndim), *lower.shape)
    weights = weights.expand(*weights.shape[:2], inputs.heads, p // 2)
    weights = weights if weights.stride(3) == 1 else weights.contiguous()
    y: Tensor = spectrum_forward(q, k, v, inputs.log_g, weights, p, scale, _chunk(q, p, chunk))[0]
    return y


@torch.library.custom_op("icl_bench::spectrum_forward", mutates_args=())
def spectrum_forward(
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, weights: Tensor, p: int, scale: float, chunk: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return y and, where made, `launch.UnitKeys`, sums of log gates and states before chunks; else empty tensors."""
    problem = _problem(q, k, v, weights, p, scale, chunk)
    with launch_on(q):
        if is_short(problem):
            one, two, three, four, five = _nothing(q)
            y, sums = short_outputs(problem, q, k, v, log_g, LowerTerms(weights, one, two, three))
            return y, one, two, three, four, sums, five
        gates, decay = (None, None) if log_g is None else launch.cumulative_gates(log_g, chunk)
        keys, values, lengths, key_sums = launch.unit_keys(problem, k, v, gates)
        states = None
        if problem.chunks > 1:
            token_weights = None if decay is None else TokenWeights(decay, decay)
            states = launch.chunk_states(
                problem, keys, keys, values, token_weights, gates, None, reverse=False, want_final=False
            ).before
        lower = LowerTerms(weights, lengths, key_sums, key_sums.new_empty(0))
        y, _, _ = launch.power_outputs(problem, q, keys, values, gates, states, False, 0, lower)
    sums = lengths.new_empty(0) if gates is None else gates
    return y.to(v.dtype), keys, values, lengths, key_sums, sums, q.new_empty(0) if states is None else states


@spectrum_forward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, weights: Tensor, p: int, scale: float, chunk: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    problem = _problem(q, k, v, weights, p, scale, chunk)
    y = v.new_empty(problem.n, problem.t, problem.heads, problem.v)
    if is_short(problem):
        one, two, three, four, five = _nothing(q)
        sums = one.new_empty(0 if log_g is None else (problem.n, problem.heads, problem.t))
        return y, one, two, three, four, sums, five
    kind = torch.float32 if k.dtype == torch.float16 else k.dtype
    keys, values = k.new_empty(k.shape, dtype=kind), v.new_empty(v.shape, dtype=kind)
    lengths = q.new_empty(problem.n, problem.key_heads, problem.t, dtype=torch.float32)
    blocks = -(-problem.t // problem.lower_rows)
    key_sums = lengths.new_empty((problem.n, problem.groups, blocks, problem.v) if p == 2 else 0)
    gates = lengths.new_empty(0) if log_g is None else lengths.new_empty(problem.n, problem.groups, problem.t)
    states = q.new_empty(0)
    if problem.chunks > 1:
        shape = (problem.n * problem.groups, problem.chunks, problem.elements)
        states = q.new_empty(shape, dtype=table.state_type(problem.arithmetic))
    return y, keys, values, lengths, key_sums, gates, states


@torch.library.custom_op("icl_bench::spectrum_backward", mutates_args=())
def spectrum_backward(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, weights: Tensor, keys: Tensor, values: Tensor,
    lengths: Tensor, key_sums: Tensor, sums: Tensor, states: Tensor, p: int, scale: float, chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return dq, dk, dv, the gradient of the weights in float32, and d log_g (empty without gates)."""
    problem = _problem(q, k, v, weights, p, scale, chunk)
    blocks = -(-problem.t // problem.lower_rows)
    query_sums = lengths.new_empty((problem.n, problem.heads, blocks, problem.v) if key_sums.numel() else 0)
    lower = LowerTerms(weights, lengths, key_sums, query_sums)
    with launch_on(q):
        if is_short(problem):
            dq, dk, dv, d_weights, dg = short_gradients(problem, q, k, v, dy, sums, lower)
        else:
            gates = None if log_g is None else sums
            dq, dk, dv, d_weights, dg = _long_gradients(problem, dy, q, k, lower, keys, values, gates, states)
        of_members = d_weights.unflatten(0, (len(weights), -1))
        found = of_members.sum(1) if problem.by_token else add_parts(of_members.flatten(1, 2), torch.float32)[:, None]
    shared = launch.add_shared_heads(dq, q), launch.add_shared_heads(dk, k).to(k.dtype)
    return *shared, dv.to(v.dtype), found, dg


def _long_gradients(
    problem: PowerProblem, dy: Tensor, q: Tensor, k: Tensor, lower: LowerTerms, keys: Tensor, values: Tensor,
    gates: Tensor | None, states: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of `spectrum_backward` before heads, programs and members are summed."""
    read = states if problem.chunks > 1 else None
    den = dy.new_empty(problem.n, problem.heads, problem.t, dtype=torch.float32)
    rows = launch.query_rows(problem, tiled=read is not None, gated=gates is not None)
    d_weights = den.new_empty(problem.n, rows, problem.heads, problem.terms)
    low = dy.new_empty(problem.n, 0, *dy.shape[2:])
    after, dots = None, None
    if read is not None:
        after, dots = _state_gradients(problem, q, dy, lower.weights, gates, read)
    with launch_on(q):
        dq, row_sums, stats = launch.query_gradient(
            problem, q, keys, values, dy, low, dy, den, None, gates, read, False, lower, d_weights
        )
        dk, dv, column_sums = launch.key_gradient(problem, q, keys, values, dy, stats, gates, after, False, lower)
        dg = den.new_empty(0)
        if row_sums is not None and column_sums is not None:
            dg = launch.gate_gradient(problem, row_sums, column_sums, dots)
    return dq, dk, dv, d_weights, dg


@spectrum_backward.register_fake
def _(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, weights: Tensor, keys: Tensor, values: Tensor,
    lengths: Tensor, key_sums: Tensor, sums: Tensor, states: Tensor, p: int, scale: float, chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dg = lengths.new_empty(0) if log_g is None else lengths.new_empty(q.shape[0], q.shape[1], v.shape[2])
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), weights.new_empty(weights.shape), dg


def _state_gradients(
    problem: PowerProblem, q: Tensor, dy: Tensor, weights: Tensor, gates: Tensor | None, states: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of the states of p = 2 after each chunk, of phi alone, and with gates their products.

    The trace of a state is a vector more that queries read, with one weight w for a head: the product of a state with
    its gradient then has the product of both traces, w times, too.
    """
    reach = None if gates is None else gates.exp2()
    token_weights = None if reach is None else TokenWeights(reach, reach)
    with launch_on(q):
        after, _, dots = launch.chunk_states(
            problem, q, q, dy, token_weights, gates, None, reverse=True, want_final=False,
            prefix=None if gates is None else states,
        )  # fmt: skip
    if dots is None or gates is None:
        return after, None
    traces = launch.state_traces(problem, states) * launch.state_traces(problem, after)
    by_head = weights[:, 0, :, 0].repeat_interleave(problem.n // len(weights), dim=0).flatten()
    last = torch.arange(1, problem.chunks + 1, device=q.device).mul(problem.chunk).clamp(max=problem.t) - 1
    return after, dots + traces.sum(2) * by_head[:, None] * gates.flatten(0, 1)[:, last].exp2()


def _chunk(q: Tensor, p: int, chunk: int | None) -> int:
    return whole_chunk(q, PowerOptions(p, 1.0, "none", 0.0, chunk))


def _nothing(q: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return empty tensors, each its own, as an operator must not return one twice."""
    one, two, three, four, five = (q.new_empty(0, dtype=torch.float32) for _ in range(5))
    return one, two, three, four, five


def _problem(q: Tensor, k: Tensor, v: Tensor, weights: Tensor, p: int, scale: float, chunk: int) -> PowerProblem:
    plain = make_problem(q, k, v, p, scale, False, 0.0, chunk, False)
    return plain._replace(terms=p // 2, by_token=weights.shape[1] > 1)


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
