"""Log-linear attention on Mamba-2: one state for each level of a binary partition of the past, weighted by the query.

    y_t = sum_l w_tl S_t^(l)^T C_t + D x_t,   w_t = softplus(L * (x_t W_L)), one for each head and level
    S_t^(l) = sum of exp(G_t - G_j) B_j (d_j x_j)^T over the tokens j of level l
    level(t, j) = 0 for j = t, else the number of binary digits of (t xor j)

G are running sums of the decays -d exp(A) of `mamba-2`, and x, B, C, d, D and the output its own. When token t comes,
the levels below the lowest digit of t that is set join in the level above it. State: K V sums a head and level; after T
tokens there are 1 + ceil(log2 T) levels, some of them empty. Work a token: 2 K V for each level, and 2 K V more, a
head. Source: Guo et al. (arXiv 2506.04761). Training in half precision walks chunks of 32 tokens with a state for each
level, in one launch each way, where `mamba-2` has one; else it multiplies the scores of blocks of 16 tokens by their
weights, and for every level above, the second half of each of its spans reads the sum that the first half has written.
"""

from abc import abstractmethod
from functools import partial
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from icl_bench.architectures.base import ARCHITECTURES, FirstLayer, Flops, LayerContext, Mixer, StateSize
from icl_bench.architectures.decays import StepDecay
from icl_bench.architectures.frame import Core, HeadsMixer, HeadsState, fold
from icl_bench.architectures.initialisation import constant
from icl_bench.architectures.layers import Coefficients, StackedLinear, widen
from icl_bench.architectures.mamba_2 import Mamba2
from icl_bench.errors import SpecError
from icl_bench.kernels.fleet.decays import channel_decays
from icl_bench.kernels.fleet.level_sums import LevelTokens, level_sums
from icl_bench.kernels.fleet.products import scale_heads
from icl_bench.kernels.fleet.projection import HALF_TYPES, project
from icl_bench.kernels.fleet.state_space import takes_state_space

BLOCK = 16
"""Tokens whose levels are weights of their scores, a power of two; levels above have sums of states."""


@ARCHITECTURES.register("log-linear")
class LogLinear(Mamba2):
    """Log-linear attention: Mamba-2 with a state for each doubling of the distance, weighted by each query."""

    operator = "own"

    levels: int = Field(default=12, ge=1)
    """Levels that have weights, for up to 2^(levels - 1) tokens."""

    def build(self, members: int, d_model: int, layer: LayerContext) -> Mixer:
        full = self.resolved(d_model)
        return LevelsMixer(members, d_model, full.layout, StateSpaceLevels(members, d_model, full, layer), None, layer)

    def core_size(self, length: int) -> StateSize:
        return StateSize(sums=live_levels(length - 1) * self.heads * self.key_width * self.value_width)

    def core_flops(self, d_model: int, length: int) -> Flops:
        weights = 2.0 * d_model * self.heads * (1 + self.levels)
        return Flops(weights, 2.0 * self.heads * self.key_width * self.value_width * (1 + live_levels(length - 1)))


class LevelsCore(Core):
    """A recurrence with a sum for each level of each head, [M·B, H, levels, K, V], and their weights."""

    project: StackedLinear
    scale: Coefficients
    factor = 1.0
    """Factor on the outputs."""

    def __init__(self, sizes: tuple[int, int, int], levels: int, layer: LayerContext) -> None:
        super().__init__()
        self.sizes, self.levels, self.impl = sizes, levels, layer.impl

    def add_weights(self, members: int, d_model: int) -> None:
        """Add the parameters of the weights of levels."""
        self.project = StackedLinear(members, d_model, self.sizes[0] * self.levels)
        self.scale = Coefficients(members, (self.sizes[0], self.levels), constant(1.0))

    def weights(self, x: Tensor) -> Tensor:
        """Return the weights of levels, softplus(L * (x W)), [M, B, (T,) H, levels], float32."""
        own = self.project.weight
        scaled = own * -self.scale.weight.flatten(1)[:, None].to(own.dtype)
        raw = project(x.flatten(1, -2), scaled).view(*x.shape[:-1], -1)
        weights = channel_decays(raw, "log-sigmoid", -1.0)  # softplus(z) is -log sigmoid(-z)
        by_level: Tensor = weights.unflatten(-1, (self.sizes[0], self.levels))
        return by_level

    @abstractmethod
    def tokens(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> LevelTokens:
        """Return what the core reads of tokens, N = M·B; a token of zeros changes nothing."""

    @abstractmethod
    def across(self, first: LevelTokens, second: LevelTokens, weights: Tensor) -> Tensor:
        """Return what tokens read of the sum that as many tokens before them have written, times weights [N, T, H]."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        self.check(x.shape[2] - 1)
        weights, tokens = fold(self.weights(x)), self.tokens(q, k, v, x)
        fused = self.impl == "auto" and v.dtype in HALF_TYPES and takes_state_space(q, v)
        y = level_sums(tokens, weights, self.factor) if fused else self.by_spans(tokens, weights)
        rows: Tensor = y.unflatten(0, x.shape[:2])
        return rows

    def by_spans(self, tokens: LevelTokens, weights: Tensor) -> Tensor:
        """Return y [N, T, H, V]: weights of scores in blocks of tokens, and for every level above sums of states."""
        length = weights.shape[1]
        block = min(BLOCK, length)
        whole = block << (-(-length // block) - 1).bit_length()
        tokens, weights = tokens.apply(lambda part: padded_tokens(part, whole)), padded_tokens(weights, whole)
        blocks = tokens.apply(lambda part: part.unflatten(1, (-1, block)).flatten(0, 1))
        own = weights.unflatten(1, (-1, block)).flatten(0, 1)
        y = level_sums(blocks, own, self.factor, impl="torch").reshape(len(weights), whole, *tokens.v.shape[2:])
        half = block
        while half < whole:
            first, second = tokens.apply(partial(halves, half, 0)), tokens.apply(partial(halves, half, 1))
            y = _WithReads.apply(y, self.across(first, second, halves(half, 1, weights[..., half.bit_length()])))
            half *= 2
        return y[:, :length]

    def initial_state(self, batch: int, like: Tensor) -> Tensor:
        heads, key_width, value_width = self.sizes
        return widen(like.new_zeros(like.shape[0] * batch, heads, 0, key_width, value_width))

    def joined(self, state: Tensor, position: int) -> Tensor:
        """Return the sums before the token at a position, level 0 empty: the lowest ones join in the one above them."""
        self.check(position)
        missing = live_levels(position) - state.shape[2]
        state = torch.cat([state, state.new_zeros(*state.shape[:2], missing, *state.shape[3:])], dim=2)
        if not position:
            return state
        lowest = (position & -position).bit_length()  # the levels below this one join in it
        moved = state[:, :, :lowest].sum(2, keepdim=True)
        return torch.cat([torch.zeros_like(state[:, :, :lowest]), moved, state[:, :, lowest + 1 :]], dim=2)

    def read(self, q: Tensor, state: Tensor, x: Tensor) -> Tensor:
        """Read all levels with queries [M·B, H, K]: the sum of what each holds times its weight, [M·B, H, V]."""
        weights = fold(self.weights(x))[..., : state.shape[2]]
        return torch.einsum("nhl,nhlkv,nhk->nhv", weights, state, widen(q))

    def check(self, position: int) -> None:
        """Raise SpecError where a position has more levels than weights."""
        if live_levels(position) > self.levels:
            raise SpecError(
                f"log-linear has weights for 2^(levels - 1) tokens; got token {position + 1} with levels = "
                f"{self.levels}; raise levels"
            )


class _WithReads(torch.autograd.Function):
    """Outputs [N, T, ...] with what second halves of spans read, [N·spans, half, ...], added in place.

    The gradient is passed on as it is, where that of a view that is written copies it.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, read: Tensor) -> Tensor:
        ctx.half = read.shape[1]
        y.unflatten(1, (-1, 2, ctx.half))[:, :, 1].add_(read.unflatten(0, (len(y), -1)))
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, halves(ctx.half, 1, gradient)


def halves(half: int, place: int, part: Tensor) -> Tensor:
    """Return the first or second halves of all spans of a tensor [N, T, ...] as a view [N·spans, half, ...]."""
    spans: Tensor = part.unflatten(1, (-1, 2, half))[:, :, place]
    return spans.flatten(0, 1)


class StateSpaceLevels(LevelsCore):
    """Scores times decays times weights of levels, and a skip."""

    def __init__(self, members: int, d_model: int, config: LogLinear, layer: LayerContext) -> None:
        super().__init__((config.heads, config.key_width, config.value_width), config.levels, layer)
        self.decay = StepDecay(members, d_model, config.heads)
        self.skip = Coefficients(members, (config.heads, 1), constant(1.0))
        self.add_weights(members, d_model)

    def tokens(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> LevelTokens:
        steps = self.decay.steps(x)
        return LevelTokens(q, k, scale_heads(v, steps), self.decay.log_decays(steps)).apply(fold)

    def across(self, first: LevelTokens, second: LevelTokens, weights: Tensor) -> Tensor:
        kept = first.log_decay.sum(1, keepdim=True) - first.log_decay.cumsum(1)
        state = first.k[:, :, 0].mT @ scale_heads(first.v, kept.exp()).flatten(2)  # [N, K, H V]
        read = (second.q[:, :, 0] @ state).unflatten(-1, first.v.shape[2:])
        return scale_heads(read, weights * second.log_decay.cumsum(1).exp())

    def forward(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        y = super().forward(q, k, v, x)
        return scale_heads(v, self.skip(v)[..., 0].expand(v.shape[:-1]), y)

    def step(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        steps = self.decay.steps(x)
        state = fold(self.decay.log_decays(steps)).exp()[..., None, None, None] * state
        written = fold(widen(k[..., 0, :]))[:, None, :, None] * fold(steps[..., None] * v)[:, :, None]
        state = torch.cat([written[:, :, None], state[:, :, 1:]], dim=2)
        read = self.read(fold(q).expand(-1, self.sizes[0], -1), state, x)
        return read.to(v.dtype).unflatten(0, x.shape[:2]) + self.skip(v) * v, state


class LevelsMixer(HeadsMixer):
    """The frame around a `LevelsCore`, whose state depends on the position."""

    core: LevelsCore

    def step(
        self, x: Tensor, state: HeadsState, position: int, first: FirstLayer | None = None
    ) -> tuple[Tensor, HeadsState]:
        return super().step(x, state._replace(core=self.core.joined(state.core, position)), position, first)


def padded_tokens(part: Tensor, length: int) -> Tensor:
    """Return a tensor [N, T, ...] with zeros up to `length` tokens."""
    missing = length - part.shape[1]
    return functional.pad(part, (0,) * (2 * part.ndim - 3) + (missing,)) if missing else part


def live_levels(position: int) -> int:
    """Return the number of levels up to the highest that a token at a position can read."""
    return 1 + position.bit_length()
