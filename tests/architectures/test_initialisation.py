"""Initial values of parameters: their distributions, and their dependence on member and name alone."""

import math

import pytest
import torch

from icl_bench.architectures.backbone import Backbone
from icl_bench.architectures.initialisation import (
    constant,
    fixed,
    initialise,
    inverse_softplus,
    log_uniform,
    mapped,
    normal,
    orthogonal,
    uniform_between,
)  # fmt: skip
from icl_bench.architectures.interface import Tokens
from icl_bench.architectures.layers import Stacked, decays
from icl_bench.errors import SpecError
from icl_bench.harness.resolve import arch_components, make_arch
from icl_bench.runs.spec import ModelSpec
from icl_bench.schema import build

SHAPE = torch.Size((64, 64))


@pytest.mark.parametrize(
    ("init", "low", "high"),
    [
        (uniform_between(1, 16), 1.0, 16.0),
        (log_uniform(1e-3, 1e-1), 1e-3, 1e-1),
        (mapped(uniform_between(1, 16), torch.log), 0.0, math.log(16)),
    ],
)
def test_bounded_draws_fill_their_range(init, low: float, high: float) -> None:
    values = init(0, "layer.bias", SHAPE)
    assert values.shape == SHAPE and low < values.min() and values.max() < high
    assert values.min() < low + 0.01 * (high - low) and values.max() > high - 0.01 * (high - low)


def test_half_of_a_log_uniform_draw_is_below_the_geometric_mean() -> None:
    below = (log_uniform(1e-3, 1e-1)(0, "layer.bias", SHAPE) < 1e-2).double().mean()
    assert below == pytest.approx(0.5, abs=0.05)


def test_softplus_undoes_its_inverse() -> None:
    steps = torch.tensor([1e-4, 1e-2, 1.0, 30.0], dtype=torch.float64)
    torch.testing.assert_close(torch.nn.functional.softplus(inverse_softplus(steps)), steps, rtol=1e-9, atol=0)


@pytest.mark.parametrize("shape", [(8, 3), (3, 8), (5, 5)])
def test_an_orthogonal_draw_has_orthonormal_rows_or_columns(shape: tuple[int, int]) -> None:
    matrix = orthogonal(2.0)(0, "layer.weight", torch.Size(shape)) / 2
    product = matrix.T @ matrix if shape[0] >= shape[1] else matrix @ matrix.T
    torch.testing.assert_close(product, torch.eye(min(shape), dtype=torch.float64))


def test_a_member_starts_alike_in_any_fleet_and_constants_start_alike_in_all() -> None:
    class Layer(Stacked):
        def __init__(self, members: int) -> None:
            super().__init__(members)
            self.declare("weight", (3, 4), normal(0.5))
            self.declare("ramp", (4,), fixed(torch.linspace(0, 1, 4)), decay=False)
            self.declare("bias", (4,), constant(6.0), decay=False)

    pair, alone = Layer(2), Layer(1)
    initialise(pair, [3, 8])
    initialise(alone, [8])
    assert torch.equal(pair.weight[1:], alone.weight) and not torch.equal(pair.weight[0], pair.weight[1])
    assert torch.equal(pair.ramp[0], torch.linspace(0, 1, 4)) and bool((pair.bias == 6.0).all())
    assert [name for name, own in pair.named_parameters() if not decays(own, recipe=1)] == ["ramp", "bias"]


def test_members_of_one_seed_are_drawn_once() -> None:
    drawn: list[int] = []

    class Layer(Stacked):
        def __init__(self) -> None:
            super().__init__(4)
            self.declare("weight", (3, 4), lambda seed, *place: drawn.append(seed) or normal(0.5)(seed, *place))

    layer, plain = Layer(), normal(0.5)
    initialise(layer, [3, 8, 3, 3])
    assert drawn == [3, 8]
    for row, seed in zip(layer.weight, [3, 8, 3, 3], strict=True):
        assert torch.equal(row, plain(seed, ".weight", row.shape).float())


def test_the_start_of_gpt_2_is_narrow_and_leaves_gates_alone() -> None:
    layers = [make_arch(one) for text in ("power:conv=2", "m-lstm") for one in arch_components(text, 256)]
    stds = {}
    for init in ("fan-in", "gpt-2"):
        model = Backbone([0], Tokens(512), layers, ModelSpec(d_model=256, init=init), "auto")
        stds[init] = {name: float(own.detach().std()) for name, own in model.named_parameters() if own.numel() > 1000}
    ours, theirs = stds["fan-in"], stds["gpt-2"]
    gain = 0.5  # of output projections, in a model of two layers
    for name in ("embedding.weight", "block0.mixer.project.weight", "block1.mlp.up.weight"):
        # the standard error of a standard deviation of n values is 1 / sqrt(2 n) of it; n is 131,072 and more
        assert theirs[name] == pytest.approx(0.02, rel=0.01) and ours[name] == pytest.approx(1 / 16, rel=0.01)
    assert theirs["block0.mixer.output.weight"] == pytest.approx(gain * 0.02, rel=0.02)
    assert theirs["block1.mlp.down.weight"] == pytest.approx(gain * 0.02, rel=0.02)
    changed = {name for name in ours if ours[name] != theirs[name]}
    kept = {name.rpartition("mixer.")[2] for name in set(ours) - changed}
    assert kept == {"conv.weight", "core.input_gate.weight", "core.forget_gate.weight"}


@pytest.mark.parametrize(("text", "inside", "output"), [
    ("mamba", 3**-0.5 / 16, 0.5 * 3**-0.5 / math.sqrt(512)),
    ("m-lstm", math.sqrt(2 / 5) / 16, 2 / 2 / 16),
    ("power", 0.02, 0.5 * 0.02),
])  # fmt: skip
def test_projections_start_as_in_the_code_of_their_authors(text: str, inside: float, output: float) -> None:
    model_spec = ModelSpec(d_model=256, init="published")
    layers = [make_arch(one) for one in arch_components(text, 256)] * 2
    model = Backbone([0], Tokens(512), layers, model_spec, "auto")
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    # the standard error of a standard deviation of n values is 1 / sqrt(2 n) of it; n is 65,536 and more
    assert float(weights["block0.mixer.project.weight"].std()) == pytest.approx(inside, rel=0.01)
    assert float(weights["block1.mixer.output.weight"].std()) == pytest.approx(output, rel=0.01)
    for name in ("embedding.weight", "block0.mlp.up.weight"):
        assert float(weights[name].std()) == pytest.approx(0.02, rel=0.01)


def test_an_embedding_scale_is_refused_with_the_start_of_gpt_2() -> None:
    with pytest.raises(SpecError, match=r"embedding_scale belongs to init=fan-in, .* got 0\.3; leave one of them out"):
        build(ModelSpec, {"init": "gpt-2", "embedding_scale": 0.3}, "model")


def test_a_gain_multiplies_queries_and_keys_alone_and_needs_some() -> None:
    power = [make_arch(one) for one in arch_components("power:heads=2,d_key=3,kv_heads=1", 16)]
    plain, scaled = (Backbone([3], Tokens(7), power, ModelSpec(d_model=16, gain=gain), "auto") for gain in (1.0, 4.0))
    for (name, before), after in zip(plain.named_parameters(), scaled.parameters(), strict=True):
        factor = torch.ones(before.shape[-1])
        factor[: 9 if name.endswith("project.weight") else 0] = 4.0  # two queries and one key of width 3
        assert torch.equal(after, before * factor), name
    convolutions = [make_arch(one) for one in arch_components("gated-conv", 16)]
    with pytest.raises(SpecError, match="leave it at 1"):
        Backbone([3], Tokens(7), convolutions, ModelSpec(d_model=16, gain=4.0), "auto")
