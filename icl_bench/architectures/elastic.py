"""Elastic power attention: one set of weights that serves several degrees, of which the test takes one.

    S_t = S_(t-1) + phi_p(k_t) v_t^T,   phi_p(q)·phi_p(k) = (q·k)^p
    y_t = rms_norm_p(sum_j (q_t·k_j / sqrt(K))^p v_j), j <= t, with gains of the degree

In training the examples of a batch are dealt among the degrees in equal shares. Afterwards the layer has the degree p,
or, without one, the least that suffices for the tokens so far, n: keys of random directions span an effective rank of
K (K + 2) .. (K + 2p - 2) / (2p - 1)!!, and the least degree whose rank is at least n is taken, the highest if there is
none. Until the keys and values so far outgrow the sums of degree p (the highest one without p) they are kept, which is
exact for every degree; then they are folded into the sums.

State: the smaller of n (K + V) keys and values, n the tokens so far, and D V sums a head, D = C(K + p - 1, p).
Work a token: 2 (K + V) n, then 4 D V a head. Source: power attention (arXiv 2507.04239); the choice of a degree after
training is this project's own.
"""

import math
from collections.abc import Iterator
from itertools import groupby, pairwise
from typing import Self, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from icl_bench.architectures.base import ARCHITECTURES, DealsExamples, Flops, LayerContext, StateSize
from icl_bench.architectures.decays import DecayGate
from icl_bench.architectures.frame import Core, fold
from icl_bench.architectures.heads import RecurrentHeads
from icl_bench.architectures.layers import RMSNorm, widen
from icl_bench.architectures.power import HIGHEST_POWER
from icl_bench.kernels.attention.api import empty_cache
from icl_bench.kernels.attention.records import KeyValueCache
from icl_bench.kernels.power.api import PowerImpl, power_attention, power_step
from icl_bench.kernels.power.expansion import expand, expanded_width
from icl_bench.kernels.power.records import PowerState


def random_rank(p: int, key_width: int) -> float:
    """Return the effective rank of p-th powers of keys of random directions, K (K + 2) .. / (2p - 1)!!.

    >>> [round(random_rank(p, 8), 1) for p in (1, 2, 3)]
    [8.0, 26.7, 64.0]
    """
    return math.prod((key_width + 2 * i) / (2 * i + 1) for i in range(p))


@ARCHITECTURES.register("elastic")
class Elastic(RecurrentHeads):
    """Elastic power attention: trained at several degrees at once, its degree chosen afterwards."""

    family = "power sums"
    operator = "power"

    degrees: tuple[int, ...] = (1, 2, 3)
    """Degrees that are trained, rising."""
    p: int | None = Field(default=None, ge=1, le=HIGHEST_POWER)
    """Degree after training, one of them; none to take the least that suffices for the tokens so far."""

    @model_validator(mode="after")
    def _check_degrees(self) -> Self:
        listed = list(self.degrees)
        if len(listed) < 2 or listed != sorted(set(listed)) or listed[0] < 1 or listed[-1] > HIGHEST_POWER:
            raise ValueError(
                f"degrees are two or more whole numbers from 1 to {HIGHEST_POWER}, rising; got {listed}; "
                "write degrees=[1|2|3]"
            )
        if self.p is not None and self.p not in listed:
            raise ValueError(f"p is one of the degrees {listed}; got {self.p}; take one of them, or leave p out")
        return self

    @property
    def folded_degree(self) -> int:
        """Degree of the sums that keys and values are folded into."""
        return self.p or self.degrees[-1]

    @property
    def sums_width(self) -> int:
        """Width of the expanded keys of these sums, D, of a resolved architecture."""
        return expanded_width(self.key_width, self.folded_degree)

    @property
    def folds_at(self) -> int:
        """Number of tokens from which the sums are kept, of a resolved architecture."""
        return self.sums_width * self.value_width // (self.key_width + self.value_width) + 1

    def degree_at(self, tokens: int) -> int:
        """Return the degree of the latest of so many tokens, of a resolved architecture."""
        if self.p is not None or tokens >= self.folds_at:
            return self.folded_degree
        return next((p for p in self.degrees if random_rank(p, self.key_width) >= tokens), self.degrees[-1])

    def core(self, members: int, d_model: int, gate: DecayGate | None, layer: LayerContext) -> Core:
        return ElasticCore(members, self, layer)

    def core_size(self, length: int) -> StateSize:
        if length < self.folds_at:
            return StateSize(cache=self.heads * length * (self.key_width + self.value_width))
        return StateSize(sums=self.heads * self.sums_width * self.value_width)

    def core_flops(self, d_model: int, length: int) -> Flops:
        kept = min(length, self.folds_at - 1)
        entries = self.sums_width * self.value_width
        cached = (self.key_width + self.value_width) * kept * (kept + 1) / 2
        summed = entries * (2 * length - kept) if length > kept else 0  # every key is added, kept ones are not read
        return Flops(0.0, 2.0 * self.heads * (cached + summed) / length)


ElasticState = KeyValueCache | PowerState
"""State of an `ElasticCore`: keys and values so far, or the sums they were folded into."""


class ElasticCore(Core, DealsExamples):
    """Power attention of one of several degrees, each with a norm of its own."""

    def __init__(self, members: int, config: Elastic, layer: LayerContext) -> None:
        super().__init__()
        self.config, self.impl, self.scale = config, cast(PowerImpl, layer.impl), config.key_width**-0.5
        self.norms = nn.ModuleList(RMSNorm(members, config.value_width) for _ in config.degrees)

    def norm(self, y: Tensor, p: int) -> Tensor:
        """Normalise the output of a degree, [M, B, (T,) H, V]."""
        normed: Tensor = self.norms[self.config.degrees.index(p)](y)
        return normed

    def attend(self, q: Tensor, k: Tensor, v: Tensor, p: int) -> Tensor:
        """Compute the parallel form of a degree, without the norm: [M, B, T, H, V]."""
        y = power_attention(fold(q), fold(k), fold(v), p=p, scale=self.scale, normalize="none", impl=self.impl)
        out: Tensor = y.unflatten(0, q.shape[:2])
        return out

    def forward(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        if self.training:
            return torch.cat(list(self.dealt(q, k, v)), dim=1)
        spans = [
            self.norm(self.attend(q[:, :, :end], k[:, :, :end], v[:, :, :end], p)[:, :, begin:], p)
            for begin, end, p in self.spans(q.shape[2])
        ]
        return torch.cat(spans, dim=2)

    def dealt(self, q: Tensor, k: Tensor, v: Tensor) -> Iterator[Tensor]:
        """Yield the normalised outputs of each degree on its share of the examples, which are alike by chance alone."""
        shares = (part.tensor_split(len(self.config.degrees), dim=1) for part in (q, k, v))
        for p, *own in zip(self.config.degrees, *shares, strict=True):
            if own[0].shape[1]:
                yield self.norm(self.attend(own[0], own[1], own[2], p), p)

    def spans(self, length: int) -> Iterator[tuple[int, int, int]]:
        """Yield the first token, the one after the last, and the degree of each span of equal degree."""
        runs = [(p, len(list(run))) for p, run in groupby(self.config.degree_at(n + 1) for n in range(length))]
        ends = [sum(count for _, count in runs[:i]) for i in range(len(runs) + 1)]
        yield from ((begin, end, p) for (begin, end), (p, _) in zip(pairwise(ends), runs, strict=True))

    def initial_state(self, batch: int, like: Tensor) -> ElasticState:
        sizes = self.config.heads, self.config.key_width, self.config.value_width
        return empty_cache(like.shape[0] * batch, *sizes, gated=False, device=like.device, dtype=like.dtype)

    def step(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, state: ElasticState) -> tuple[Tensor, ElasticState]:
        p, lead, q, k, v = self.config.folded_degree, q.shape[:2], fold(q), fold(k), fold(v)
        if isinstance(state, KeyValueCache):
            tokens = state.k.shape[1] + 1
            if tokens < self.config.folds_at:
                p = self.config.degree_at(tokens)
                state = KeyValueCache(torch.cat([state.k, k[:, None]], 1), torch.cat([state.v, v[:, None]], 1), None)
                return self.norm(self.read_cache(q, state, p).unflatten(0, lead), p), state
            state = power_sums(state, p)
        y, state = power_step(q, k, v, None, state, p=p, scale=self.scale, normalize="none")
        return self.norm(y.unflatten(0, lead), p), state

    def read_cache(self, q: Tensor, cache: KeyValueCache, p: int) -> Tensor:
        """Return the sums of degree p over the keys and values kept, for queries [N, H, K]: [N, H, V]."""
        weights = torch.einsum("nhk,nthk->nht", widen(q) * self.scale, widen(cache.k)) ** p
        return torch.einsum("nht,nthv->nhv", weights, widen(cache.v)).to(cache.v.dtype)


def power_sums(cache: KeyValueCache, p: int) -> PowerState:
    """Return the sums of degree p of the keys and values kept."""
    return PowerState(torch.einsum("nthd,nthv->nhdv", expand(widen(cache.k), p), widen(cache.v)), None)
