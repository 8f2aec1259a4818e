"""Sequence operators where sizes end: axes beyond 65,535, offsets beyond 2^31, a device that is not the current one.

The numbers of a part are those of the part alone, since programs share nothing.
"""

import dataclasses

import pytest
import torch
from torch import Tensor

from icl_bench.kernels.measurement.check import input_gradients, leaves_of
from icl_bench.kernels.measurement.convolution import MeasuredConvolution
from icl_bench.kernels.measurement.delta import VARIANTS, MeasuredDelta
from icl_bench.kernels.measurement.problem import Problem
from icl_bench.kernels.measurement.scan import MeasuredLinear, MeasuredSelective
from icl_bench.kernels.measurement.scores import MeasuredAttention, MeasuredPower
from tests.kernels.numerics import assert_replays, poison

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

CUDA, BF16, F32 = torch.device("cuda"), torch.bfloat16, torch.float32
MANY = 70_000
NARROW = MeasuredDelta(t=3, dtype=BF16, heads=1, groups=1, key=16, value=16)
LONG = MeasuredDelta(t=MANY + 1, dtype=F32, heads=1, groups=1, key=16, value=16)
DELTAS = [NARROW.varied(variant) for variant in VARIANTS]
HEADS = {**dict.fromkeys(("q", "k", "v", "y", "beta", "log_decay", "read", "erase"), 2), "state": 1}
CHANNELS = {**dict.fromkeys(("x", "dt", "u", "y"), 2), **dict.fromkeys(("a", "d", "dt_bias", "filters"), 1), "state": 1}
MEMBERS = dict.fromkeys(("x", "dt", "a", "b", "c", "d", "dt_bias", "u", "filters", "y", "state"), 0)
SEQUENCES = dict.fromkeys(("q", "k", "v", "y", "beta", "log_decay", "log_g", "read", "erase", "state", "a", "b"), 0)
SELECTIVE = MeasuredSelective(t=5, dtype=F32, channels=4, states=4)
GROWING = [
    *[(problem, axes) for problem in DELTAS for axes in (HEADS, SEQUENCES)],
    (SELECTIVE, CHANNELS),
    (SELECTIVE, MEMBERS),
    (MeasuredLinear(t=5, dtype=F32, channels=4), SEQUENCES),
    (MeasuredLinear(t=5, dtype=F32, channels=4), {"a": 2, "b": 2, "y": 2, "state": 1}),
    (MeasuredConvolution(t=5, dtype=F32, channels=4), CHANNELS),
    (MeasuredConvolution(t=5, dtype=F32, channels=4), MEMBERS),
    (MeasuredAttention(t=20, dtype=F32, groups=2, key_heads=2, key=16, value=16, gated=True), SEQUENCES),
    (MeasuredAttention(t=20, dtype=F32, heads=1, groups=1, key_heads=1, key=16, value=16, gated=True),
     {"q": 2, "k": 2, "v": 2, "log_g": 2, "y": 2}),
    (MeasuredPower(t=20, dtype=F32, heads=1, groups=1, key_heads=1, key=16, value=16, gated=True, states=False),
     {"q": 2, "k": 2, "v": 2, "log_g": 2, "y": 2}),
]  # fmt: skip
"""Problems with the axis that is made long, of each tensor that has it."""


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    poison(monkeypatch)


def results(problem: Problem, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return outputs, and the gradient of every input of their sum, weighted by the position of a token."""
    leaves = leaves_of(inputs)
    outputs = problem.run("triton", leaves)
    along = {name: torch.ones_like(y) for name, y in outputs.items()}
    weights = 1 + torch.arange(problem.t, device=outputs["y"].device) / problem.t
    along["y"] = along["y"] * weights.view(-1, *[1] * (along["y"].dim() - 2))
    return outputs | {f"d{name}": x for name, x in input_gradients(outputs, leaves, along).items()}


@pytest.mark.parametrize(("problem", "axes"), GROWING, ids=lambda x: x.name if isinstance(x, Problem) else min(x))
def test_an_axis_longer_than_a_grid(problem, axes):
    inputs = problem.inputs(CUDA)
    dims = {name: dim for name, dim in axes.items() if name in inputs}
    times = -(-MANY // next(inputs[name].shape[dim] for name, dim in dims.items()))
    many = {name: x.repeat_interleave(times, dims[name]) if name in dims else x for name, x in inputs.items()}
    found, wanted = results(problem, many), results(problem, inputs)
    shared = set(inputs) - set(dims)
    assert shared <= {"b", "c"}, "an input without the axis has a gradient summed over it"
    for name in sorted(set(wanted) - {f"d{one}" for one in shared}):
        along = axes[name.removeprefix("d") if name.removeprefix("d") in inputs else name]
        one = wanted[name].repeat_interleave(times, along)
        if isinstance(problem, MeasuredDelta | MeasuredLinear):
            assert torch.equal(found[name], one), name
        else:  # tiles of other sizes add in another order
            torch.testing.assert_close(found[name], one, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "problem",
    [
        *[LONG.varied(variant) for variant in VARIANTS],
        MeasuredSelective(t=MANY + 1, dtype=F32, channels=8, states=4),
        MeasuredLinear(t=MANY + 1, dtype=F32, channels=8),
    ],
    ids=lambda problem: problem.name,
)
def test_a_sequence_of_more_tokens_is_its_two_parts(problem):
    """A state joins the parts. Products in three parts of tf32 err by 2^-22, over tokens as a random walk, in both."""
    inputs = problem.inputs(CUDA)
    leaves, cut = leaves_of(inputs), MANY - 3
    whole = problem.run("triton", leaves)
    early, late = (
        {key: x if key in problem.shared else x[:, part] for key, x in leaves.items()}
        for part in (slice(cut), slice(cut, None))
    )
    first = problem.run("triton", early)
    second = problem.run("triton", {**late, problem.first_state(CUDA)[0]: first["state"]})
    parts = {"y": torch.cat([first["y"], second["y"]], 1), "state": second["state"]}
    along = {key: torch.randn_like(y) for key, y in whole.items()}
    found = whole | {f"d{key}": x for key, x in input_gradients(whole, leaves, along).items()}
    wanted = parts | {f"d{key}": x for key, x in input_gradients(parts, leaves, along).items()}
    for key, x in wanted.items():
        error = (found[key] - x).norm() / x.norm()
        assert error <= 2 * MANY**0.5 * 2**-22, f"{key}: {error:.1e}"


def test_a_convolution_of_more_tokens():
    problem = MeasuredConvolution(t=MANY + 1, dtype=F32, channels=2)
    inputs = problem.inputs(CUDA)
    exact_leaves = leaves_of(inputs, torch.float64)
    exact, leaves = problem.run("fft", exact_leaves), leaves_of(inputs)
    found = problem.run("triton", leaves)
    along = {"y": torch.randn_like(found["y"])}
    made, wanted = input_gradients(found, leaves, along), input_gradients(exact, exact_leaves, along)
    for key, x in {"y": exact["y"], **wanted}.items():
        error = ((made | found)[key] - x).norm() / x.norm()
        assert error <= MANY**0.5 * 2**-24, f"{key}: {error:.1e}"  # roundings of a sum add up as a random walk


@pytest.mark.memory(50, in_turn=True)
@pytest.mark.slow
@pytest.mark.parametrize("variant", [VARIANTS[0], VARIANTS[2], VARIANTS[3]], ids=["tied", "channels", "untied"])
def test_gradients_beyond_31_bits(variant):
    one = dataclasses.replace(NARROW.varied(variant), t=1000, heads=16, groups=16)  # too short to be cut into segments
    alone = one.inputs(CUDA)
    n = 2**31 // alone["q"].numel() + 2
    many = {name: x.expand(n, *x.shape[1:]) for name, x in alone.items()}
    problem, leaves = dataclasses.replace(one, n=n), {name: x.detach().requires_grad_() for name, x in many.items()}
    outputs = {"y": problem.run("triton", leaves)["y"]}
    assert outputs["y"].numel() > 2**31
    along = {"y": torch.randn_like(alone["v"])}
    found = input_gradients(outputs, leaves, {"y": along["y"].expand(n, *along["y"].shape[1:])})
    few = leaves_of(alone)
    single = {"y": one.run("triton", few)["y"]}
    assert torch.equal(outputs["y"][-1:], single["y"])
    for name, x in input_gradients(single, few, along).items():
        assert torch.equal(found[name][-1:], x), name


SMALL = [
    *[MeasuredDelta(t=t, dtype=BF16).varied(variant) for variant in VARIANTS for t in (70, 1100)],
    MeasuredSelective(t=70, dtype=BF16, channels=64, n=4, members=2),
    MeasuredLinear(t=70, dtype=BF16, n=2),
    MeasuredConvolution(t=70, dtype=BF16, n=4, members=2),
    MeasuredPower(t=300, dtype=BF16, groups=2, key_heads=2, key=16, value=32, gated=True),
    MeasuredAttention(t=300, dtype=BF16, groups=2, key_heads=2, key=16, value=16, gated=True),
]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("problem", SMALL, ids=lambda problem: f"{problem.name} {problem.t}")
def test_a_device_that_is_not_the_current_one(problem):
    inputs = problem.inputs(CUDA)
    there = {name: x.to("cuda:1") for name, x in inputs.items()}
    with torch.cuda.device(0):
        wanted, found = results(problem, inputs), results(problem, there)
        assert torch.cuda.current_device() == 0
    for name, x in wanted.items():
        assert found[name].device.index == 1 and torch.equal(found[name].cpu(), x.cpu()), name
    with torch.cuda.device(1):
        assert_replays(lambda: list(results(problem, there).values()))
