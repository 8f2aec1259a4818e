"""What operators should give, in float64 and for chosen queries, and how far off a result is.

A definition that is evaluated at a few queries is affordable at any length: with output gradients that are zero
everywhere else, the gradients of all keys, values and gates follow from these queries alone.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from icl_bench.kernels.measurement.problems import Inputs, Problem, expand_tuples

EPS = 1e-6


class Bound(NamedTuple):
    """Root-mean-square errors, relative to the exact result, that are allowed."""

    outputs: float
    gradients: float


# A rounding to a type errs in the mean square by about a quarter of its eps; outputs and gradients are sums of products
# of a few rounded factors. In float32, with IEEE products, the rounding of scores and sums dominates.
BOUNDS = {
    torch.bfloat16: Bound(5e-3, 1e-2),
    torch.float16: Bound(2e-3, 5e-3),
    torch.float32: Bound(1e-5, 1e-5),
    torch.float64: Bound(1e-9, 1e-9),
}


def exact_outputs(problem: Problem, inputs: Inputs, rows: Tensor) -> list[Tensor]:
    """y [N, R, H, V] of the queries at `rows` [R] and, where asked for, the final s and z; inputs in float64."""
    k, v = inputs.k, inputs.v
    log_g = inputs.log_g if inputs.log_g is not None else torch.zeros_like(k[..., 0])
    c = log_g.cumsum(1)
    shared = problem.heads // problem.groups
    q = inputs.q[:, rows].unflatten(2, (problem.groups, shared))  # [N, R, G, H/G, K]
    decay = (c[:, rows, None] - c[:, None]).permute(0, 3, 1, 2)[:, :, None]  # [N, G, 1, R, T]
    distance = rows[:, None] - torch.arange(problem.t, device=rows.device)
    seen = (distance >= 0) & (distance < (problem.window or problem.t))
    scores = torch.einsum("nrghk,ntgk->nghrt", q, k) * problem.key**-0.5
    decay = decay.masked_fill(~seen, -torch.inf)
    if problem.op == "attention":
        weights = (scores + decay).softmax(-1)
        return [torch.einsum("nghrt,ntgv->nrghv", weights, v).flatten(2, 3)]
    weights = decay.exp() * scores**problem.p
    total, y = weights.sum(-1).permute(0, 3, 1, 2), torch.einsum("nghrt,ntgv->nrghv", weights, v)
    if inputs.s is not None:
        reach = expand_tuples(q, problem.p) * (c[:, rows].exp() * problem.key ** (-0.5 * problem.p))[..., None, None]
        y = y + torch.einsum("nrghd,ngdv->nrghv", reach, inputs.s)
        total = total if inputs.z is None else total + torch.einsum("nrghd,ngd->nrgh", reach, inputs.z)
    y = (y / (total[..., None] + EPS) if problem.normalize == "sum" else y).flatten(2, 3)
    return [y, *_final_state(problem, inputs, c)] if problem.states else [y]


def _final_state(problem: Problem, inputs: Inputs, c: Tensor) -> list[Tensor]:
    keys = expand_tuples(inputs.k, problem.p) * (c[:, -1:] - c).exp()[..., None]
    last = c[:, -1].exp()
    s, z = torch.einsum("ntgd,ntgv->ngdv", keys, inputs.v), keys.sum(1)
    s = s if inputs.s is None else s + last[..., None, None] * inputs.s
    z = z if inputs.z is None else z + last[..., None] * inputs.z
    return [s, z] if problem.normalize == "sum" else [s]


def leaves_of(inputs: Inputs, dtype: torch.dtype | None = None) -> Inputs:
    """Copies that gradients can be taken of, in a type of their own where one is given."""
    made = [None if x is None else x.detach().to(dtype or x.dtype).clone().requires_grad_() for x in inputs]
    q, k, v, log_g, s, z = made
    assert q is not None and k is not None and v is not None
    return Inputs(q, k, v, log_g, s, z)


def gradients(outputs: list[Tensor], leaves: Inputs, along: list[Tensor]) -> list[Tensor]:
    """The gradient of every input, zeros where nothing depends on one."""
    asked = [x for x in leaves if x is not None]
    pulled = [a.to(y.dtype) for a, y in zip(along, outputs, strict=True)]
    return list(torch.autograd.grad(outputs, asked, pulled, materialize_grads=True))


def relative_error(found: Tensor, exact: Tensor, natural: float) -> float:
    """Root-mean-square error over the root mean square of the exact result, or over `natural` where that is larger.

    NaN where the found one holds any, or is of another shape: NaN is within no bound.
    """
    if found.shape != exact.shape:
        return math.nan
    size = max(rms(exact), natural)
    error = rms(found.double() - exact)
    return error / size if size > 0 else error


def natural_size(problem: Problem, name: str) -> float:
    """What the terms that cancel in a gradient are as large as, where every query sees one key; else 0.

    Inputs are standard normal: the terms of dq and dk are of order 1, those of a gate sums of V products over T.
    """
    if not problem.one_key or name not in ("dq", "dk", "dlog_g"):
        return 0.0
    return math.sqrt(problem.value * problem.t) if name == "dlog_g" else 1.0


def rms(x: Tensor) -> float:
    """Root mean square."""
    return x.detach().double().square().mean().sqrt().item()
