"""Launches that make the states of power attention before (or after) each chunk."""

from typing import NamedTuple

import torch
from torch import Tensor

from icl_bench.kernels.power.triton import table as config
from icl_bench.kernels.power.triton.problem import Problem, TokenFactors, strides
from icl_bench.kernels.power.triton.scan import scan_kernel
from icl_bench.kernels.power.triton.state import linear_sums_kernel, tiled_sums_kernel


class States(NamedTuple):
    """States of all chunks, and what else their sums give."""

    before: Tensor
    """[N*G, C, elements]: before each chunk, or after it where made in reverse."""
    final: Tensor | None
    """[N*G, elements] float32, after the last chunk in order."""
    dots: Tensor | None
    """[N*G, C]: with gates, products of `prefix` with these states, decayed over the chunk."""


def chunk_states(
    problem: Problem, u: Tensor, w: Tensor, x: Tensor, factors: TokenFactors | None, gates: Tensor | None,
    initial: Tensor | None, *, reverse: bool, want_final: bool, prefix: Tensor | None = None,
) -> States:  # fmt: skip
    """The states before the chunks, of keys with values x; or after them, of queries with output gradients x.

    Args:
        problem: The sizes.
        u: The left factors of the expanded rows [N, T, H, U].
        w: The right factors [N, T, H, W].
        x: [N, T, H, V].
        factors: What tokens count by; None for 1.
        gates: Sums of log gates [N, G, T], or None.
        initial: The state that enters, [N*G, elements] float32; None for zeros.
        reverse: From the last chunk to the first.
        want_final: Whether the state after all chunks is wanted.
        prefix: With gates, the states before each chunk, whose products with their gradients are wanted.
    """
    kind = config.state_type(problem.arithmetic)
    sums = torch.empty(problem.n * problem.groups, problem.chunks, problem.elements, device=x.device, dtype=kind)
    # The last chunk in order counts for the final state alone.
    summed = problem.chunks if want_final else problem.chunks - 1
    first = problem.chunks - summed if reverse else 0
    if summed > 0 and problem.layout.linear:
        _sum_linear(problem, sums, first, summed, u, x, factors)
    elif summed > 0:
        _sum_tiles(problem, sums, first, summed, u, w, x, factors)
    return _scan(problem, sums, gates, initial, reverse, want_final, prefix)


def _sum_linear(
    problem: Problem, out: Tensor, first: int, summed: int, k: Tensor, x: Tensor, factors: TokenFactors | None
) -> None:
    blocks = problem.blocks("chunk_sums", tiled=False)
    width, value_width = k.shape[3], x.shape[3]
    k_block, x_block = min(config.padded(width), 64), min(config.padded(value_width), 64)
    parts = -(-width // k_block) * -(-value_width // x_block)
    linear_sums_kernel[(parts * summed * problem.n * problem.groups,)](
        k, x, *(factors or (x, x)), out, *strides(k, x),
        problem.t, problem.chunk, problem.groups, first, summed, problem.elements,
        K=width, X=value_width, K_BLOCK=k_block, X_BLOCK=x_block, REPEAT=k.shape[2] // problem.groups,
        FACTOR=factors is not None, SUM=problem.normalize, BLOCK_T=blocks.n,
        DOT=config.dot_type(problem.arithmetic), PRECISION=config.precision(problem.arithmetic),
        STAGES=blocks.stages, num_warps=blocks.warps,
    )  # fmt: skip


def _sum_tiles(
    problem: Problem, out: Tensor, first: int, summed: int, u: Tensor, w: Tensor, x: Tensor,
    factors: TokenFactors | None,
) -> None:  # fmt: skip
    layout, blocks = problem.layout, problem.blocks("chunk_sums", tiled=True)
    u_block, w_block, x_block = (min(config.padded(y.shape[3]), 64) for y in (u, w, x))
    parts = layout.tiles * -(-x.shape[3] // x_block)
    if problem.normalize:
        parts += -(-layout.u // u_block) * -(-layout.w // w_block)
    tiled_sums_kernel[(parts * summed * problem.n * problem.groups,)](
        u, w, x, *(factors or (x, x)), out, *strides(u, w, x),
        problem.t, problem.chunk, problem.groups, first, summed, problem.elements, problem.expanded,
        U=layout.u, W=layout.w, X=x.shape[3], U_BLOCK=u_block, W_BLOCK=w_block, X_BLOCK=x_block,
        REPEAT=u.shape[2] // problem.groups, SYMMETRIC=layout.symmetric, TILES=layout.tiles, BLOCKS=parts,
        FACTOR=factors is not None, SUM=problem.normalize,
        BLOCK_T=blocks.n, DOT=config.dot_type(problem.arithmetic), PRECISION=config.precision(problem.arithmetic),
        STAGES=blocks.stages, num_warps=blocks.warps,
    )  # fmt: skip


def _scan(
    problem: Problem, sums: Tensor, gates: Tensor | None, initial: Tensor | None, reverse: bool, want_final: bool,
    prefix: Tensor | None,
) -> States:  # fmt: skip
    """The states from sums of chunks, in their place; what the last chunk in order holds matters with want_final."""
    row, chunks, elements = sums.shape
    final = torch.empty(row, elements, device=sums.device) if want_final else None
    blocks = -(-problem.used // config.SCAN_BLOCK)
    dots = None if prefix is None else torch.empty(row, blocks, chunks, device=sums.device)
    scan_kernel[(blocks * row,)](
        sums, *(sums if y is None else y for y in (gates, initial, final, prefix, dots)),
        problem.t, problem.chunk, chunks, elements, problem.used, problem.expanded, 256 * problem.v,
        GATED=gates is not None, INITIAL=initial is not None, FINAL=want_final, REVERSE=reverse,
        DOTS=prefix is not None, TRIANGLE=problem.layout.symmetric,
        BLOCK=config.SCAN_BLOCK, STAGES=config.SCAN_STAGES, num_warps=4,
    )  # fmt: skip
    return States(sums, final, None if dots is None else dots.sum(1))
