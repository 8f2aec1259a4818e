"""Problems that operators are checked and timed on, and random inputs for them."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from icl_bench.kernels.arguments import accumulation_dtype
from icl_bench.kernels.power.records import Normalize

LENGTHS = (1, 7, 63, 64, 65, 100, 1000, 4097)
FEW_LENGTHS = (1, 7, 65, 100)
"""Lengths for a quick check, and for a CPU."""
PAST = 9
"""Tokens that made an initial state."""


class Problem(NamedTuple):
    """One problem of an operator: sizes by their axis letters, and options."""

    op: str
    """Name of the operator, a key of `operators.OPERATORS`."""
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
    """Begin with a state."""
    states: bool = True
    """Compare the final state of power attention too."""
    size: float = 1.0
    """Standard deviation of queries and keys."""

    @property
    def sizes(self) -> str:
        """Sizes and further options, as a text."""
        parts = [f"T={self.t}", f"K={self.key}", f"V={self.value}", f"H={self.heads}", f"G={self.groups}"]
        parts += [f"window={self.window}"] * (self.window is not None) + [f"chunk={self.chunk}"] * bool(self.chunk)
        parts += ["initial state"] * self.initial + [f"size={self.size:g}"] * (self.size != 1)
        return " ".join(parts)


class Inputs(NamedTuple):
    """Tensors that an operator reads; None where it has no such input."""

    q: Tensor
    k: Tensor
    v: Tensor
    log_g: Tensor | None
    s: Tensor | None
    z: Tensor | None


def make_inputs(problem: Problem, device: torch.device) -> Inputs:
    """Draw standard normal queries, keys and values, and a different gate at every position; the same at every call.

    Gates of long sequences are weaker, so that old tokens still count. With p = 1 and a normaliser queries and keys are
    their absolute values, as after a feature map.
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
    """Return phi(x)_t = sqrt(p! / prod_k hist_k(t)!) x_i1 ... x_ip by its definition: [..., K] -> [..., D].

    The factor's square grows index by index: at index i by i / (number of times that index came so far).
    """
    columns = torch.combinations(torch.arange(x.shape[-1]), p, with_replacement=True)
    out, run, square = torch.ones_like(x[..., :1]), torch.ones(len(columns)), torch.ones(len(columns))
    for i in range(p):
        if i:
            run = torch.where(columns[:, i] == columns[:, i - 1], run + 1, 1)
        square = square * (i + 1) / run
        out = out * x.index_select(-1, columns[:, i].to(x.device))
    return out * square.double().sqrt().to(x)
