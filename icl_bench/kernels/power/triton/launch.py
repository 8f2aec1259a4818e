"""Launches of the kernels of power attention on plain tensors; the caller makes the device of the tensors current."""

from typing import NamedTuple

import torch
from torch import Tensor

from icl_bench.kernels.power.expansion import expand
from icl_bench.kernels.power.records import repeat_heads
from icl_bench.kernels.power.triton import table
from icl_bench.kernels.power.triton.forward import power_forward_kernel
from icl_bench.kernels.power.triton.key_gradient import power_key_gradient_kernel
from icl_bench.kernels.power.triton.lower import power_unit_keys_kernel
from icl_bench.kernels.power.triton.problem import (
    LowerTerms,
    PowerProblem,
    TokenWeights,
    has_token_rows,
    kernel_constants,
    sum_constants,
)
from icl_bench.kernels.power.triton.query_gradient import power_query_gradient_kernel
from icl_bench.kernels.power.triton.state import (
    power_linear_sums_kernel,
    power_scan_kernel,
    power_tiled_sums_kernel,
)
from icl_bench.kernels.power.triton.state_gradient import expansion_gradient, power_factor_gradient_kernel
from icl_bench.kernels.power.triton.tokens import (
    power_gate_gradient_kernel,
    power_gate_sums_kernel,
    power_query_stats_kernel,
)
from icl_bench.kernels.triton.common import View, padded, view_of


class ChunkStates(NamedTuple):
    """States of all chunks, and the final state and products that come with them."""

    before: Tensor
    """[N*G, C, elements]: before each chunk, or after it where made in reverse."""
    final: Tensor | None
    """[N*G, elements] float32, after the last chunk in order."""
    dots: Tensor | None
    """[N*G, C]: with gates, products of `prefix` with these states, decayed over the chunk."""


class QueryStatistics(NamedTuple):
    """Numbers of each query that the backward pass needs, float32."""

    stats: Tensor
    """[N, H, T, 4]: 1 / (den + eps), dy.y, the sum of log gates (if any), and padding."""
    weights: TokenWeights
    """Weights of each query in the gradient of the state that it reads."""
    values: Tensor
    """Output gradients [N, T, H, V] that go with these weights."""


class UnitKeys(NamedTuple):
    """Keys of length 1, and what goes with them."""

    unit: Tensor
    """k / |k|."""
    scaled: Tensor
    """|k|^p v."""
    lengths: Tensor
    """|k|, float32 [N, J, T]."""


def cumulative_gates(log_g: Tensor, chunk: int, kind: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """[N, T, G] log gates -> [N, G, T] sums from the start of each chunk, in units of log 2, and decays of a type."""
    n, t, groups = log_g.shape
    out = torch.empty(n, groups, t, device=log_g.device)
    decay = torch.empty_like(out, dtype=kind)
    power_gate_sums_kernel[(-(-t // chunk) * n * groups,)](
        View(log_g, *log_g.stride()), out, decay, t, chunk, groups, BLOCK=padded(chunk, 16, table.GATE_BLOCK)
    )
    return out, decay


def unit_keys(problem: PowerProblem, k: Tensor, v: Tensor) -> UnitKeys:
    """Return keys of length 1 and what goes with them; tensors in float16, whose range is small, in float32."""
    n, t, heads, width = k.shape
    groups, rows = problem.groups, table.STATISTICS_ROWS
    kind = torch.float32 if k.dtype == torch.float16 else k.dtype
    unit, scaled = (torch.empty(x.shape, device=x.device, dtype=kind) for x in (k, v))
    lengths = torch.empty(n, heads, t, device=k.device)
    power_unit_keys_kernel[(-(-t // rows) * n * groups,)](
        *map(view_of, (k, v, unit, scaled)), lengths, t, groups, P=problem.layout.p, SHARE=groups // heads, K=width,
        V=problem.v, K_BLOCK=padded(width, 16), V_BLOCK=padded(problem.v, 16), BLOCK=rows, num_warps=4,
    )  # fmt: skip
    return UnitKeys(unit, scaled, lengths)


def factor_vectors(problem: PowerProblem, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the factor vectors u and w of keys or queries; for p <= 2 both are the vector itself."""
    layout = problem.layout
    if layout.p <= 2:
        return x, x
    kind = torch.float32 if x.dtype == torch.bfloat16 and problem.arithmetic == "tf32" else x.dtype
    u = expand(x.float(), layout.left).to(kind)
    return u, u if layout.symmetric else expand(x.float(), layout.p - layout.left).to(kind)


def chunk_states(
    problem: PowerProblem, u: Tensor, w: Tensor, x: Tensor, weights: TokenWeights | None, gates: Tensor | None,
    initial: Tensor | None, *, reverse: bool, want_final: bool, prefix: Tensor | None = None,
) -> ChunkStates:  # fmt: skip
    """Return the states before the chunks, of keys with values x; or after them, of queries with output gradients x.

    The expanded rows have left factors u [N, T, H, U] and right factors w [N, T, H, W]; x is [N, T, H, V]; `weights`
    are those of tokens, None for 1; `gates` are sums of log gates [N, G, T]. The state `initial` that enters,
    [N*G, elements] float32, is zero for None. `reverse` goes from the last chunk to the first, and `want_final` makes
    the state after all chunks too. `prefix` is, with gates, the states before each chunk, whose products with their
    gradients are wanted.
    """
    kind = table.state_type(problem.arithmetic)
    sums = torch.empty(problem.n * problem.groups, problem.chunks, problem.elements, device=x.device, dtype=kind)
    if initial is None and not want_final and walks(problem, u, x):
        from icl_bench.kernels.power.triton.walk import walk_states  # Gluon, a tenth of a second

        return ChunkStates(sums, None, walk_states(problem, u, x, weights, gates, sums, prefix, reverse=reverse))
    # The last chunk in order counts for the final state alone.
    summed = problem.chunks if want_final else problem.chunks - 1
    if summed > 0:
        _sum_chunks(problem, sums, problem.chunks - summed if reverse else 0, summed, u, w, x, weights)
    return _scan(problem, sums, gates, initial, reverse, want_final, prefix)


def walks(problem: PowerProblem, u: Tensor, x: Tensor) -> bool:
    """Return whether one walk over the sequences makes the states; its loads need addresses of 16 bytes."""
    return can_walk(problem, u, x) and u.data_ptr() % 16 == 0 and x.data_ptr() % 16 == 0


def can_walk(problem: PowerProblem, u: Tensor, x: Tensor) -> bool:
    """Return whether `walks` is true but for addresses: on Hopper, where the programs of a walk fill the device."""
    programs = problem.walk_programs * problem.n * problem.groups
    if programs == 0 or not (problem.walkable and x.is_cuda):
        return False
    device = torch.cuda.get_device_properties(x.device)  # the one query of a device that torch.compile knows
    if (device.major, device.minor) != (9, 0):
        return False
    filled = programs / (-(-programs // device.multi_processor_count) * device.multi_processor_count)
    return filled >= table.LEAST_FILLED and u.shape == x.shape and has_token_rows(u) and has_token_rows(x)


def _sum_chunks(
    problem: PowerProblem, out: Tensor, first: int, summed: int, u: Tensor, w: Tensor, x: Tensor,
    weights: TokenWeights | None,
) -> None:  # fmt: skip
    """Write the sums of `summed` chunks from the first on into states."""
    layout, blocks = problem.layout, problem.blocks("chunk_sums", tiled=True)
    values = weights is not None and weights.value is not None
    constants = sum_constants(problem, x.shape[3], x.shape[2], u.shape[2], weights is not None, values)
    grid = (constants.BLOCKS * summed * problem.n * problem.groups,)
    tensors = (view_of(x), *(x if w is None else w for w in weights or (None, None)), out)
    sizes = (problem.t, problem.chunk, problem.groups, first, summed, problem.elements)
    if layout.linear:
        power_linear_sums_kernel[grid](view_of(u), *tensors, *sizes, C=constants, num_warps=blocks.warps)
    else:
        power_tiled_sums_kernel[grid](
            view_of(u), view_of(w), *tensors, *sizes, problem.expanded, C=constants, num_warps=blocks.warps
        )


def _scan(
    problem: PowerProblem, sums: Tensor, gates: Tensor | None, initial: Tensor | None, reverse: bool, want_final: bool,
    prefix: Tensor | None,
) -> ChunkStates:  # fmt: skip
    """Turn sums of chunks into states, in place; the sums of the last chunk in order matter with want_final alone."""
    row, chunks, elements = sums.shape
    final = torch.empty(row, elements, device=sums.device) if want_final else None
    blocks = -(-problem.used // table.SCAN_BLOCK)
    dots = None if prefix is None else torch.empty(row, blocks, chunks, device=sums.device)
    power_scan_kernel[(blocks * row,)](
        sums, *(sums if y is None else y for y in (gates, initial, final, prefix, dots)),
        problem.t, problem.chunk, chunks, elements, problem.used, problem.expanded, 256 * problem.v,
        GATED=gates is not None, INITIAL=initial is not None, FINAL=want_final, REVERSE=reverse,
        DOTS=prefix is not None, TRIANGLE=problem.layout.symmetric,
        BLOCK=table.SCAN_BLOCK, STAGES=table.SCAN_STAGES, num_warps=4,
    )  # fmt: skip
    return ChunkStates(sums, final, None if dots is None else dots.sum(1))


def power_outputs(
    problem: PowerProblem, q: Tensor, k: Tensor, v: Tensor, gates: Tensor | None, states: Tensor | None, initial: bool,
    low_rows: int, lower: LowerTerms | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return y [N, T, H, V], the bits that its type loses of its first `low_rows` rows, and weight sums [N, H, T]."""
    u, w = factor_vectors(problem, q) if states is not None else (q, q)
    y = torch.empty(problem.n, problem.t, problem.heads, problem.v, device=q.device, dtype=v.dtype)
    y_low = torch.empty(problem.n, low_rows, problem.heads, problem.v, device=q.device, dtype=v.dtype)
    den = torch.empty(problem.n, problem.heads, problem.t, device=q.device)
    gated, stateful = gates is not None, states is not None
    blocks = problem.blocks("forward", tiled=stateful, gated=gated)
    weights, share = (view_of(q), 1) if lower is None else lower.arguments(problem.n)
    others = (q, q, q, q) if lower is None else lower[1:]
    power_forward_kernel[(-(-problem.t // blocks.m) * problem.n * problem.heads,)](
        *map(view_of, (q, k, v, u, w)), weights, *others, q if gates is None else gates,
        problem.state_view(q if states is None else states), view_of(y), y_low, den,
        problem.t, problem.chunk, problem.chunks, problem.heads, problem.repeat, low_rows, share,
        problem.scale_in, problem.state_factor, problem.scale_out, problem.eps, LOW=low_rows > 0,
        C=kernel_constants(problem, blocks, gated, stateful, initial), num_warps=blocks.warps, maxnreg=blocks.registers,
    )  # fmt: skip
    return y, y_low, den


def query_statistics(
    problem: PowerProblem, y: Tensor, y_low: Tensor, dy: Tensor, den: Tensor, gates: Tensor | None
) -> QueryStatistics:
    """Return the statistics and weights of all queries, before the gradient of the state is summed."""
    stats, sum_weight, rows = den.new_empty(*den.shape, 4), torch.empty_like(den), table.STATISTICS_ROWS
    weighted = problem.weighted_values
    value_weight = None if weighted else torch.empty_like(den)
    values = torch.empty_like(dy, memory_format=torch.contiguous_format) if weighted else dy
    power_query_stats_kernel[(-(-problem.t // rows) * problem.n * problem.heads,)](
        view_of(y), view_of(dy), y_low, den, den if gates is None else gates, stats,
        den if value_weight is None else value_weight, sum_weight, values,
        problem.t, problem.heads, problem.repeat, y_low.shape[1], problem.eps,
        V=problem.v, V_BLOCK=padded(problem.v, 16, 128), BLOCK=rows, SUM=problem.normalize,
        LOW=y_low.numel() > 0, GATED=gates is not None, WEIGHTED=weighted,
    )  # fmt: skip
    return QueryStatistics(stats, TokenWeights(value_weight, sum_weight), values)


def query_rows(problem: PowerProblem, tiled: bool, gated: bool) -> int:
    """Return the rows of the gradient of weights of lower degrees: tokens, or blocks of them."""
    blocks = problem.blocks("query_gradient", tiled=tiled, gated=gated)
    return problem.t if problem.by_token else -(-problem.t // blocks.m)


def query_gradient(
    problem: PowerProblem, q: Tensor, k: Tensor, v: Tensor, y: Tensor, y_low: Tensor, dy: Tensor, den: Tensor,
    stats: Tensor | None, gates: Tensor | None, states: Tensor | None, initial: bool, lower: LowerTerms | None = None,
    d_weights: Tensor | None = None, dq: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor]:  # fmt: skip
    """Return dq, with gates R [2, N, H, T] (state, chunk), and the query statistics, made here where there are none.

    With `lower`, the gradients of its weights are written to `d_weights` [N, rows, H, TERMS] in float32, for each token
    or as the sum of each block of rows (`query_rows`).
    dq is [N, T, H, K] for the H heads of the output, in float32 where these share queries.
    """
    make_stats, gated = stats is None, gates is not None
    stats = den.new_empty(*den.shape, 4) if stats is None else stats
    dq = empty_gradient(q, problem.heads) if dq is None else dq
    row_sums = None if gates is None else torch.empty(2, *den.shape, device=q.device)
    blocks = problem.blocks("query_gradient", tiled=states is not None, gated=gated)
    state = states is not None and problem.layout.p <= 2
    weights, share = (view_of(q), 1) if lower is None else lower.arguments(problem.n)
    norms, reach = (q, q) if lower is None else (lower.norms, lower.sums)
    power_query_gradient_kernel[(-(-problem.t // blocks.m) * problem.n * problem.heads,)](
        *map(view_of, (q, k, v)), weights, norms, reach, view_of(y), y_low, view_of(dy), den, stats,
        q if gates is None else gates, problem.state_view(q if states is None else states), view_of(dq),
        dq if row_sums is None else row_sums, dq if d_weights is None else d_weights,
        problem.t, problem.chunk, problem.chunks, problem.heads, problem.repeat, y_low.shape[1], share,
        problem.scale_in, problem.scale_out, problem.eps, MAKE_STATS=make_stats, LOW=y_low.numel() > 0,
        C=kernel_constants(problem, blocks, gated, state, initial), num_warps=blocks.warps, maxnreg=blocks.registers,
    )  # fmt: skip
    return dq, row_sums, stats


def key_gradient(
    problem: PowerProblem, q: Tensor, k: Tensor, v: Tensor, dy: Tensor, stats: Tensor, gates: Tensor | None,
    states: Tensor | None, final: bool, lower: LowerTerms | None = None, dk: Tensor | None = None,
    dv: Tensor | None = None, ready: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Return dk, dv and, with gates, C [2, N, G, T]; `states` are the gradients of the states after each chunk.

    dk is [N, T, G, K] for the G heads of the values, in float32 where these share keys. Both are written where they
    are given. `ready` are the `values` of `query_statistics`, where they have weights.
    """
    u, w = factor_vectors(problem, k) if states is not None else (k, k)
    dk = empty_gradient(k, problem.groups) if dk is None else dk
    dv = torch.empty_like(v, memory_format=torch.contiguous_format) if dv is None else dv
    column_sums = None if gates is None else torch.empty(2, *gates.shape, device=q.device)
    gated, stateful, contract = gates is not None, states is not None, problem.layout.p <= 2
    form = problem.form("key_gradient", tiled=stateful)
    split = contract and table.splits_keys(form, problem.arithmetic, problem.width)
    norms, _, sums, traces = (q, q, q, q) if lower is None else lower[1:]
    for of_keys, of_values in ((False, True), (True, False)) if split else ((True, True),):
        blocks = problem.blocks("key_gradient" if of_keys else "value_gradient", tiled=stateful, gated=gated)
        power_key_gradient_kernel[(-(-problem.t // blocks.n) * problem.n * problem.groups,)](
            *map(view_of, (q, k, v, u, w)), norms,
            *map(view_of, (dy, dy if ready is None else ready)), stats, sums, traces, q if gates is None else gates,
            problem.state_view(q if states is None else states), view_of(dk), view_of(dv),
            dk if column_sums is None else column_sums, problem.t, problem.chunk, problem.chunks, problem.groups,
            problem.scale_in, problem.state_factor, problem.scale_out,
            REPEAT=problem.repeat, CONTRACT=contract, OF_KEYS=of_keys, OF_VALUES=of_values,
            C=kernel_constants(problem, blocks, gated, stateful, final, ready is not None), num_warps=blocks.warps,
            maxnreg=blocks.registers,
        )  # fmt: skip
    return dk, dv, column_sums


def gate_gradient(problem: PowerProblem, row_sums: Tensor, column_sums: Tensor, dots: Tensor | None) -> Tensor:
    """d log_g [N, T, G] from R [2, N, H, T], C [2, N, G, T] and products of states with their gradients [N*G, C]."""
    out = torch.empty(problem.n, problem.t, problem.groups, device=row_sums.device)
    power_gate_gradient_kernel[(problem.chunks * problem.n * problem.groups,)](
        row_sums, column_sums, dots if dots is not None else out, out,
        problem.t, problem.chunk, problem.groups, problem.repeat, problem.scale**problem.layout.p,
        DOTS=dots is not None, BLOCK=padded(problem.chunk, 16, table.GATE_BLOCK),
    )  # fmt: skip
    return out


def add_factor_gradients(
    problem: PowerProblem, x: Tensor, dx: Tensor, sums: Tensor | None, values: Tensor, stats: Tensor | None,
    gates: Tensor | None, states: Tensor, edge: bool,
) -> Tensor:  # fmt: skip
    """Add the state's part for p >= 3 to dx, and fill the state's R or C; x is the query or the key."""
    layout = problem.layout
    u, w = factor_vectors(problem, x)
    x = repeat_heads(x, dx.shape[2])
    if layout.symmetric:
        both = _factor_gradient(problem, u, values, stats, gates, states, edge, "both")
        added = expansion_gradient(x, both, layout.left)
    else:
        left = _factor_gradient(problem, w, values, stats, gates, states, edge, "left")
        right = _factor_gradient(problem, u, values, stats, gates, states, edge, "right")
        added = expansion_gradient(x, left, layout.left) + expansion_gradient(x, right, layout.p - layout.left)
    if sums is not None:
        # The state's part is homogeneous of degree p in x, so that x.dx is p times its sum of dA A.
        sums[0].copy_((added * x).sum(3).transpose(1, 2) / layout.p)
    return (dx.float() + added).to(dx.dtype)


def add_shared_heads(dx: Tensor, x: Tensor) -> Tensor:
    """Add the gradients [N, T, H, K] of the heads that share one of x [N, T, J, K], in order; dx itself where H = J."""
    return dx if dx.shape == x.shape else dx.unflatten(2, (x.shape[2], -1)).sum(3).to(x.dtype)


def empty_gradient(x: Tensor, heads: int) -> Tensor:
    """Return memory for the gradient of x for each of `heads` heads, in float32 where they share heads of x."""
    n, t, own, width = x.shape
    return torch.empty(n, t, heads, width, device=x.device, dtype=x.dtype if heads == own else torch.float32)


def _factor_gradient(
    problem: PowerProblem, y: Tensor, values: Tensor, stats: Tensor | None, gates: Tensor | None,
    states: Tensor, edge: bool, side: str,
) -> Tensor:  # fmt: skip
    layout = problem.layout
    n, t, heads, _ = values.shape
    width = layout.w if side == "right" else layout.u
    out = torch.empty(n, heads, t, width, device=y.device)
    block, columns = table.FACTOR_ROWS, padded(width, 16, 64)
    power_factor_gradient_kernel[(-(-t // block) * n * heads, -(-width // columns))](
        view_of(y), view_of(values), out if stats is None else stats, out if gates is None else gates,
        problem.state_view(states), out,
        t, problem.chunk, problem.chunks, heads, heads // problem.groups, problem.scale**layout.p,
        U=layout.u, W=layout.w, V=problem.v, V_BLOCK=padded(problem.v, 16), SIDE=side,
        OF_KEYS=stats is None, EDGE=edge, GATED=gates is not None, SUM=problem.normalize,
        BLOCK=block, COLUMNS=columns, DEPTH=problem.blocks("query_gradient", tiled=True).depth,
        DOT=table.dot_type(problem.arithmetic), PRECISION=table.precision(problem.arithmetic),
        SHARE=heads // y.shape[2], num_warps=4,
    )  # fmt: skip
    return out.transpose(1, 2)
