"""Power attention with lower degrees in Triton: polynomials of scores in the place of powers, in the same passes.

Keys and values go to the kernels as k / |k| and |k|^p v, which leaves a score free of the key's length; see `lower`.
Over at most `table.SHORT_CHUNK` tokens the kernels make them of the tiles that they load, else one pass does. For p = 2
the state form reads the lower degree as the trace of the state. A state that enters, that of p >= 3, and weights by
token beside a state are left to calls of each degree.
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return y and, where made, k / |k|, |k|^p v, |k|, sums of log gates, and states before chunks; else empty."""
    problem = _problem(q, k, v, weights, p, scale, chunk)
    keys, values, lengths, states = q.new_empty(0), q.new_empty(0), q.new_empty(0, dtype=torch.float32), None
    with launch_on(q):
        gates, decay = (None, None) if log_g is None else launch.cumulative_gates(log_g, chunk)
        if problem.short:
            y, _, _ = launch.power_outputs(problem, q, k, v, gates, None, False, 0, LowerTerms(weights, None))
        else:
            keys, values, lengths = launch.unit_keys(k, v, p)
            if problem.chunks > 1:
                token_weights = None if decay is None else TokenWeights(decay, decay)
                states = launch.chunk_states(
                    problem, keys, keys, values, token_weights, gates, None, reverse=False, want_final=False
                ).before
            lower = LowerTerms(weights, lengths)
            y, _, _ = launch.power_outputs(problem, q, keys, values, gates, states, False, 0, lower)
    sums = lengths.new_empty(0) if gates is None else gates
    return y.to(v.dtype), keys, values, lengths, sums, q.new_empty(0) if states is None else states


@spectrum_forward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, weights: Tensor, p: int, scale: float, chunk: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    problem = _problem(q, k, v, weights, p, scale, chunk)
    kind = torch.float32 if k.dtype == torch.float16 else k.dtype
    keys, values, lengths = q.new_empty(0), q.new_empty(0), q.new_empty(0, dtype=torch.float32)
    if not problem.short:
        keys, values = k.new_empty(k.shape, dtype=kind), v.new_empty(v.shape, dtype=kind)
        lengths = lengths.new_empty(problem.n, problem.key_heads, problem.t)
    gates = lengths.new_empty(0) if log_g is None else lengths.new_empty(problem.n, problem.groups, problem.t)
    states = q.new_empty(0)
    if problem.chunks > 1:
        shape = (problem.n * problem.groups, problem.chunks, problem.elements)
        states = q.new_empty(shape, dtype=table.state_type(problem.arithmetic))
    return v.new_empty(problem.n, problem.t, problem.heads, problem.v), keys, values, lengths, gates, states


@torch.library.custom_op("icl_bench::spectrum_backward", mutates_args=())
def spectrum_backward(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, weights: Tensor, keys: Tensor, values: Tensor, lengths: Tensor,
    gates: Tensor | None, states: Tensor, p: int, scale: float, chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return dq, dk, dv, the gradient of the weights in float32, and d log_g (empty without gates)."""
    problem = _problem(q, k, v, weights, p, scale, chunk)
    lower = LowerTerms(weights, None if problem.short else lengths)
    keys, values = (k, v) if problem.short else (keys, values)
    read = states if problem.chunks > 1 else None
    den = dy.new_empty(problem.n, problem.heads, problem.t, dtype=torch.float32)
    d_weights = den.new_empty(
        problem.n, launch.query_rows(problem, tiled=read is not None), problem.heads, problem.terms
    )
    low = dy.new_empty(problem.n, 0, *dy.shape[2:])
    after, dots = None, None
    with launch_on(q):
        if read is not None:
            after, dots = _state_gradients(problem, q, dy, weights, gates, read)
        dq, row_sums, stats = launch.query_gradient(
            problem, q, keys, values, dy, low, dy, den, None, gates, read, False, lower, d_weights
        )
        dk, dv, column_sums = launch.key_gradient(problem, q, keys, values, dy, stats, gates, after, False, lower)
        dg = den.new_empty(0)
        if row_sums is not None and column_sums is not None:
            dg = launch.gate_gradient(problem, row_sums, column_sums, dots)
    shared = launch.add_shared_heads(dq, q), launch.add_shared_heads(dk, k).to(k.dtype)
    d_weights = d_weights.unflatten(0, (len(weights), -1))
    found = d_weights.sum(1) if problem.by_token else d_weights.sum((1, 2))[:, None]
    return *shared, dv.to(v.dtype), found, dg


@spectrum_backward.register_fake
def _(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, weights: Tensor, keys: Tensor, values: Tensor, lengths: Tensor,
    gates: Tensor | None, states: Tensor, p: int, scale: float, chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dg = lengths.new_empty(0) if gates is None else lengths.new_empty(q.shape[0], q.shape[1], v.shape[2])
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


def _problem(q: Tensor, k: Tensor, v: Tensor, weights: Tensor, p: int, scale: float, chunk: int) -> PowerProblem:
    plain = make_problem(q, k, v, p, scale, False, 0.0, chunk, False)
    return plain._replace(terms=p // 2, by_token=weights.shape[1] > 1)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, log_g, weights, *ctx.options = inputs
    ctx.save_for_backward(q, k, v, weights, *output[1:])
    ctx.set_materialize_grads(False)  # PyTorch would write zeros for the gradients of all outputs but y
    ctx.gate_type = None if log_g is None else log_g.dtype


def _differentiate(ctx: Any, dy: Tensor, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, weights, keys, values, lengths, gates, states = ctx.saved_tensors
    dy = dy if dy.stride(3) == 1 else dy.contiguous()
    gated = ctx.gate_type is not None
    dq, dk, dv, dw, dg = spectrum_backward(
        dy, q, k, v, weights, keys, values, lengths, gates if gated else None, states, *ctx.options
    )
    return dq, dk, dv, dg.to(ctx.gate_type) if gated else None, dw, None, None, None


torch.library.register_autograd("icl_bench::spectrum_forward", _differentiate, setup_context=_save)
