"""The operators that are checked and timed: the problems, the exact results and the forms of each, in one table.

An exact result is a definition evaluated in float64 at chosen queries, which is affordable at any length: with output
gradients that are zero everywhere else, the gradients of all keys, values and gates follow from these queries alone.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, cast, get_args

import torch
from torch import Tensor

from icl_bench.errors import ArgumentError
from icl_bench.kernels.attention.api import AttentionImpl, attention
from icl_bench.kernels.measurement.problems import Inputs, Problem, expand_tuples
from icl_bench.kernels.power.api import PowerImpl, power_attention, power_attention_with_state
from icl_bench.kernels.power.records import PowerState

EPS = 1e-6


class MeasuredOperator(NamedTuple):
    """The problems, names of forms (`impls`) and exact results of an operator."""

    impls: tuple[str, ...]
    problems: Callable[[torch.dtype, tuple[int, ...]], Iterator[Problem]]
    """Problems of a type at some lengths, on which it is checked."""
    describe: Callable[[Problem], str]
    """Name of a problem's operator with the options that make it another one."""
    run: Callable[[Problem, str, Inputs], list[Tensor]]
    """Outputs of a form, by its name."""
    exact: Callable[[Problem, Inputs, Tensor, Tensor, Tensor], list[Tensor]]
    """Exact outputs at some queries [R], from inputs in float64, sums of gates [N, T, G] and a mask [R, T]."""


def operator_name(problem: Problem) -> str:
    """Return the name of the operator of a problem, with the options that make it another one."""
    return OPERATORS[problem.op].describe(problem) + " gated" * problem.gated


def run_form(problem: Problem, impl: str, inputs: Inputs) -> list[Tensor]:
    """Return y [N, T, H, V] by a form, and the final state where the problem asks for it."""
    return OPERATORS[problem.op].run(problem, impl, inputs)


def exact_outputs(problem: Problem, inputs: Inputs, rows: Tensor) -> list[Tensor]:
    """Return y [N, R, H, V] of queries `rows` [R], and the final state where it is asked for, for inputs in float64."""
    log_g = inputs.log_g if inputs.log_g is not None else torch.zeros_like(inputs.k[..., 0])
    distance = rows[:, None] - torch.arange(problem.t, device=rows.device)
    seen = (distance >= 0) & (distance < (problem.window or problem.t))
    return OPERATORS[problem.op].exact(problem, inputs, rows, log_g.cumsum(1), seen)


def known_operators(name: str | None) -> tuple[str, ...]:
    """Return the operator of that name, or all for None; raise ArgumentError for an unknown name."""
    if name is not None and name not in OPERATORS:
        raise ArgumentError(f"--op is one of {', '.join(OPERATORS)}; got {name!r}: choose one of them")
    return tuple(OPERATORS) if name is None else (name,)


def _scores(problem: Problem, inputs: Inputs, rows: Tensor, c: Tensor, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return grouped queries [N, R, G, H/G, K], scores and log decays of keys [N, G, H/G or 1, R, T]."""
    q = inputs.q[:, rows].unflatten(2, (problem.groups, -1))
    decay = (c[:, rows, None] - c[:, None]).permute(0, 3, 1, 2)[:, :, None].masked_fill(~seen, -torch.inf)
    return q, torch.einsum("nrghk,ntgk->nghrt", q, inputs.k) * problem.key**-0.5, decay


def _power_problems(dtype: torch.dtype, lengths: tuple[int, ...]) -> Iterator[Problem]:
    longest = lengths[-2:]
    for t, gated, p in itertools.product(lengths, (False, True), (1, 2)):
        base = Problem("power", t, dtype, gated=gated, p=p)
        yield base
        if t > 64:
            yield base._replace(chunk=64)
        if t in longest:
            yield base._replace(chunk=64, initial=True, heads=4, groups=2, key=24, value=40)
    for t, gated in itertools.product((7, *longest), (False, True)):
        plain = Problem("power", t, dtype, key=16, value=16, gated=gated)
        for odd in (plain._replace(p=3, normalize="none"), plain._replace(p=4)):
            yield odd
            yield odd._replace(chunk=64)
    yield Problem("power", 100, dtype, normalize="none", chunk=64, key=32, value=16)
    # without the state: its gradients of such keys leave the range of float16 themselves
    yield Problem("power", 100, dtype, key=16, value=16, p=4, size=30.0, states=False)


def _describe_power(problem: Problem) -> str:
    return f"power p={problem.p}{' unnormalised' * (problem.normalize == 'none')}"


def _run_power(problem: Problem, impl: str, inputs: Inputs) -> list[Tensor]:
    run = power_attention_with_state if problem.states else power_attention
    state = None if inputs.s is None else PowerState(inputs.s, inputs.z)
    made = run(
        *inputs[:4], p=problem.p, normalize=problem.normalize, eps=EPS, chunk=problem.chunk, initial_state=state,
        impl=cast(PowerImpl, impl),
    )  # fmt: skip
    if isinstance(made, Tensor):
        return [made]
    y, (s, z) = made
    return [y, s] if z is None else [y, s, z]


def _exact_power(problem: Problem, inputs: Inputs, rows: Tensor, c: Tensor, seen: Tensor) -> list[Tensor]:
    q, scores, decay = _scores(problem, inputs, rows, c, seen)
    weights = decay.exp() * scores**problem.p
    total, y = weights.sum(-1).permute(0, 3, 1, 2), torch.einsum("nghrt,ntgv->nrghv", weights, inputs.v)
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


def _attention_problems(dtype: torch.dtype, lengths: tuple[int, ...]) -> Iterator[Problem]:
    for t, gated in itertools.product(lengths, (False, True)):
        base = Problem("attention", t, dtype, gated=gated)
        yield base
        yield base._replace(window=50)
        if t in (100, 1000):
            yield base._replace(window=1)
            yield base._replace(heads=6, groups=2, key=24, value=40)
        if t > 1056:
            yield base._replace(window=1056)


def _describe_attention(problem: Problem) -> str:
    return "softmax" if problem.window is None else "window"


def _run_attention(problem: Problem, impl: str, inputs: Inputs) -> list[Tensor]:
    return [attention(*inputs[:4], window=problem.window, impl=cast(AttentionImpl, impl))]


def _exact_attention(problem: Problem, inputs: Inputs, rows: Tensor, c: Tensor, seen: Tensor) -> list[Tensor]:
    _, scores, decay = _scores(problem, inputs, rows, c, seen)
    weights = (scores + decay).softmax(-1)
    return [torch.einsum("nghrt,ntgv->nrghv", weights, inputs.v).flatten(2, 3)]


OPERATORS: Mapping[str, MeasuredOperator] = {
    "power": MeasuredOperator(get_args(PowerImpl), _power_problems, _describe_power, _run_power, _exact_power),
    "attention": MeasuredOperator(
        get_args(AttentionImpl), _attention_problems, _describe_attention, _run_attention, _exact_attention
    ),
}
"""The operators by name: an operator with kernels has one entry here."""
