"""Power attention in Triton: the entry points, and the custom operators behind them.

Forward: sums of each chunk (`triton_state`), their scan (`triton_scan`), then one kernel that reads the state and adds
the causal scores of the own chunk (`triton_forward`). Backward: the same two state kernels on queries and output
gradients, backwards in time, then one kernel for dq (`triton_query_gradient`) and one or two for dk and dv
(`triton_key_gradient`). One chunk that covers the sequence is the quadratic form. Expanded keys and queries exist in
registers only (for p >= 3 their factors of about half the degree are in memory). No kernel adds atomically: results
repeat bit for bit.
"""

from typing import Any

import torch
from torch import Tensor

from icl_bench.errors import KernelUnavailableError
from icl_bench.kernels.power import key_blocks
from icl_bench.kernels.power.expansion import expanded_width
from icl_bench.kernels.power.state import PowerState
from icl_bench.kernels.power.triton import launch as launch
from icl_bench.kernels.power.triton import table as config
from icl_bench.kernels.power.triton.basis import from_normaliser, from_tiles, tile_layout, to_normaliser, to_tiles
from icl_bench.kernels.power.triton.problem import Problem, TokenFactors
from icl_bench.kernels.power.triton.state_launch import chunk_states

MAX_VALUE_WIDTH = 128


def power_attention_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_g: Tensor | None,
    p: int,
    scale: float,
    normalize: str,
    eps: float,
    initial_state: PowerState | None,
    chunk: int | None,
    keep_state: bool = True,
) -> tuple[Tensor, PowerState | None]:
    """`api.power_attention_with_state` on CUDA (or in Triton's interpreter); arguments are checked there.

    Args:
        q: [N, T, H, K], K up to 128, or any with p = 1 and without a normaliser.
        k: [N, T, G, K].
        v: [N, T, G, V].
        log_g: [N, T, G] or None.
        p: The power.
        scale: Factor on q.k.
        normalize: "sum" or "none".
        eps: Added to the sum of the weights.
        initial_state: The state before the first token, or None for zeros.
        chunk: Tokens to a chunk, rounded up to whole blocks; None for the choice of `default_chunk`.
        keep_state: Whether the state after the last token is wanted; without it the last sums are not made.

    Returns:
        y [N, T, H, V] in the type of v, and the state or None.

    Raises:
        KernelUnavailableError: The type or the key width is not supported.
    """
    _check(q, k, v, p, normalize)
    if q.shape[3] > key_blocks.WIDEST:
        cut = key_blocks.split_keys(q, k, v, log_g, initial_state)
        y, state = power_attention_triton(*cut[:4], p, scale, normalize, eps, cut[4], chunk, keep_state)
        return key_blocks.join_keys(y, state, k.shape[2], k.shape[3])
    if v.shape[3] > MAX_VALUE_WIDTH:
        return _by_value_blocks(q, k, v, log_g, p, scale, normalize, eps, initial_state, chunk, keep_state)
    s, z = (None, None) if initial_state is None else initial_state
    size = _chunk(q, p, chunk)
    q, k, v = (x if x.stride(3) == 1 else x.contiguous() for x in (q, k, v))
    differentiable = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (q, k, v, log_g, s, z))
    y, _, _, _, _, s, z = power_forward(
        q, k, v, log_g, s, z, p, scale, normalize == "sum", eps, size, keep_state, differentiable
    )  # fmt: skip
    if not keep_state:
        return y, None
    return y, PowerState(s, z if normalize == "sum" else None)


def default_chunk(t: int, key_width: int, p: int) -> int:
    """The chunk of a sequence of length t: t itself (the quadratic form) where that is the cheaper, as measured.

    By their operations the forms would cost the same at twice the rows of the state, for values as wide as keys. On an
    H100, forward and backward in bfloat16, they do at 18.7, 5.5, 2.65 and 1.2 thousand tokens for p = 2 and widths of
    128, 64, 32 and 16, and at 1,430, 820 and 650 for p = 1 and widths of 128, 64 and 32.
    """
    rows = tile_layout(key_width, p).expanded
    kept = (LINEAR_TOKENS if p == 1 else STATE_TOKENS)[min(128, config.padded(key_width))]
    if t <= 2 * rows + kept or rows > MAX_EXPANDED:
        return t
    chunk = 256
    while chunk < 2048 and chunk * chunk < 250 * rows:
        chunk *= 2
    return chunk


STATE_TOKENS = {16: 700, 32: 1100, 64: 400, 128: 300}
"""Tokens beyond twice the rows of the state at which both forms cost the same, by the padded width of keys."""

LINEAR_TOKENS = {16: 530, 32: 585, 64: 690, 128: 1175}
"""The same for p = 1; the first is an estimate."""


FEW_KEYS = 64
"""Rows with at least as many keys are as exact with y in 16 bits."""

MAX_EXPANDED = 150_000
"""Rows of the widest state that is used; beyond them the quadratic form serves every length."""


def _chunk(q: Tensor, p: int, chunk: int | None) -> int:
    t = q.shape[1]
    if chunk is None:
        chunk = default_chunk(t, q.shape[3], p)
    unit = config.chunk_unit(q.dtype)
    chunk = -(-chunk // unit) * unit
    return min(chunk, t)


def _check(q: Tensor, k: Tensor, v: Tensor, p: int, normalize: str) -> None:
    if q.dtype not in config.ARITHMETIC or k.dtype != q.dtype or v.dtype != q.dtype:
        raise KernelUnavailableError(
            "impl='triton' needs q, k and v in one of bfloat16, float16, float32; "
            f"got {q.dtype}, {k.dtype}, {v.dtype}: cast them, or use impl='chunked'"
        )
    if not key_blocks.key_width_fits(q.shape[3], p, normalize):
        raise KernelUnavailableError(
            f"impl='triton' needs a key width of at most {key_blocks.WIDEST}, but for p=1 with normalize='none'; "
            f"got {q.shape[3]}: use impl='chunked'"
        )


def _by_value_blocks(
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, p: int, scale: float, normalize: str, eps: float,
    initial_state: PowerState | None, chunk: int | None, keep_state: bool,
) -> tuple[Tensor, PowerState | None]:  # fmt: skip
    """Wide values in blocks: outputs and states are separate in the value channels."""
    outputs, states = [], []
    for first in range(0, v.shape[3], MAX_VALUE_WIDTH):
        part = slice(first, first + MAX_VALUE_WIDTH)
        start = None if initial_state is None else PowerState(initial_state.s[..., part], initial_state.z)
        y, state = power_attention_triton(
            q, k, v[..., part], log_g, p, scale, normalize, eps, start, chunk, keep_state
        )  # fmt: skip
        outputs.append(y)
        states.append(state)
    kept = [state for state in states if state is not None]
    y = torch.cat(outputs, dim=3)
    return y, PowerState(torch.cat([state.s for state in kept], dim=3), kept[0].z) if kept else None


def make_problem(
    q: Tensor, k: Tensor, v: Tensor, p: int, scale: float, normalize: bool, eps: float, chunk: int, edge: bool
) -> Problem:
    """The sizes of a call; `edge` says that a state enters, or that the last one has a gradient."""
    n, t, heads, width = q.shape
    layout = tile_layout(width, p)
    return Problem(
        layout, n, t, heads, k.shape[2], v.shape[3], scale, normalize, eps, chunk, q.dtype, edge or chunk < t
    )


def _low_rows(problem: Problem, gated: bool, differentiable: bool) -> int:
    """How many rows the backward pass needs with more bits of y than its type holds: see `triton_facts`.

    With gates, any row may have few keys; without, the first ones.
    """
    if not differentiable or not problem.normalize or problem.layout.linear or problem.dtype == torch.float32:
        return 0
    return problem.t if gated else min(problem.t, FEW_KEYS)


def _pack(problem: Problem, s: Tensor | None, z: Tensor | None) -> Tensor | None:
    """A state in the symmetric basis -> [N*G, elements] float32 as the kernels keep it."""
    if s is None:
        return None
    parts = [to_tiles(problem.layout, s.float()).flatten(2)]
    if problem.normalize and z is not None:
        parts.append(to_normaliser(problem.layout, z.float()))
    parts.append(s.new_zeros(*s.shape[:2], problem.elements - problem.used, dtype=torch.float32))
    return torch.cat(parts, dim=2).flatten(0, 1)


def _unpack(problem: Problem, packed: Tensor) -> tuple[Tensor, Tensor]:
    """[N*G, elements] -> s [N, G, D, V] and z [N, G, D] (empty without a normaliser)."""
    layout = problem.layout
    packed = packed.view(problem.n, problem.groups, -1)
    tiles = packed[..., : problem.expanded].unflatten(2, (layout.expanded, problem.v))
    # A copy even where the layouts agree: what an operator returns must not be a view of its scratch memory.
    s = from_tiles(layout, tiles).clone(memory_format=torch.contiguous_format)
    if not problem.normalize:
        return s, packed.new_empty(0)
    z = from_normaliser(layout, packed[..., problem.expanded : problem.used])
    return s, z.clone(memory_format=torch.contiguous_format)


@torch.library.custom_op("icl_bench::power_forward", mutates_args=())
def power_forward(
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, s: Tensor | None, z: Tensor | None,
    p: int, scale: float, normalize: bool, eps: float, chunk: int, keep_state: bool, differentiable: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """y, what 16 bits lose of it, sums of weights and of gates, states before each chunk, last s and z; or empty."""
    problem = make_problem(q, k, v, p, scale, normalize, eps, chunk, s is not None)
    gates, decay = (None, None) if log_g is None else launch.cumulative_gates(log_g, chunk)
    start = _pack(problem, s, z)
    states, final = None, None
    if problem.chunks > 1 or keep_state:
        u, w = launch.factors(problem, k)
        factors = None if decay is None else TokenFactors(decay, decay)
        states, final, _ = chunk_states(
            problem, u, w, v, factors, gates, start, reverse=False, want_final=keep_state
        )  # fmt: skip
        if problem.chunks == 1 and start is None:
            states = None
    elif start is not None:
        states = start.to(config.state_type(problem.arithmetic))[:, None].contiguous()
    low_rows = _low_rows(problem, log_g is not None, differentiable)
    y, y_low, den = launch.attend(problem, q, k, v, gates, states, start is not None, low_rows)
    empty = q.new_empty(0, dtype=torch.float32)
    last = (empty, empty.clone()) if final is None else _unpack(problem, final)
    sums = empty.clone() if gates is None else gates
    return y, y_low, den, sums, q.new_empty(0) if states is None else states, *last


@power_forward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, s: Tensor | None, z: Tensor | None,
    p: int, scale: float, normalize: bool, eps: float, chunk: int, keep_state: bool, differentiable: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    n, t, heads, width = q.shape
    groups, value_width = v.shape[2], v.shape[3]
    problem = make_problem(q, k, v, p, scale, normalize, eps, chunk, s is not None)
    y = v.new_empty(n, t, heads, value_width)
    den = q.new_empty(n, heads, t, dtype=torch.float32)
    states, last_s, last_z = q.new_empty(0), den.new_empty(0), den.new_empty(0)
    if problem.chunks > 1 or s is not None:
        states = q.new_empty(n * groups, problem.chunks, problem.elements, dtype=config.state_type(problem.arithmetic))
    if keep_state:
        rows = expanded_width(width, p)
        last_s = den.new_empty(n, groups, rows, value_width)
        last_z = den.new_empty(n, groups, rows) if normalize else den.new_empty(0)
    y_low = v.new_empty(n, _low_rows(problem, log_g is not None, differentiable), heads, value_width)
    gates = den.new_empty(0) if log_g is None else den.new_empty(n, groups, t)
    return y, y_low, den, gates, states, last_s, last_z


@torch.library.custom_op("icl_bench::power_backward", mutates_args=())
def power_backward(
    dy: Tensor, ds: Tensor | None, dz: Tensor | None,
    q: Tensor, k: Tensor, v: Tensor, y: Tensor, y_low: Tensor, den: Tensor, gates: Tensor | None,
    states: Tensor, initial: bool,
    p: int, scale: float, normalize: bool, eps: float, chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """dq, dk, dv, d log_g (empty without gates), and the gradients of the initial s and z (empty without them)."""
    problem = make_problem(q, k, v, p, scale, normalize, eps, chunk, initial or ds is not None)
    # The kernels carry state gradients without the factor scale^p that reading a state has.
    read_factor = scale**p
    end = _pack(problem, ds, dz)
    end = None if end is None else end / read_factor
    read = states if states.numel() else None
    facts, after, first, dots = None, None, None, None
    if problem.chunks > 1 or initial or end is not None:
        statistics = launch.row_statistics(problem, y, y_low, dy, den, gates)
        facts = statistics.facts
        u, w = launch.factors(problem, q)
        after, first, dots = chunk_states(
            problem, u, w, dy, statistics.factors, gates, end, reverse=True, want_final=initial,
            prefix=None if gates is None else read,
        )  # fmt: skip
    dq, row_sums, facts = launch.query_gradient(problem, q, k, v, y, y_low, dy, den, facts, gates, read, initial)
    dk, dv, column_sums = launch.key_gradient(problem, q, k, v, dy, facts, gates, after, end is not None)
    if p > 2 and read is not None:
        dq = launch.add_factor_gradients(problem, q, dq, row_sums, dy, facts, gates, read, initial)
    if p > 2 and after is not None:
        dk = launch.add_factor_gradients(problem, k, dk, column_sums, v, None, gates, after, end is not None)
    empty = den.new_empty(0)
    dg = empty
    if row_sums is not None and column_sums is not None:
        dg = launch.gate_gradient(problem, row_sums, column_sums, dots)
    start = (empty.clone(), empty.clone()) if first is None else _unpack(problem, first * read_factor)
    return dq, dk, dv, dg, *start


@power_backward.register_fake
def _(
    dy: Tensor, ds: Tensor | None, dz: Tensor | None,
    q: Tensor, k: Tensor, v: Tensor, y: Tensor, y_low: Tensor, den: Tensor, gates: Tensor | None,
    states: Tensor, initial: bool,
    p: int, scale: float, normalize: bool, eps: float, chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    n, _, _, width = q.shape
    groups, rows = k.shape[2], expanded_width(width, p)
    dg = den.new_empty(0) if gates is None else den.new_empty(n, q.shape[1], groups)
    ds0 = den.new_empty(n, groups, rows, v.shape[3]) if initial else den.new_empty(0)
    dz0 = den.new_empty(n, groups, rows) if initial and normalize else den.new_empty(0)
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), dg, ds0, dz0


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, log_g, s, z, *options, keep_state, _ = inputs
    ctx.save_for_backward(q, k, v, *output[:5])
    ctx.initial, ctx.normaliser, ctx.keep_state, ctx.options = s is not None, z is not None, keep_state, options
    ctx.gate_type = None if log_g is None else log_g.dtype


def _differentiate(
    ctx: Any,
    dy: Tensor,
    _low: Tensor,
    _den: Tensor,
    _gates: Tensor,
    _states: Tensor,
    ds: Tensor | None,
    dz: Tensor | None,
) -> tuple[Tensor | None, ...]:
    p, scale, normalize, eps, chunk = ctx.options
    if not ctx.keep_state:
        ds, dz = None, None
    dy = dy if dy.stride(3) == 1 else dy.contiguous()
    q, k, v, y, y_low, den, gates, states = ctx.saved_tensors
    dq, dk, dv, dg, ds0, dz0 = power_backward(
        dy, ds, dz if normalize else None, q, k, v, y, y_low, den, None if ctx.gate_type is None else gates, states,
        ctx.initial, p, scale, normalize, eps, chunk,
    )  # fmt: skip
    dg = None if ctx.gate_type is None else dg.to(ctx.gate_type)
    return (
        dq, dk, dv, dg, ds0 if ctx.initial else None, dz0 if ctx.normaliser else None,
        None, None, None, None, None, None, None,
    )  # fmt: skip


torch.library.register_autograd("icl_bench::power_forward", _differentiate, setup_context=_save)
