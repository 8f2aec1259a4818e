"""Canon layers of the model: both forms, causality, the count of the state, ids, and what is refused."""

import pytest
import torch

from icl_bench.architectures import ARCHITECTURES, Architecture
from icl_bench.architectures.backbone import Backbone
from icl_bench.architectures.interface import Tokens
from icl_bench.architectures.layers import decays, kind_of
from icl_bench.errors import SpecError
from icl_bench.harness.accounting import Footprint
from icl_bench.harness.conformance import state_tensors
from icl_bench.harness.matching import Budget, Shape, match
from icl_bench.harness.resolve import Request, expand_request
from icl_bench.runs.spec import ModelSpec
from icl_bench.schema import build, parse_spec

D_MODEL, LENGTH, BATCH = 12, 7, 3
PATTERNS = [
    ("abcd", "linear:conv=0", "softmax:conv=0,silu=true,key_norm=l2"),
    ("acd", "mamba:d_state=3", "rwkv-7:heads=2,value_residual=false"),
    ("b", "delta-net:heads=2,conv=0", "log-linear:heads=2,conv=0,d_key=3"),
    ("d", "gated-conv", "power:p=2"),
]


def architecture(text: str) -> Architecture:
    spec = parse_spec(text)
    return build(ARCHITECTURES[spec.name], spec.params, spec.name)


def backbone(canon: str, *archs: str) -> Backbone:
    settings = ModelSpec(d_model=D_MODEL, canon=canon)
    return Backbone([0, 1], Tokens(11), [architecture(arch) for arch in archs], settings, "auto").double()


def tokens() -> torch.Tensor:
    return torch.arange(2 * BATCH * LENGTH).view(2, BATCH, LENGTH) * 5 % 11


@pytest.mark.parametrize(("canon", "first", "second"), PATTERNS)
def test_steps_give_the_outputs_of_the_parallel_form_and_carry_the_counted_state(
    canon: str, first: str, second: str
) -> None:
    model, ids = backbone(canon, first, second), tokens()
    whole, state = model(ids, torch.arange(LENGTH).expand(2, BATCH, LENGTH)), model.initial_state(BATCH)
    for t in range(LENGTH):
        logits, state = model.step(ids[:, :, t], state, t)
        torch.testing.assert_close(logits, whole[:, :, t], rtol=1e-9, atol=1e-9)
    layers = [architecture(first), architecture(second)]
    counted = Footprint(layers, D_MODEL, LENGTH, canon, 2 * D_MODEL).state
    assert counted is not None
    assert counted.elements * 2 * BATCH == sum(part.numel() for part in state_tensors(tuple(state)))


@pytest.mark.parametrize(("canon", "first", "second"), PATTERNS)
def test_a_token_leaves_every_earlier_output_bit_equal(canon: str, first: str, second: str) -> None:
    model, ids = backbone(canon, first, second), tokens()
    other = ids.clone()
    other[:, :, 4] = (other[:, :, 4] + 1) % 11
    before, after = (model(x, torch.arange(LENGTH).expand(2, BATCH, LENGTH)) for x in (ids, other))
    assert torch.equal(before[:, :, :4], after[:, :, :4])
    assert bool((before[:, :, 4:] != after[:, :, 4:]).any(-1).all())


def test_parameters_are_the_counted_ones_start_by_seed_and_are_vectors() -> None:
    model, plain = backbone("abcd", "linear:conv=0"), backbone("none", "linear:conv=0")
    own = {name: parameter for name, parameter in model.named_parameters() if "canon" in name}
    widths = {name: parameter.shape[-1] for name, parameter in own.items()}
    assert widths == {
        "block0.mixer_canon.weight": D_MODEL,
        "block0.mixer.canon.weight": 3 * D_MODEL,
        "block0.mlp_canon.weight": D_MODEL,
        "block0.mlp.canon.weight": 4 * D_MODEL,
    }
    sizes = [Footprint([architecture("linear:conv=0")], D_MODEL, 9, canon, 2 * D_MODEL) for canon in ("abcd", "none")]
    added = sum(parameter[0].numel() for parameter in own.values())
    assert sizes[0].parameters - sizes[1].parameters == added == 4 * 9 * D_MODEL
    assert sizes[0].flops.weights - sizes[1].flops.weights == 2 * added
    assert {kind_of(parameter) for parameter in own.values()} == {"vector"}
    assert not any(decays(parameter, 2) for parameter in own.values())
    assert all(0.2 < float(parameter.detach().abs().max()) <= 0.5 for parameter in own.values())
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name))


def test_a_canon_layer_adds_its_convolution_to_its_input() -> None:
    layer = backbone("a", "linear").blocks[0].mixer_canon
    assert layer is not None
    x = torch.randn(2, 1, 9, D_MODEL, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    padded = torch.nn.functional.pad(x, (0, 0, 3, 0))
    mixed = sum(layer.weight[:, None, j, None] * padded[:, :, 3 - j : 12 - j] for j in range(4))
    torch.testing.assert_close(layer(x), x + mixed, rtol=1e-12, atol=1e-12)


def test_runs_without_canon_keep_their_ids() -> None:
    plain, none, all_places = (
        expand_request(Request("copy", ["linear:conv=0"], settings=own))[0]
        for own in ((), ("model.canon=none",), ("model.canon=abcd",))
    )
    assert plain.id == none.id != all_places.id
    assert "canon" not in plain.model_dump(mode="json")["model"]


@pytest.mark.parametrize(
    ("arch", "settings", "message"),
    [
        ("linear", ("model.canon=b",), "set conv=0"),
        ("mamba", ("model.canon=abcd",), "leave b out"),
        ("rwkv-7", ("model.canon=b",), "leave b out"),
        ("torch.nn:Identity", ("model.canon=b",), "leave b out"),
        ("linear", ("model.canon=acd", "model.mlp=0"), "MLP"),
        ("linear", ("model.canon=ba",), "canon"),
    ],
)
def test_a_place_that_a_model_does_not_have_is_refused_in_one_line(
    arch: str, settings: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        expand_request(Request("copy", [arch], settings=settings))
    assert "\n" not in str(caught.value)


def test_matching_counts_canon_layers() -> None:
    shape = Shape(d_model=64, layers=2, length=256, canon="ac")
    found = match("linear", Budget(16_384), shape)
    spec = parse_spec(found.arch)
    alone = Footprint([build(ARCHITECTURES["linear"], spec.params, "linear")] * 2, 64, 256).state
    assert alone is not None and found.value == alone.elements + 2 * 2 * 3 * 64
    with pytest.raises(SpecError, match="conv=0"):
        match("linear", Budget(16_384), shape._replace(canon="b"))
