"""Log-linear attention on Mamba-2: one state for each level of a binary partition of the past, weighted by the query.

    y_t = sum_l w_tl S_t^(l)^T C_t + D x_t,   w_t = softplus(L * (x_t W_L)), one for each head and level
    S_t^(l) = sum of exp(G_t - G_j) B_j (d_j x_j)^T over the tokens j of level l
    level(t, j) = 0 for j = t, else the number of binary digits of (t xor j)

G are running sums of the decays -d exp(A) of `mamba-2`, and x, B, C, d, D and the output its own. When token t comes,
the levels below the lowest digit of t that is set join in the level above it. State: K V sums a head and level; after T
tokens there are 1 + ceil(log2 T) levels, some of them empty. Work a token: 2 K V for each level, and 2 K V more, a
head. Source: Guo et al. (arXiv 2506.04761). Training multiplies all scores by their weights, which takes T^2 numbers a
head.
"""

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


@ARCHITECTURES.register("log-linear")
class LogLinear(Mamba2):
    """Log-linear attention: Mamba-2 with a state for each doubling of the distance, weighted by each query."""

    operator = "own"

    levels: int = Field(default=12, ge=1)
    """Levels that have weights, for up to 2^(levels - 1) tokens."""

    def build(self, members: int, d_model: int, layer: LayerContext) -> Mixer:
        full = self.resolved(d_model)
        return LevelsMixer(members, d_model, full.layout, LevelsCore(members, d_model, full), None, layer)

    def core_size(self, length: int) -> StateSize:
        return StateSize(sums=live_levels(length - 1) * self.heads * self.key_width * self.value_width)

    def core_flops(self, d_model: int, length: int) -> Flops:
        weights = 2.0 * d_model * self.heads * (1 + self.levels)
        return Flops(weights, 2.0 * self.heads * self.key_width * self.value_width * (1 + live_levels(length - 1)))


class LevelsCore(Core):
    """Scores times decays times weights of levels; the state is the sum of each level, [M·B, H, levels, K, V]."""

    def __init__(self, members: int, d_model: int, config: LogLinear) -> None:
        super().__init__()
        self.config = config
        self.decay = StepDecay(members, d_model, config.heads)
        self.skip = Coefficients(members, (config.heads, 1), constant(1.0))
        self.project = StackedLinear(members, d_model, config.heads * config.levels)
        self.scale = Coefficients(members, (config.heads, config.levels), constant(1.0))

    def weights(self, x: Tensor) -> Tensor:
        """Return the weights of levels, [M, B, (T,) H, levels], float32."""
        raw = widen(self.project(x)).unflatten(-1, (self.config.heads, self.config.levels))
        return functional.softplus(self.scale(raw) * raw)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        tokens = x.shape[2]
        self.check(tokens - 1)
        steps = self.decay.steps(x)
        sums = fold(self.decay.log_decays(steps)).cumsum(1).transpose(1, 2)  # [N, H, T]
        earlier = torch.ones(tokens, tokens, dtype=torch.bool, device=x.device).tril()
        decays = (sums[..., None] - sums[..., None, :]).masked_fill(~earlier, -torch.inf).exp()
        numbers = level_numbers(tokens, x.device)[..., None]
        levels = (numbers == torch.arange(self.config.levels, device=x.device)).to(sums.dtype)
        shares = torch.einsum("nthl,tsl->nhts", fold(self.weights(x)), levels)
        scores = torch.einsum("ntk,nsk->nts", fold(q[..., 0, :]), fold(k[..., 0, :]))
        written = fold(steps[..., None] * v)
        y = torch.einsum("nhts,nshv->nthv", widen(scores)[:, None] * decays * shares, written)
        return y.to(v.dtype).view(v.shape) + self.skip(v) * v

    def initial_state(self, batch: int, like: Tensor) -> Tensor:
        shape = (like.shape[0] * batch, self.config.heads, 0, self.config.key_width, self.config.value_width)
        return widen(like.new_zeros(shape))

    def step(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        steps, shares = self.decay.steps(x), fold(self.weights(x))[..., : state.shape[2]]
        state = fold(self.decay.log_decays(steps)).exp()[..., None, None, None] * state
        written = fold(widen(k[..., 0, :]))[:, None, :, None] * fold(steps[..., None] * v)[:, :, None]
        state = torch.cat([written[:, :, None], state[:, :, 1:]], dim=2)
        read = torch.einsum("nhl,nhlkv,nk->nhv", shares, state, fold(widen(q[..., 0, :])))
        return read.to(v.dtype).unflatten(0, x.shape[:2]) + self.skip(v) * v, state

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

    def check(self, position: int) -> None:
        """Raise SpecError where a position has more levels than weights."""
        if live_levels(position) > self.config.levels:
            raise SpecError(
                f"log-linear has weights for 2^(levels - 1) tokens; got token {position + 1} with levels = "
                f"{self.config.levels}; raise levels"
            )


class LevelsMixer(HeadsMixer):
    """The frame around a `LevelsCore`, whose state depends on the position."""

    core: LevelsCore

    def step(
        self, x: Tensor, state: HeadsState, position: int, first: FirstLayer | None = None
    ) -> tuple[Tensor, HeadsState]:
        return super().step(x, state._replace(core=self.core.joined(state.core, position)), position, first)


def live_levels(position: int) -> int:
    """Return the number of levels up to the highest that a token at a position can read."""
    return 1 + position.bit_length()


def level_numbers(tokens: int, device: torch.device) -> Tensor:
    """Return level(t, j) for all pairs of tokens, [T, T]."""
    places = torch.arange(tokens, device=device)
    differing = places[:, None] ^ places
    digits = torch.arange(tokens.bit_length(), device=device)
    return (differing[..., None] >> digits > 0).sum(-1)
