"""Launches of the passes over tokens for scores of rank one."""

from typing import NamedTuple

import torch
from torch import Tensor

from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.power.triton import table
from icl_bench.kernels.power.triton.problem import KernelConstants, LowerTerms, PowerProblem, kernel_constants
from icl_bench.kernels.power.triton.rank_one import (
    power_block_sums_kernel,
    power_key_squares_kernel,
    power_query_reach_kernel,
    power_query_squares_kernel,
    power_traces_kernel,
)
from icl_bench.kernels.triton.common import view_of


class QueryReach(NamedTuple):
    """Numbers of each query that gradients of scores of rank one need, float32; see `rank_one`."""

    stats: Tensor
    """[N, H, T, 4]: 1, |q|^2, the sum of log gates (if any), and a."""
    reach: Tensor
    """[N, H, T]: dy_i . sum_j b_j v_j over the tokens before the own block."""
    sums: Tensor
    """[N, G, blocks, V]: sums of a dy over the blocks of the chunk after each, of all heads of a group."""


def norms_and_sums(
    problem: PowerProblem, q: Tensor, k: Tensor, v: Tensor, gates: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return `norms`, `query_norms` and `sums` of `LowerTerms` for scores of rank one."""
    squares = torch.empty(problem.n, problem.key_heads, problem.t, device=k.device)
    blocks = -(-problem.t // problem.lower_rows)
    sums = squares.new_empty(problem.n, problem.groups, blocks, problem.v)
    with launch_on(k):
        power_key_squares_kernel[(blocks * problem.n * problem.groups,)](
            *map(view_of, (k, v)), squares if gates is None else gates, squares, sums, problem.t, problem.groups,
            C=_block_constants(problem, gates), num_warps=4,
        )  # fmt: skip
    query_squares = squares.new_empty(problem.n, problem.query_heads, problem.t)
    with launch_on(q):
        power_query_squares_kernel[(blocks * problem.n * problem.query_heads,)](
            view_of(q), query_squares, problem.t, problem.query_heads, C=_block_constants(problem, gates), num_warps=4
        )
    return squares, query_squares, _block_sums(problem, sums, gates, after=False)


def query_reach(problem: PowerProblem, dy: Tensor, gates: Tensor | None, lower: LowerTerms) -> QueryReach:
    """Return what the gradients of scores of rank one need of queries, for the same blocks as `query_gradient`."""
    stats = torch.empty(problem.n, problem.heads, problem.t, 4, device=dy.device)
    blocks = -(-problem.t // problem.lower_rows)
    sums = stats.new_empty(problem.n, problem.heads, blocks, problem.v)
    reach = stats.new_empty(stats.shape[:3])
    weights, share = lower.arguments(problem.n)
    outer = problem.blocks("query_gradient", tiled=problem.chunks > 1, gated=gates is not None).m
    with launch_on(dy):
        power_query_reach_kernel[(blocks * problem.n * problem.heads,)](
            view_of(dy), weights, *lower[2:], stats if gates is None else gates, stats, reach, sums, problem.t,
            problem.chunk, problem.chunks, problem.heads, problem.repeat, share,
            OUTER=outer, C=_block_constants(problem, gates), num_warps=4,
        )  # fmt: skip
    return QueryReach(stats, reach, _block_sums(problem, sums, gates, after=True))


def state_traces(problem: PowerProblem, states: Tensor, lower: LowerTerms, *, weighted: bool) -> Tensor:
    """Return the traces [N*G, C, V] in float32 of packed states of p = 2 [N*G, C, elements], or w times them."""
    out = torch.empty(*states.shape[:2], problem.v, device=states.device)
    weights, share = lower.arguments(problem.n)
    with launch_on(states):
        power_traces_kernel[states.shape[:2]](
            states, weights, out, problem.elements, problem.groups, share,
            WEIGHTED=weighted, C=_block_constants(problem, None), num_warps=4,
        )  # fmt: skip
    return out


def _block_sums(problem: PowerProblem, sums: Tensor, gates: Tensor | None, *, after: bool) -> Tensor:
    """Return the sums of all earlier blocks of the chunk, or later ones and of the heads of a group."""
    out = sums.new_empty(problem.n, problem.groups, *sums.shape[2:])
    with launch_on(sums):
        power_block_sums_kernel[(problem.chunks * problem.n * problem.groups,)](
            sums, sums if gates is None else gates, out, problem.t, problem.chunk, sums.shape[1] // problem.groups,
            AFTER=after, C=_block_constants(problem, gates), num_warps=4,
        )  # fmt: skip
    return out


def _block_constants(problem: PowerProblem, gates: Tensor | None) -> KernelConstants:
    """Return the constants of passes over blocks of `KernelConstants.ROWS` tokens."""
    blocks = table.Blocks(problem.lower_rows, problem.lower_rows, 4, 1)
    return kernel_constants(problem, blocks, gates is not None, problem.chunks > 1, False)
