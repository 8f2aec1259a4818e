"""The sizes and constants of a call of power attention, and the records by which its Triton kernels take them."""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from icl_bench.kernels.power.triton import table
from icl_bench.kernels.power.triton.layout import StateLayout, tile_layout
from icl_bench.kernels.power.triton.state import SumConstants
from icl_bench.kernels.power.triton.tiles import StateView
from icl_bench.kernels.triton.common import View, padded


class KernelConstants(NamedTuple):
    """Constants that the kernels over tokens are compiled for, under the names that kernels use.

    Triton 3.6 takes plain values of this record in expressions; in shapes, and strings as arguments of other functions,
    it needs them bound first, as in `BLOCK_M: tl.constexpr = C.BLOCK_M`.
    """

    P: int
    TERMS: int
    """Lower degrees in a polynomial of scores; 0 for the plain power; see `lower`."""
    RANK_ONE: bool
    """Add the lower degree of p = 2 as scores of rank one; see `rank_one`."""
    ROWS: int
    """Tokens of a block whose scores of rank one are summed beforehand."""
    BY_TOKEN: bool
    """Give the gradient of their weights for each token, else the sum of each block of rows."""
    K: int
    V: int
    QUERY_SHARE: int
    """Output heads that share a query head."""
    KEY_SHARE: int
    """Value heads that share a key head."""
    U: int
    W: int
    """U and W: widths of the left factor u and the right factor w of an expanded row."""
    K_BLOCK: int
    V_BLOCK: int
    WIDE: int
    """Columns of u and w to a step of reading the normaliser."""
    BLOCK_M: int
    BLOCK_N: int
    DEPTH: int
    """Rows of a state to a step of reading it."""
    STATE: bool
    EDGE: bool
    """Read a state in the outermost chunk too: one that enters, or the gradient of the last."""
    LINEAR: bool
    SYMMETRIC: bool
    """Take u and w as the same vector."""
    SHORT: bool
    """Serve rows so short that they wait for memory rather than for products."""
    WHOLE: bool
    """Leave out masks, as no block of rows reaches beyond the sequence."""
    GATED: bool
    SUM: bool
    """Use a normaliser."""
    READY: bool
    """Take output gradients that are multiplied by the weights of queries."""
    SCALE: bool
    """Scale scores before the power."""
    DOT: Any
    """Type of the operands of products."""
    PRECISION: str
    STATE_STAGES: int
    STAGES: int
    OWN_STAGES: int
    """Pipeline depth of the loop over keys of the own block of queries."""


WALK_WIDTHS = (64, 128)
"""Widths of keys and values whose states `walk` makes."""
WALK_BLOCK = 128
"""Tokens of a block there, of which chunks have a whole number; half as many for the greater width."""


class PowerProblem(NamedTuple):
    """The sizes and constants of one call."""

    layout: StateLayout
    n: int
    t: int
    heads: int
    """Heads of the output."""
    groups: int
    """Heads of the values, each with a state."""
    query_heads: int
    key_heads: int
    v: int
    scale: float
    normalize: bool
    eps: float
    chunk: int
    dtype: torch.dtype
    stateful: bool
    """Read a state: with more than one chunk, or one that enters or receives a gradient."""
    terms: int = 0
    """Lower degrees in a polynomial of scores."""
    rank_one: bool = False
    """Add the lower degree of p = 2 as scores of rank one."""
    by_token: bool = False
    """Take weights of lower degrees for each token."""

    @property
    def arithmetic(self) -> str:
        """The arithmetic, a key of `table.LAUNCH_TABLES`."""
        return table.arithmetic(self.dtype, self.layout.p, self.stateful)

    @property
    def repeat(self) -> int:
        """Output heads to a value head, R."""
        return self.heads // self.groups

    @property
    def chunks(self) -> int:
        """Chunks in a sequence."""
        return -(-self.t // self.chunk)

    @property
    def expanded(self) -> int:
        """State elements before the normaliser."""
        return self.layout.expanded * self.v

    @property
    def used(self) -> int:
        """State elements of one head at one chunk."""
        return self.expanded + self.layout.normaliser(self.normalize)

    @property
    def elements(self) -> int:
        """State elements, padded so that every state starts at a multiple of 16 elements."""
        return -(-self.used // 16) * 16

    @property
    def short(self) -> bool:
        """Tell whether rows are so short that they wait for memory rather than for products; for equal widths alone.

        Not with lower degrees. With other widths, the ptxas of Triton 3.6 compiles the form for such rows wrong: see
        `table`.
        """
        one_pass = self.layout.linear or not self.stateful
        return self.chunk <= table.SHORT_CHUNK and one_pass and not self.mixed and not self.lower

    @property
    def weighted_values(self) -> bool:
        """Tell whether output gradients are multiplied by the weights of queries once, where both are rounded alike."""
        return self.layout.p == 2 and self.normalize and self.arithmetic == "bf16"

    @property
    def walkable(self) -> bool:
        """Tell whether `walk` has a kernel for the states: whole blocks, and what it counts in 32 bits."""
        one_width = self.layout.p == 2 and self.layout.key_width == self.v in WALK_WIDTHS
        heads = self.n * self.heads
        rows = heads * self.chunks * self.elements // self.v
        counts = rows, heads * self.t, self.chunks * self.elements
        whole = self.chunks > 1 and self.t % WALK_BLOCK == 0 and self.chunk % WALK_BLOCK == 0
        shared = not self.heads == self.groups == self.key_heads == self.query_heads
        return one_width and whole and not shared and self.arithmetic == "bf16" and max(counts) < 2**31

    @property
    def walk_programs(self) -> int:
        """Programs of a state in a walk: one for each tile and one for the normaliser."""
        return self.layout.tiles + self.normalize

    @property
    def lower(self) -> bool:
        """Tell whether scores have lower degrees."""
        return self.terms > 0 or self.rank_one

    @property
    def padded_widths(self) -> tuple[int, int]:
        """Return the widths that keys and values are padded to: one width for both in short rows without a state.

        The launches for such rows are there for equal widths, and reading takes more time there than products do.
        """
        key, value = padded(self.layout.key_width, 16), padded(self.v, 16)
        one = not self.stateful and not self.lower and self.chunk <= table.SHORT_CHUNK
        return (max(key, value),) * 2 if one else (key, value)

    @property
    def mixed(self) -> bool:
        """Tell whether keys and values are padded to different widths."""
        key, value = self.padded_widths
        return key != value

    @property
    def width(self) -> int:
        """The width that launch configurations are chosen by."""
        return max(self.layout.key_width, self.v)

    @property
    def scales_scores(self) -> bool:
        """Tell whether scores are scaled before the power; a multiplication that lower degrees, without it, make up."""
        return self.layout.p > 2 and self.terms == 0

    @property
    def scale_in(self) -> float:
        """The factor on q.k inside the power; the rest of the scale is applied to sums."""
        return self.scale if self.scales_scores else 1.0

    @property
    def scale_out(self) -> float:
        """The factor on sums of powers."""
        return 1.0 if self.scales_scores else self.scale**self.layout.p

    @property
    def state_factor(self) -> float:
        """The factor on sums that are read from a state, before `scale_out`."""
        return self.scale**self.layout.p / self.scale_out

    @property
    def lower_rows(self) -> int:
        """The tokens of a block whose scores of rank one are summed beforehand: a divisor of the blocks of kernels."""
        narrow = self.arithmetic == "ieee" or self.mixed or self.width > 64
        return table.STATISTICS_ROWS // 2 if narrow else table.STATISTICS_ROWS

    def blocks(self, kernel: str, *, tiled: bool, gated: bool = False) -> table.Blocks:
        """Return the launch configuration of a kernel; `tiled` says that it meets a state in tiles."""
        names = "gated" if gated else "", ("", "lower", "lowers")[min(self.terms, 2)]
        variant = "_".join(filter(None, names))
        return table.launch_blocks(kernel, self.form(kernel, tiled=tiled), self.arithmetic, self.width, variant)

    def form(self, kernel: str, *, tiled: bool) -> str:
        """Return the form, part of the keys of a launch table."""
        if kernel == "key_gradient" and self.mixed:
            return "wide_keys" if self.layout.key_width > self.v else "wide_values"
        if tiled and not self.layout.linear:
            return "tiles"
        return "rows" if self.chunk <= table.SHORT_CHUNK or kernel == "chunk_sums" else "long"

    def state_view(self, states: Tensor) -> StateView:
        """Return packed states as kernels take them."""
        return StateView(states, self.elements, self.expanded)


@lru_cache(maxsize=1024)  # a launch is 4 microseconds shorter than with constants made anew
def kernel_constants(
    problem: PowerProblem, blocks: table.Blocks, gated: bool, state: bool, edge: bool, ready: bool = False
) -> KernelConstants:
    """Return the constants of a kernel over tokens that has these blocks."""
    layout, (key, value) = problem.layout, problem.padded_widths
    return KernelConstants(
        P=layout.p, TERMS=problem.terms, RANK_ONE=problem.rank_one, ROWS=problem.lower_rows,
        BY_TOKEN=problem.by_token, K=layout.key_width,
        V=problem.v,
        QUERY_SHARE=problem.heads // problem.query_heads, KEY_SHARE=problem.groups // problem.key_heads,
        U=layout.u, W=layout.w, K_BLOCK=key, V_BLOCK=value, WIDE=padded(layout.u, 16, 64), BLOCK_M=blocks.m,
        BLOCK_N=blocks.n, DEPTH=blocks.depth, STATE=state, EDGE=edge, LINEAR=layout.linear, SYMMETRIC=layout.symmetric,
        SHORT=problem.short, WHOLE=problem.t % blocks.m == 0 and problem.t % blocks.n == 0, GATED=gated,
        SUM=problem.normalize, READY=ready, SCALE=problem.scales_scores, DOT=table.dot_type(problem.arithmetic),
        PRECISION=table.precision(problem.arithmetic), STATE_STAGES=blocks.state_stages, STAGES=blocks.stages,
        OWN_STAGES=blocks.own_stages,
    )  # fmt: skip


@lru_cache(maxsize=1024)
def sum_constants(
    problem: PowerProblem, width: int, heads: int, factor_heads: int, weighted: bool, values: bool
) -> SumConstants:
    """Return the constants of sums of chunks for values [N, T, heads, width], and factors with heads of their own."""
    layout, blocks = problem.layout, problem.blocks("chunk_sums", tiled=True)
    u_block, w_block, x_block = (padded(size, 16, 64) for size in (layout.u, layout.w, width))
    programs = (-(-layout.u // u_block) if layout.linear else layout.tiles) * -(-width // x_block)
    if problem.normalize and not layout.linear:
        programs += -(-layout.u // u_block) * -(-layout.w // w_block)
    return SumConstants(
        U=layout.u, W=layout.w, X=width, U_BLOCK=u_block, W_BLOCK=w_block, X_BLOCK=x_block,
        REPEAT=heads // problem.groups, SHARE=heads // factor_heads, SYMMETRIC=layout.symmetric,
        TILES=layout.tiles, BLOCKS=programs, WEIGHTED=weighted, VALUES=values, SUM=problem.normalize,
        BLOCK_T=blocks.n, DOT=table.dot_type(problem.arithmetic), PRECISION=table.precision(problem.arithmetic),
        STAGES=blocks.stages,
    )  # fmt: skip


def make_problem(
    q: Tensor, k: Tensor, v: Tensor, p: int, scale: float, normalize: bool, eps: float, chunk: int, edge: bool
) -> PowerProblem:
    """Return the sizes of a call; `edge` says that a state enters, or that the last one has a gradient."""
    n, t, query_heads, width = q.shape
    groups, key_heads = v.shape[2], k.shape[2]
    return PowerProblem(
        tile_layout(width, p), n, t, max(query_heads, groups), groups, query_heads, key_heads, v.shape[3], scale,
        normalize, eps, chunk, q.dtype, edge or chunk < t,
    )  # fmt: skip


def has_token_rows(x: Tensor) -> bool:
    """Tell whether x [N, T, H, width] is a matrix [N * T, H * width] in memory of rows apart, by 16 bytes or more."""
    n, t, heads, width = x.shape
    even = x.stride(3) == 1 and (heads == 1 or x.stride(2) == width) and (n == 1 or x.stride(0) == t * x.stride(1))
    return even and x.stride(1) >= heads * width and x.stride(1) * x.element_size() % 16 == 0


class LowerTerms(NamedTuple):
    """Lower degrees of a score."""

    weights: Tensor
    """Weights w_m [M, T or 1, H, TERMS], of which sequence n has those at n // (N / M); contiguous in the last axis."""
    norms: Tensor
    """|k|, float32 [N, J, T], where keys come with length 1, |k|^2 for scores of rank one; else empty."""
    query_norms: Tensor
    """|q|^2, float32 [N, query heads, T], for scores of rank one."""
    sums: Tensor
    """For scores of rank one, sums of |k|^2 v over the blocks of the chunk before each, float32 [N, G, blocks, V].

    For gradients of queries and keys, `reach` and `sums` of `rank_one_launch.QueryReach`.
    """
    traces: Tensor
    """Beside a state, those of the states that are read, float32 [N*G, C, V]."""

    def arguments(self, sequences: int) -> tuple[View, int]:
        """Return the weights as kernels take them, and the sequences that have the same ones."""
        n, t, h, _ = self.weights.stride()
        return View(self.weights, n, t if self.weights.shape[1] > 1 else 0, h), sequences // self.weights.shape[0]


class TokenWeights(NamedTuple):
    """Weights of each token, float32 [N, H, T]: in the values' part of a state, and in its normaliser."""

    value: Tensor | None
    """None where values come with their weights."""
    sum: Tensor
