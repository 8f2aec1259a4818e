"""Power attention in Triton: the entry point, and the custom operators behind it.

Forward: sums of each chunk and their scan (`state`), or both in one kernel (`walk`, on Hopper), then one kernel that
reads the state and adds the causal scores of the own chunk (`forward`). Backward: the same state kernels on queries and
output gradients, backwards in time, then one kernel for dq (`query_gradient`) and one or two for dk and dv
(`key_gradient`). One chunk that covers the sequence is the quadratic form. Expanded keys and queries exist in registers
only (for p >= 3 their factors of about half the degree are in memory). No kernel adds atomically: results repeat bit
for bit.
"""

from typing import Any

import torch
from torch import Tensor

from icl_bench.errors import KernelUnavailableError
from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.columns import gradient_memory
from icl_bench.kernels.operators import operator, runs_at_once
from icl_bench.kernels.power import key_blocks
from icl_bench.kernels.power.expansion import expanded_width
from icl_bench.kernels.power.records import PowerInputs, PowerOptions, PowerState
from icl_bench.kernels.power.triton import launch as launch
from icl_bench.kernels.power.triton import table
from icl_bench.kernels.power.triton.layout import from_normaliser, from_tiles, tile_layout, to_normaliser, to_tiles
from icl_bench.kernels.power.triton.problem import PowerProblem, TokenWeights, make_problem
from icl_bench.kernels.triton.common import padded

MAX_VALUE_WIDTH = 128
"""Value channels of the widest values that are not cut into blocks."""

STATE_TOKENS = {16: 700, 32: 1100, 64: 400, 128: 300}
"""Tokens beyond twice the rows of the state at which both forms cost the same, by the padded width of keys."""

WALKED_KEYS, WALK_TOKENS, WALK_CHUNK = 64, -200, 512
"""Width of keys with p = 2 for which the same, and the chunk, are others where states are made in one walk."""

LINEAR_TOKENS = {16: 530, 32: 585, 64: 690, 128: 1175}
"""The same for p = 1; the first is an estimate."""

FEW_KEYS = 64
"""Rows with at least as many keys are as exact with y in 16 bits."""

MAX_EXPANDED = 150_000
"""Rows of the widest state that is used; beyond them the quadratic form serves every length."""


def power_attention_triton(
    inputs: PowerInputs, options: PowerOptions, keep_state: bool = True
) -> tuple[Tensor, PowerState | None]:
    """Return y and the state of power attention on CUDA, or in Triton's interpreter.

    Keys are up to 128 wide, or of any width with p = 1 and without a normaliser. Chunks are rounded up to whole blocks.
    Raise KernelUnavailableError for another type or key width.
    """
    q, k, v, log_g, state = inputs
    _check_support(inputs, options)
    if q.shape[3] > key_blocks.WIDEST_KEY:
        y, state = power_attention_triton(key_blocks.split_keys(inputs.with_own_heads()), options, keep_state)
        return key_blocks.join_keys(y, state, v.shape[2], k.shape[3])
    if v.shape[3] > MAX_VALUE_WIDTH:
        return _by_value_blocks(inputs, options, keep_state)
    s, z = (None, None) if state is None else state
    q, k, v = (x if x.stride(3) == 1 else x.contiguous() for x in (q, k, v))
    chunk = whole_chunk(PowerInputs(q, k, v, log_g, state), options, keep_state)
    differentiable = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (q, k, v, log_g, s, z))
    normalize = options.normalize == "sum"
    y, _, _, _, _, s, z = power_forward(
        q, k, v, log_g, s, z, options.p, options.scale, normalize, options.eps, chunk, keep_state, differentiable,
    )  # fmt: skip
    return y, PowerState(s, z if normalize else None) if keep_state else None


def measured_chunk(t: int, key_width: int, p: int, *, walked: bool = False) -> int:
    """Return the chunk for a sequence of length t: t itself (the quadratic form) where that is cheaper, as measured.

    By their operations the forms would cost the same at twice the rows of the state, for values as wide as keys. On an
    H100, forward and backward in bfloat16, they do at 18.7, 5.5, 2.65 and 1.2 thousand tokens for p = 2 and widths of
    128, 64, 32 and 16, and at 1,430, 820 and 650 for p = 1 and widths of 128, 64 and 32; on an H200, where states are
    `walked` (p = 2 and a width of 64 alone), at 4.9 thousand.
    """
    rows = tile_layout(key_width, p).expanded
    kept = WALK_TOKENS if walked else (LINEAR_TOKENS if p == 1 else STATE_TOKENS)[padded(key_width, 16, 128)]
    if t <= 2 * rows + kept or rows > MAX_EXPANDED:
        return t
    if walked:
        return WALK_CHUNK
    chunk = 256
    while chunk < 2048 and chunk * chunk < 250 * rows:
        chunk *= 2
    return chunk


def whole_chunk(inputs: PowerInputs, options: PowerOptions, keep_state: bool) -> int:
    """Return the chunk of a call, rounded up to whole blocks of rows, and at most the sequence."""
    q, chunk = inputs.q, options.chunk
    if chunk is None:
        walked = _walks(inputs, options, keep_state)
        chunk = measured_chunk(q.shape[1], q.shape[3], options.p, walked=walked)
    unit = table.CHUNK_UNITS[q.dtype]
    return min(-(-chunk // unit) * unit, q.shape[1])


def _walks(inputs: PowerInputs, options: PowerOptions, keep_state: bool) -> bool:
    """Return whether the states of a call in chunks of WALK_CHUNK, the chunk that was measured, are made in one walk.

    Addresses, which traced tensors do not have, are taken to be even.
    """
    q, k, v = inputs[:3]
    if options.p != 2 or q.shape[3] != WALKED_KEYS or keep_state or inputs.state is not None:
        return False
    if measured_chunk(q.shape[1], WALKED_KEYS, 2, walked=True) == q.shape[1]:
        return False  # one chunk in any case, as in short fleets
    normalize = options.normalize == "sum"
    problem = make_problem(q, k, v, 2, options.scale, normalize, options.eps, WALK_CHUNK, False)
    return launch.can_walk(problem, k, v)


def _check_support(inputs: PowerInputs, options: PowerOptions) -> None:
    q, k, v = inputs[:3]
    if q.dtype not in table.ARITHMETIC or k.dtype != q.dtype or v.dtype != q.dtype:
        raise KernelUnavailableError(
            "impl='triton' needs q, k and v in one of bfloat16, float16, float32; "
            f"got {q.dtype}, {k.dtype}, {v.dtype}: cast them, or use impl='chunked'"
        )
    if not key_blocks.key_width_fits(q.shape[3], options):
        raise KernelUnavailableError(
            f"impl='triton' needs a key width of at most {key_blocks.WIDEST_KEY}, but for p=1 with normalize='none'; "
            f"got {q.shape[3]}: use impl='chunked'"
        )


def _by_value_blocks(inputs: PowerInputs, options: PowerOptions, keep_state: bool) -> tuple[Tensor, PowerState | None]:
    """Cut wide values into blocks: outputs and states are separate in the value channels."""
    outputs, states = [], []
    for first in range(0, inputs.v.shape[3], MAX_VALUE_WIDTH):
        part = slice(first, first + MAX_VALUE_WIDTH)
        start = None if inputs.state is None else PowerState(inputs.state.s[..., part], inputs.state.z)
        y, state = power_attention_triton(inputs._replace(v=inputs.v[..., part], state=start), options, keep_state)
        outputs.append(y)
        states.append(state)
    kept = [state for state in states if state is not None]
    y = torch.cat(outputs, dim=3)
    return y, PowerState(torch.cat([state.s for state in kept], dim=3), kept[0].z) if kept else None


def _low_rows(problem: PowerProblem, gated: bool, differentiable: bool) -> int:
    """Return how many rows the backward pass needs with more bits of y than its type holds: see `tokens`.

    With gates, any row may have few keys; without, the first ones.
    """
    if not differentiable or not problem.normalize or problem.layout.linear or problem.dtype == torch.float32:
        return 0
    return problem.t if gated else min(problem.t, FEW_KEYS)


def _pack(problem: PowerProblem, s: Tensor | None, z: Tensor | None) -> Tensor | None:
    """Pack a state in the symmetric basis as [N*G, elements] float32, the form that kernels keep."""
    if s is None:
        return None
    parts = [to_tiles(problem.layout, s.float()).flatten(2)]
    if problem.normalize and z is not None:
        parts.append(to_normaliser(problem.layout, z.float()))
    parts.append(s.new_zeros(*s.shape[:2], problem.elements - problem.used, dtype=torch.float32))
    return torch.cat(parts, dim=2).flatten(0, 1)


def _unpack(problem: PowerProblem, packed: Tensor) -> tuple[Tensor, Tensor]:
    """Unpack [N*G, elements] to s [N, G, D, V] and z [N, G, D] (empty without a normaliser)."""
    layout = problem.layout
    packed = packed.view(problem.n, problem.groups, -1)
    tiles = packed[..., : problem.expanded].unflatten(2, (layout.expanded, problem.v))
    # A copy even where the layouts agree: what an operator returns must not be a view of its scratch memory.
    s = from_tiles(layout, tiles).clone(memory_format=torch.contiguous_format)
    if not problem.normalize:
        return s, packed.new_empty(0)
    z = from_normaliser(layout, packed[..., problem.expanded : problem.used])
    return s, z.clone(memory_format=torch.contiguous_format)


@operator("icl_bench::power_forward")
def power_forward(
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, s: Tensor | None, z: Tensor | None,
    p: int, scale: float, normalize: bool, eps: float, chunk: int, keep_state: bool, differentiable: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return y, the part of it that 16 bits lose, sums of weights and of gates, states before chunks, last s and z.

    What a call does not ask for is empty.
    """
    problem = make_problem(q, k, v, p, scale, normalize, eps, chunk, s is not None)
    with launch_on(q):
        gates, decay = None, None
        if log_g is not None:
            walked = s is None and not keep_state and launch.can_walk(problem, k, v)
            gates, decay = launch.cumulative_gates(log_g, chunk, k.dtype if walked else torch.float32)
        start = _pack(problem, s, z)
        states, final = None, None
        if problem.chunks > 1 or keep_state:
            weights = None if decay is None else TokenWeights(decay, decay)
            states, final, _ = launch.chunk_states(
                problem, *launch.factor_vectors(problem, k), v, weights, gates, start, reverse=False,
                want_final=keep_state,
            )  # fmt: skip
            if problem.chunks == 1 and start is None:
                states = None
        elif start is not None:
            states = start.to(table.state_type(problem.arithmetic))[:, None].contiguous()
        low_rows = _low_rows(problem, log_g is not None, differentiable)
        y, y_low, den = launch.power_outputs(problem, q, k, v, gates, states, start is not None, low_rows)
    empty = q.new_empty(0, dtype=torch.float32)
    last = (empty, empty.clone()) if final is None else _unpack(problem, final)
    sums = empty.clone() if gates is None else gates
    return y, y_low, den, sums, q.new_empty(0) if states is None else states, *last


@power_forward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, s: Tensor | None, z: Tensor | None,
    p: int, scale: float, normalize: bool, eps: float, chunk: int, keep_state: bool, differentiable: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    n, t, _, width = q.shape
    groups, value_width = v.shape[2], v.shape[3]
    problem = make_problem(q, k, v, p, scale, normalize, eps, chunk, s is not None)
    heads = problem.heads
    y = v.new_empty(n, t, heads, value_width)
    den = q.new_empty(n, heads, t, dtype=torch.float32)
    states, last_s, last_z = q.new_empty(0), den.new_empty(0), den.new_empty(0)
    if problem.chunks > 1 or s is not None:
        states = q.new_empty(n * groups, problem.chunks, problem.elements, dtype=table.state_type(problem.arithmetic))
    if keep_state:
        rows = expanded_width(width, p)
        last_s = den.new_empty(n, groups, rows, value_width)
        last_z = den.new_empty(n, groups, rows) if normalize else den.new_empty(0)
    y_low = v.new_empty(n, _low_rows(problem, log_g is not None, differentiable), heads, value_width)
    gates = den.new_empty(0) if log_g is None else den.new_empty(n, groups, t)
    return y, y_low, den, gates, states, last_s, last_z


@operator("icl_bench::power_backward")
def power_backward(
    dy: Tensor, ds: Tensor | None, dz: Tensor | None,
    q: Tensor, k: Tensor, v: Tensor, y: Tensor, y_low: Tensor, den: Tensor, gates: Tensor | None,
    states: Tensor, initial: bool,
    p: int, scale: float, normalize: bool, eps: float, chunk: int, joint: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return dq, dk, dv, d log_g (empty without gates), and gradients of the initial s and z (empty without them).

    With `joint`, which an operator of torch may not have, gradients of heads that lie side by side do so too.
    """
    problem = make_problem(q, k, v, p, scale, normalize, eps, chunk, initial or ds is not None)
    # The kernels carry state gradients without the factor scale^p that reading a state has.
    read_factor = scale**p
    own_heads = q.shape[2] == problem.heads and k.shape[2] == problem.groups
    memory = gradient_memory([q, k, v]) if joint and own_heads else (None, None, None)
    with launch_on(q):
        end = _pack(problem, ds, dz)
        end = None if end is None else end / read_factor
        read = states if states.numel() else None
        stats, after, first, dots, values = None, None, None, None, dy
        if problem.chunks > 1 or initial or end is not None:
            stats, weights, values = launch.query_statistics(problem, y, y_low, dy, den, gates)
            after, first, dots = launch.chunk_states(
                problem, *launch.factor_vectors(problem, q), values, weights, gates, end,
                reverse=True, want_final=initial, prefix=None if gates is None else read,
            )  # fmt: skip
        dq, row_sums, stats = launch.query_gradient(
            problem, q, k, v, y, y_low, dy, den, stats, gates, read, initial, dq=memory[0]
        )
        dk, dv, column_sums = launch.key_gradient(
            problem, q, k, v, dy, stats, gates, after, end is not None, dk=memory[1], dv=memory[2],
            ready=None if values is dy else values,
        )  # fmt: skip
        if p > 2 and read is not None:
            dq = launch.add_factor_gradients(problem, q, dq, row_sums, dy, stats, gates, read, initial)
        if p > 2 and after is not None:
            dk = launch.add_factor_gradients(problem, k, dk, column_sums, v, None, gates, after, end is not None)
        dg = den.new_empty(0)
        if row_sums is not None and column_sums is not None:
            dg = launch.gate_gradient(problem, row_sums, column_sums, dots)
    start = (den.new_empty(0), den.new_empty(0)) if first is None else _unpack(problem, first * read_factor)
    return launch.add_shared_heads(dq, q), launch.add_shared_heads(dk, k), dv, dg, *start


@power_backward.register_fake
def _(
    dy: Tensor, ds: Tensor | None, dz: Tensor | None,
    q: Tensor, k: Tensor, v: Tensor, y: Tensor, y_low: Tensor, den: Tensor, gates: Tensor | None,
    states: Tensor, initial: bool,
    p: int, scale: float, normalize: bool, eps: float, chunk: int, joint: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    n, _, _, width = q.shape
    groups, rows = v.shape[2], expanded_width(width, p)
    dg = den.new_empty(0) if gates is None else den.new_empty(n, q.shape[1], groups)
    ds0 = den.new_empty(n, groups, rows, v.shape[3]) if initial else den.new_empty(0)
    dz0 = den.new_empty(n, groups, rows) if initial and normalize else den.new_empty(0)
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), dg, ds0, dz0


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, log_g, s, z, *options, keep_state, _ = inputs
    ctx.set_materialize_grads(False)  # zeros for the states of all chunks would be written and never read
    ctx.save_for_backward(q, k, v, *output[:5])
    ctx.initial, ctx.normaliser, ctx.keep_state, ctx.options = s is not None, z is not None, keep_state, options
    ctx.gate_type = None if log_g is None else log_g.dtype


def _differentiate(ctx: Any, dy: Tensor | None, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    ds, dz = others[-2:]
    p, scale, normalize, eps, chunk = ctx.options
    q, k, v, y, y_low, den, gates, states = ctx.saved_tensors  # once: recomputation refuses a second look
    if ds is not None and dz is None and normalize:  # one of them is used alone
        dz = ds.new_zeros(ds.shape[:3])
    elif ds is None and dz is not None:
        ds = dz.new_zeros(*dz.shape, v.shape[3])
    dy = torch.zeros_like(y) if dy is None else dy if dy.stride(3) == 1 else dy.contiguous()
    dq, dk, dv, dg, ds0, dz0 = power_backward(
        dy, ds, dz if normalize else None, q, k, v, y, y_low, den, None if ctx.gate_type is None else gates, states,
        ctx.initial, p, scale, normalize, eps, chunk, runs_at_once(q) and not torch.is_grad_enabled(),
    )  # fmt: skip
    dg = None if ctx.gate_type is None else dg.to(ctx.gate_type)
    return (
        dq, dk, dv, dg, ds0 if ctx.initial else None, dz0 if ctx.normaliser else None,
        None, None, None, None, None, None, None,
    )  # fmt: skip


power_forward.register_autograd(_differentiate, setup_context=_save)
