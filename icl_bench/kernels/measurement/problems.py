"""Problems that operators are checked and timed on: sizes, options, random inputs and gradients."""

import itertools
from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from icl_bench.kernels.arguments import accumulation_dtype
from icl_bench.kernels.power.api import Normalize

Op = Literal["power", "attention"]
LENGTHS = (1, 7, 63, 64, 65, 100, 1000, 4097)
FEW_LENGTHS = (1, 7, 65, 100)
"""Lengths for a quick check, and for a CPU."""
PAST = 9
"""Tokens that made an initial state."""


class Problem(NamedTuple):
    """One problem of an operator, in the axis letters of `shapes`."""

    op: Op
    t: int
    dtype: torch.dtype
    n: int = 1
    heads: int = 2
    groups: int = 1
    key: int = 64
    value: int = 64
    gated: bool = False
    p: int = 2
    normalize: Normalize = "sum"
    window: int | None = None
    chunk: int | None = None
    initial: bool = False
    states: bool = True
    """Whether the final state of power attention is asked for."""
    size: float = 1.0
    """Standard deviation of queries and keys."""

    @property
    def name(self) -> str:
        """The operator and the options that make it another one."""
        gated = " gated" if self.gated else ""
        if self.op == "power":
            return f"power p={self.p}{' unnormalised' * (self.normalize == 'none')}{gated}"
        return f"{'softmax' if self.window is None else 'window'}{gated}"

    @property
    def sizes(self) -> str:
        """What else there is to say about it."""
        parts = [f"T={self.t}", f"K={self.key}", f"V={self.value}", f"H={self.heads}", f"G={self.groups}"]
        parts += [f"window={self.window}"] * (self.window is not None) + [f"chunk={self.chunk}"] * bool(self.chunk)
        parts += ["initial state"] * self.initial + [f"size={self.size:g}"] * (self.size != 1)
        return " ".join(parts)

    @property
    def one_key(self) -> bool:
        """Whether every query sees one key only, so that weights are constant and most gradients vanish."""
        return min(self.t, self.window or self.t) == 1 and not self.initial


class Inputs(NamedTuple):
    """What an operator reads; None where it has no such input."""

    q: Tensor
    k: Tensor
    v: Tensor
    log_g: Tensor | None
    s: Tensor | None
    z: Tensor | None


def make_inputs(problem: Problem, device: torch.device) -> Inputs:
    """Standard normal queries, keys and values, and another gate at every position; the same at every call.

    Gates of long sequences are weaker, so that old tokens still count. With p = 1 and a normaliser queries and keys are
    their absolute values, as a feature map has it.
    """
    generator = torch.Generator(device).manual_seed(1000 * problem.t + problem.key)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    n, t, g = problem.n, problem.t, problem.groups
    q = normal(n, t, problem.heads, problem.key) * problem.size
    k, v = normal(n, t, g, problem.key) * problem.size, normal(n, t, g, problem.value)
    positive = problem.op == "power" and problem.p == 1 and problem.normalize == "sum"
    if positive:
        q, k = q.abs(), k.abs()
    kind = accumulation_dtype(problem.dtype)
    log_g = logsigmoid(normal(n, t, g) + (1 if t < 1000 else 4)).to(kind) if problem.gated else None
    s = z = None
    if problem.initial:
        past = normal(n, PAST, g, problem.key)
        expanded = expand_tuples((past.abs() if positive else past).double(), problem.p)
        s = torch.einsum("ntgd,ntgv->ngdv", expanded, normal(n, PAST, g, problem.value).double()).to(kind)
        z = expanded.sum(1).to(kind) if problem.normalize == "sum" else None
    return Inputs(q.to(problem.dtype), k.to(problem.dtype), v.to(problem.dtype), log_g, s, z)


def expand_tuples(x: Tensor, p: int) -> Tensor:
    """phi(x)_t = sqrt(p! / prod_k hist_k(t)!) x_i1 ... x_ip, straight from its definition: [..., K] -> [..., D].

    The factor's square grows index by index: by i / (how often that index came so far) at the i-th.
    """
    columns = torch.combinations(torch.arange(x.shape[-1]), p, with_replacement=True)
    out, run, square = torch.ones_like(x[..., :1]), torch.ones(len(columns)), torch.ones(len(columns))
    for i in range(p):
        if i:
            run = torch.where(columns[:, i] == columns[:, i - 1], run + 1, 1)
        square = square * (i + 1) / run
        out = out * x.index_select(-1, columns[:, i].to(x.device))
    return out * square.double().sqrt().to(x)


def power_problems(dtype: torch.dtype, lengths: tuple[int, ...]) -> Iterator[Problem]:
    """What power attention is checked on."""
    longest = lengths[-2:]
    for t, gated, p in itertools.product(lengths, (False, True), (1, 2)):
        base = Problem("power", t, dtype, gated=gated, p=p)
        yield base
        if t > 64:
            yield base._replace(chunk=64)
        if t in longest:
            yield base._replace(chunk=64, initial=True, heads=4, groups=2, key=24, value=40)
    for t, gated in itertools.product((7, *longest), (False, True)):
        for p, normalize in ((3, "none"), (4, "sum")):
            odd = Problem("power", t, dtype, key=16, value=16, gated=gated, p=p, normalize=normalize)  # type: ignore[arg-type]
            yield odd
            yield odd._replace(chunk=64)
    yield Problem("power", 100, dtype, normalize="none", chunk=64, key=32, value=16)
    # without the state: its gradients of such keys leave the range of float16 themselves
    yield Problem("power", 100, dtype, key=16, value=16, p=4, size=30.0, states=False)


def attention_problems(dtype: torch.dtype, lengths: tuple[int, ...]) -> Iterator[Problem]:
    """What softmax and window attention are checked on."""
    for t, gated in itertools.product(lengths, (False, True)):
        base = Problem("attention", t, dtype, gated=gated)
        yield base
        yield base._replace(window=50)
        if t in (100, 1000):
            yield base._replace(window=1)
            yield base._replace(heads=6, groups=2, key=24, value=40)
        if t > 1056:
            yield base._replace(window=1056)
