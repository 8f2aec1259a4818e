"""Launches of the power kernels over tokens, on plain tensors; those over states are in `triton_state_launch`."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from icl_bench.kernels.power.expansion import expand
from icl_bench.kernels.power.triton import table as config
from icl_bench.kernels.power.triton.factors import expansion_gradient, factor_gradient_kernel
from icl_bench.kernels.power.triton.facts import row_statistics_kernel
from icl_bench.kernels.power.triton.forward import forward_kernel
from icl_bench.kernels.power.triton.gates import gate_gradient_kernel, gate_sums_kernel
from icl_bench.kernels.power.triton.key_gradient import key_gradient_kernel
from icl_bench.kernels.power.triton.problem import Problem, TokenFactors, strides
from icl_bench.kernels.power.triton.query_gradient import query_gradient_kernel


def cumulative_gates(log_g: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """[N, T, G] log gates -> [N, G, T] inclusive sums from the start of each chunk, in units of log 2, and decays."""
    n, t, groups = log_g.shape
    out = torch.empty(n, groups, t, device=log_g.device)
    decay = torch.empty_like(out)
    gate_sums_kernel[(-(-t // chunk) * n * groups,)](
        log_g, out, decay, *log_g.stride(), t, chunk, groups, BLOCK=config.GATE_BLOCK
    )  # fmt: skip
    return out, decay


def factors(problem: Problem, x: Tensor) -> tuple[Tensor, Tensor]:
    """The factor vectors u and w of keys or queries; for p <= 2 both are the vector itself."""
    layout = problem.layout
    if layout.p <= 2:
        return x, x
    kind = torch.float32 if x.dtype == torch.bfloat16 and problem.arithmetic == "tf32" else x.dtype
    u = expand(x.float(), layout.left).to(kind)
    return u, u if layout.symmetric else expand(x.float(), layout.p - layout.left).to(kind)


def _constants(problem: Problem, blocks: config.Blocks, gated: bool) -> dict[str, Any]:
    """What the kernels over tokens are compiled for, and how many warps run them."""
    layout = problem.layout
    return {
        "P": layout.p,
        "K": layout.key_width,
        "V": problem.v,
        "K_BLOCK": config.padded(layout.key_width),
        "V_BLOCK": config.padded(problem.v),
        "BLOCK_M": blocks.m,
        "BLOCK_N": blocks.n,
        "DEPTH": blocks.depth,
        "LINEAR": layout.linear,
        "SHORT": problem.short,
        "WHOLE": problem.whole(blocks),
        "GATED": gated,
        "SUM": problem.normalize,
        "SCALE": layout.p > 2,
        "DOT": config.dot_type(problem.arithmetic),
        "PRECISION": config.precision(problem.arithmetic),
        "STATE_STAGES": blocks.state_stages,
        "STAGES": blocks.stages,
        "num_warps": blocks.warps,
    }


def attend(
    problem: Problem, q: Tensor, k: Tensor, v: Tensor, gates: Tensor | None, states: Tensor | None, initial: bool,
    low_rows: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """y [N, T, H, V], what its type has lost of its first `low_rows` rows, and the sums of weights [N, H, T]."""
    layout = problem.layout
    u, w = factors(problem, q) if states is not None else (q, q)
    y = torch.empty(problem.n, problem.t, problem.heads, problem.v, device=q.device, dtype=v.dtype)
    y_low = torch.empty(problem.n, low_rows, problem.heads, problem.v, device=q.device, dtype=v.dtype)
    den = torch.empty(problem.n, problem.heads, problem.t, device=q.device)
    blocks = problem.blocks("forward", tiled=states is not None, gated=gates is not None)
    forward_kernel[(-(-problem.t // blocks.m) * problem.n * problem.heads,)](
        q, k, v, u, w, gates if gates is not None else q, states if states is not None else q, y, y_low, den,
        *strides(q, k, v, u, w, y),
        problem.t, problem.chunk, problem.chunks, problem.heads, problem.heads // problem.groups,
        problem.elements, problem.expanded, low_rows, problem.scale_in, problem.state_factor, problem.scale_out,
        problem.eps, U=u.shape[3], W=w.shape[3], WIDE=min(config.padded(u.shape[3]), 64), STATE=states is not None,
        INITIAL=initial, SYMMETRIC=layout.symmetric, LOW=low_rows > 0, **_constants(problem, blocks, gates is not None),
    )  # fmt: skip
    return y, y_low, den


class RowStatistics(NamedTuple):
    """What the backward pass knows of each query, float32."""

    facts: Tensor
    """[N, H, T, 4]: 1 / (den + eps), dy.y, the sum of log gates (if any), and nothing."""
    factors: TokenFactors
    """What the query counts by in the gradient of the state it reads."""


def row_statistics(
    problem: Problem, y: Tensor, y_low: Tensor, dy: Tensor, den: Tensor, gates: Tensor | None
) -> RowStatistics:
    """Both, before the state's gradient is summed."""
    found = RowStatistics(den.new_empty(*den.shape, 4), TokenFactors(torch.empty_like(den), torch.empty_like(den)))
    rows = config.STATISTICS_ROWS
    row_statistics_kernel[(-(-problem.t // rows) * problem.n * problem.heads,)](
        y, y_low, dy, den, gates if gates is not None else den, found.facts, *found.factors, *strides(y, dy),
        problem.t, problem.heads, problem.heads // problem.groups, y_low.shape[1], problem.eps,
        V=problem.v, V_BLOCK=min(config.padded(problem.v), 128), BLOCK=rows, SUM=problem.normalize,
        LOW=y_low.numel() > 0, GATED=gates is not None,
    )  # fmt: skip
    return found


def query_gradient(
    problem: Problem, q: Tensor, k: Tensor, v: Tensor, y: Tensor, y_low: Tensor, dy: Tensor, den: Tensor,
    facts: Tensor | None, gates: Tensor | None, states: Tensor | None, initial: bool,
) -> tuple[Tensor, Tensor | None, Tensor]:  # fmt: skip
    """dq and, with gates, R [2, N, H, T] (state, chunk); and the facts of the rows, made here where there are none."""
    layout = problem.layout
    make_facts = facts is None
    facts = den.new_empty(*den.shape, 4) if facts is None else facts
    dq = torch.empty_like(q, memory_format=torch.contiguous_format)
    row_sums = None if gates is None else torch.empty(2, *den.shape, device=q.device)
    blocks = problem.blocks("query_gradient", tiled=states is not None)
    query_gradient_kernel[(-(-problem.t // blocks.m) * problem.n * problem.heads,)](
        q, k, v, y, y_low, dy, den, facts, gates if gates is not None else q, states if states is not None else q, dq,
        row_sums if row_sums is not None else dq, *strides(q, k, v, y, dy, dq),
        problem.t, problem.chunk, problem.chunks, problem.heads, problem.heads // problem.groups,
        problem.elements, problem.expanded, y_low.shape[1], problem.scale_in, problem.scale_out, problem.eps,
        STATE=states is not None and layout.p <= 2, INITIAL=initial, MAKE_FACTS=make_facts, LOW=y_low.numel() > 0,
        **_constants(problem, blocks, gates is not None),
    )  # fmt: skip
    return dq, row_sums, facts


def key_gradient(
    problem: Problem, q: Tensor, k: Tensor, v: Tensor, dy: Tensor, facts: Tensor, gates: Tensor | None,
    states: Tensor | None, final: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """dk, dv and, with gates, C [2, N, G, T]; `states` are the gradients of the states after each chunk."""
    layout = problem.layout
    u, w = factors(problem, k) if states is not None else (k, k)
    dk = torch.empty_like(k, memory_format=torch.contiguous_format)
    dv = torch.empty_like(v, memory_format=torch.contiguous_format)
    column_sums = None if gates is None else torch.empty(2, *gates.shape, device=q.device)
    form = problem.form("key_gradient", tiled=states is not None)
    split = layout.p <= 2 and config.splits_keys(form, problem.arithmetic, problem.width)
    for of_keys, of_values in ((False, True), (True, False)) if split else ((True, True),):
        blocks = problem.blocks("key_gradient" if of_keys else "value_gradient", tiled=states is not None)
        key_gradient_kernel[(-(-problem.t // blocks.n) * problem.n * problem.groups,)](
            q, k, v, u, w, dy, facts, gates if gates is not None else q, states if states is not None else q, dk, dv,
            column_sums if column_sums is not None else dk, *strides(q, k, v, u, w, dy, dk, dv),
            problem.t, problem.chunk, problem.chunks, problem.groups, problem.elements, problem.expanded,
            problem.scale_in, problem.state_factor, problem.scale_out,
            U=u.shape[3], W=w.shape[3], REPEAT=problem.heads // problem.groups, STATE=states is not None, FINAL=final,
            SYMMETRIC=layout.symmetric, CONTRACT=layout.p <= 2, OF_KEYS=of_keys, OF_VALUES=of_values,
            **_constants(problem, blocks, gates is not None),
        )  # fmt: skip
    return dk, dv, column_sums


def gate_gradient(problem: Problem, row_sums: Tensor, column_sums: Tensor, dots: Tensor | None) -> Tensor:
    """d log_g [N, T, G] from R [2, N, H, T], C [2, N, G, T] and products of states with their gradients [N*G, C]."""
    out = torch.empty(problem.n, problem.t, problem.groups, device=row_sums.device)
    gate_gradient_kernel[(problem.chunks * problem.n * problem.groups,)](
        row_sums, column_sums, dots if dots is not None else out, out,
        problem.t, problem.chunk, problem.groups, problem.heads // problem.groups, problem.scale**problem.layout.p,
        DOTS=dots is not None, BLOCK=config.GATE_BLOCK,
    )  # fmt: skip
    return out


def add_factor_gradients(
    problem: Problem, x: Tensor, dx: Tensor, sums: Tensor | None, values: Tensor, facts: Tensor | None,
    gates: Tensor | None, states: Tensor, edge: bool,
) -> Tensor:  # fmt: skip
    """dx with the state's part for p >= 3, which also fills the state's R or C; x is the query or the key."""
    layout = problem.layout
    u, w = factors(problem, x)
    if layout.symmetric:
        both = _factor_gradient(problem, u, values, facts, gates, states, edge, "both")
        added = expansion_gradient(x, both, layout.left)
    else:
        left = _factor_gradient(problem, w, values, facts, gates, states, edge, "left")
        right = _factor_gradient(problem, u, values, facts, gates, states, edge, "right")
        added = expansion_gradient(x, left, layout.left) + expansion_gradient(x, right, layout.p - layout.left)
    if sums is not None:
        # The state's part is homogeneous of degree p in x, so that x.dx is p times its sum of dA A.
        sums[0].copy_((added * x).sum(3).transpose(1, 2) / layout.p)
    return (dx.float() + added).to(dx.dtype)


def _factor_gradient(
    problem: Problem, y: Tensor, values: Tensor, facts: Tensor | None, gates: Tensor | None,
    states: Tensor, edge: bool, side: str,
) -> Tensor:  # fmt: skip
    layout = problem.layout
    n, t, heads, _ = y.shape
    width = layout.w if side == "right" else layout.u
    out = torch.empty(n, heads, t, width, device=y.device)
    block, columns = config.FACTOR_ROWS, min(64, config.padded(width))
    factor_gradient_kernel[(-(-t // block) * n * heads, -(-width // columns))](
        y, values, facts if facts is not None else out, gates if gates is not None else out, states, out,
        *strides(y, values),
        t, problem.chunk, problem.chunks, heads, heads // problem.groups, problem.elements, problem.expanded,
        problem.scale**layout.p,
        U=layout.u, W=layout.w, V=problem.v, V_BLOCK=config.padded(problem.v), SIDE=side,
        OF_KEYS=facts is None, EDGE=edge, GATED=gates is not None, SUM=problem.normalize,
        BLOCK=block, COLUMNS=columns, DEPTH=problem.blocks("query_gradient", tiled=True).depth,
        DOT=config.dot_type(problem.arithmetic), PRECISION=config.precision(problem.arithmetic), num_warps=4,
    )  # fmt: skip
    return out.transpose(1, 2)
