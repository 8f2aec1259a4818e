"""What every architecture must hold, over the registry and over the factors that they share."""

import math

import pytest
import torch
from torch import Tensor

from icl_bench.architectures import ARCHITECTURES, Architecture
from icl_bench.architectures.backbone import Backbone
from icl_bench.architectures.base import LayerContext, Mixer
from icl_bench.architectures.initialisation import initialise
from icl_bench.architectures.interface import Tokens
from icl_bench.errors import SpecError
from icl_bench.harness.accounting import Footprint
from icl_bench.harness.conformance import state_tensors, vary
from icl_bench.runs.spec import ModelSpec
from icl_bench.schema import build, parse_spec

D_MODEL = 12
MODEL = ModelSpec(d_model=D_MODEL)
SPECS = [
    "based:heads=2,d_key=3",
    "comba:heads=1,value_heads=2,d_key=3,d_value=4",
    "delta-net:heads=2",
    "differential:heads=2,d_key=3",
    "elastic:degrees=[1|3],heads=2,d_key=3",
    "elastic:degrees=[2|4],p=2,heads=2,d_key=2,conv=0",
    "flipped-power:p=2,heads=2,d_key=3,conv=0",
    "flipped-power:p=3,heads=2",
    "fox:heads=2",
    "fox:pro=false,conv=2",
    "gated-conv",
    "gated-conv:conv=1",
    "gated-delta-net:heads=2,conv=0,output_gate=false,negative_eigenvalues=true",
    "gated-delta-net:heads=2,value_heads=4,d_key=3,d_value=2",
    "gated-delta-product:heads=1,value_heads=2,n=3,gate=false,d_key=3",
    "gated-delta-product:heads=2,d_key=3,d_value=4",
    "gdn-2:heads=1,value_heads=2,d_key=3",
    "gla:heads=2",
    "gsa:heads=2,slots=3,conv=2,d_key=4",
    "gsa:heads=2,slots=5",
    "h3:d_head=3,d_state=4",
    "hgrn:d_inner=7",
    "hgrn2:heads=2",
    "hyena:length=9,hidden=5",
    "kda:heads=2,safe_gate=false,negative_eigenvalues=true",
    "kda:heads=2,value_heads=4,d_key=3,d_value=4",
    "linear",
    "linear:feature_map=elu,conv=0",
    "linear:feature_map=exp,normalizer=raw",
    "linear:feature_map=relu,gate=true",
    "linear:feature_map=silu-l2",
    "linear:feature_map=softplus,rope=true,heads=2",
    "log-linear:heads=2,d_key=3,levels=5",
    "log-linear-delta:heads=1,value_heads=2,d_key=3,levels=5,conv=0",
    "log-linear-delta:heads=2,d_key=3,levels=5",
    "lstm:d_inner=7",
    "m-lstm:heads=2,d_value=5",
    "mamba:d_state=3",
    "mamba-2:conv=0",
    "mamba-2:heads=2,d_key=3",
    "mamba-3:heads=2,d_key=10",
    "mesa-net:conv=0,d_key=4",
    "mesa-net:heads=2,d_value=5",
    "min-gru:d_inner=7",
    "min-lstm:d_inner=7",
    "mla:heads=2,d_latent=5,d_rope=4,d_value=3",
    "nsa:heads=2,w=3,block=2,selected=3",
    "path:heads=2,d_key=3",
    "power:p=1",
    "power:p=2",
    "power:p=2,gate=true,rope=true,heads=2",
    "power:p=2,heads=2,key_norm=rms,scale=0.5,eps=0.1",
    "power:p=2,head_gain=true,heads=2,d_key=3",
    "power:p=2,kv_heads=2,d_value=5,conv=0",
    "power:p=2,normalizer=rms",
    "power:p=2,offset=learned,heads=2,kv_heads=1",
    "power:p=3,degrees=[1|3],heads=4,kv_heads=2,d_key=2,gate=true",
    "power:p=4,degrees=[2|4],heads=2,d_key=2",
    "power:p=2,spectrum=learned,heads=2,d_key=3,gate=true",
    "power:p=3,spectrum=token,heads=2,d_key=3",
    "power:p=4,spectrum=length,heads=2,kv_heads=1,d_key=2",
    "power:p=3,spectrum=centred,offset=learned,heads=2,d_key=2",
    "power:p=2,relative_eps=true,eps=0.1,heads=2,kv_heads=1,d_key=3,gate=true",
    "power:p=4,relative_eps=true,eps=0.01,heads=2,d_key=2",
    "power:p=3",
    "power:p=3,normalizer=raw,heads=2,d_key=3",
    "power:p=4,d_key=2",
    "power:p=5,d_key=2,gate=true",
    "power:p=6,d_key=2",
    "power-retention:heads=2,d_key=4",
    "power-retention:heads=4,kv_heads=2,d_key=2,learned_rope=true",
    "re-based:heads=2,d_key=3",
    "ret-net:heads=2",
    "rwkv-6:heads=1,d_key=3,d_value=5",
    "rwkv-6:heads=2",
    "rwkv-7:heads=1,d_key=3,d_value=5",
    "rwkv-7:heads=2",
    "s-lstm:heads=2,d_inner=6",
    "softmax",
    "softmax:alibi=true,heads=2,kv_heads=1",
    "softmax:d_key=3,d_value=7,conv=2",
    "softmax:gate=true,rope=true,heads=2,kv_heads=1,gate_divisor=4.0",
    "softmax:key_norm=l2,output_norm=true,output_gate=sigmoid",
    "softmax:sinks=true,heads=2,kv_heads=1,rope=true",
    "ttt-linear:heads=2,d_key=4",
    "ttt-mlp:heads=2,d_key=2,conv=2",
    "window",
    "window:alibi=true,w=3",
    "window:w=1,conv=0",
    "window:w=3,gate=true,kv_heads=2",
    "window:w=4,rope=true,heads=2",
]
LENGTH = 9


def architecture(text: str) -> Architecture:
    spec = parse_spec(text)
    return build(ARCHITECTURES[spec.name], spec.params, spec.name)


def mixer(text: str, members: int = 2, index: int = 0):
    made = architecture(text).build(members, D_MODEL, LayerContext(index, layers=3))
    initialise(made, list(range(members)))
    return made.double()


def varied(made: Mixer) -> Mixer:
    return vary(made).requires_grad_(False)


def inputs(members: int = 2, batch: int = 2, length: int = LENGTH) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(members, batch, length, D_MODEL, generator=generator, dtype=torch.float64)


def recurrent(layer, x: Tensor):
    state, rows = layer.initial_state(x.shape[1]), []
    for t in range(x.shape[2]):
        y, state = layer.step(x[:, :, t], state, t)
        rows.append(y)
    return torch.stack(rows, dim=2), state


def test_every_architecture_is_covered() -> None:
    assert {parse_spec(text).name for text in SPECS} == set(ARCHITECTURES)


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_lives_in_the_file_of_its_name(name: str) -> None:
    assert ARCHITECTURES[name].__module__ == f"icl_bench.architectures.{name.replace('-', '_')}"


@pytest.mark.parametrize("text", SPECS)
def test_parallel_form_equals_recurrent_form(text: str) -> None:
    layer, x = mixer(text).eval(), inputs()
    stepped, _ = recurrent(layer, x)
    torch.testing.assert_close(layer(x), stepped, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("text", SPECS)
@pytest.mark.parametrize("length", [1, 3, LENGTH])
def test_state_elements_are_what_step_carries(text: str, length: int) -> None:
    layer, x = mixer(text), inputs(length=length)
    _, state = recurrent(layer, x)
    carried = sum(part.numel() for part in state_tensors(state))
    assert architecture(text).state_size(D_MODEL, length).elements * x.shape[0] * x.shape[1] == carried


@pytest.mark.parametrize("text", SPECS)
@pytest.mark.parametrize("changed", [0, 4, LENGTH - 1])
def test_a_token_leaves_every_earlier_output_bit_equal(text: str, changed: int) -> None:
    layer, x = mixer(text), inputs()
    other = x.clone()
    other[:, :, changed] += 1.0
    before, after = layer(x), layer(other)
    assert torch.equal(before[:, :, :changed], after[:, :, :changed])
    assert not torch.equal(before[:, :, changed], after[:, :, changed])


@pytest.mark.parametrize("text", SPECS)
def test_gradients_reach_every_parameter(text: str) -> None:
    layer = varied(mixer(text)).requires_grad_()  # a factor that starts at 0 keeps gradients from the other one
    layer(inputs()).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None and bool((parameter.grad.flatten(1).abs().sum(1) > 0).all()), name


@pytest.mark.parametrize("text", SPECS)
def test_flops_count_the_projections_and_are_finite(text: str) -> None:
    flops = architecture(text).flops(D_MODEL, LENGTH)
    assert flops.weights > 0 and math.isfinite(flops.state) and flops.state >= 0


@pytest.mark.parametrize("text", SPECS)
def test_parameters_are_counted_without_memory(text: str) -> None:
    """A mixer is built on the meta device, where no value can be read."""
    counted = Footprint([architecture(text)], D_MODEL, LENGTH).parameters
    assert counted == sum(parameter[0].numel() for parameter in mixer(text).parameters())


def test_a_window_of_w_sees_exactly_w_keys() -> None:
    layer, x = mixer("window:w=4,conv=0"), inputs()
    base = layer(x)
    for back, seen in ((3, True), (4, False)):
        other = x.clone()
        other[:, :, LENGTH - 1 - back] += 1.0
        assert torch.equal(layer(other)[:, :, -1], base[:, :, -1]) is not seen


def test_alibi_lowers_scores_by_constants_of_the_heads_for_each_token_of_distance() -> None:
    layer, x = mixer("softmax:alibi=true,heads=3,kv_heads=3,d_key=4,d_value=4"), inputs()
    q, k, v = layer.operands(layer.project(x))
    distance = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)
    slopes = torch.tensor([2 ** (-8 / 3), 2 ** (-16 / 3), 2**-8], dtype=torch.float64)
    scores = torch.einsum("mbihk,mbjhk->mbhij", q, k) / 2 - slopes[:, None, None] * distance
    weights = scores.masked_fill(distance < 0, -math.inf).softmax(-1)
    expected = torch.einsum("mbhij,mbjhv->mbihv", weights, v)
    torch.testing.assert_close(layer.mix(x, None), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["softmax", "window"])
def test_alibi_leaves_ids_alone_and_takes_no_gate(name: str) -> None:
    assert "alibi" not in architecture(name).model_dump() and architecture(f"{name}:alibi=true").model_dump()["alibi"]
    with pytest.raises(SpecError, match="gate=false"):
        architecture(f"{name}:alibi=true,gate=true").resolved(D_MODEL)


def test_a_learned_rotation_starts_as_the_fixed_one_and_needs_it() -> None:
    fixed, learned, x = (
        mixer("softmax:rope=true,d_key=4"),
        mixer("softmax:rope=true,learned_rope=true,d_key=4"),
        inputs(),
    )
    torch.testing.assert_close(learned(x), fixed(x), rtol=1e-6, atol=1e-6)
    with pytest.raises(SpecError, match="set rope=true"):
        architecture("softmax:learned_rope=true").resolved(D_MODEL)


@pytest.mark.parametrize("factor", ["key_norm", "output_gate"])
def test_the_word_none_may_be_typed(factor: str) -> None:
    assert architecture(f"softmax:{factor}=none") == architecture("softmax")


def test_linear_is_power_one() -> None:
    x = inputs()
    torch.testing.assert_close(mixer("linear")(x), mixer("power:p=1")(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("text", "elements"), [("power:p=2", 4 * 6 * 4), ("power:p=3", 4 * 10 * 3), ("linear", 4 * 9)])
def test_state_grows_by_the_binomial_law(text: str, elements: int) -> None:
    assert architecture(text).state_size(D_MODEL, 100).sums == elements


def test_members_are_independent_and_start_from_their_own_seeds() -> None:
    pair = Backbone([3, 8], Tokens(11), [architecture("power:p=2")] * 2, MODEL, "auto")
    alone = Backbone([8], Tokens(11), [architecture("power:p=2")] * 2, MODEL, "auto")
    for both, own in zip(pair.parameters(), alone.parameters(), strict=True):
        assert torch.equal(both[1:], own)
    ids = torch.arange(2 * 3 * 7).view(2, 3, 7) % 11
    positions = torch.tensor([[1, 6]]).expand(2, 3, 2)
    torch.testing.assert_close(pair(ids, positions)[1:], alone(ids[1:], positions[1:]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_backbone_steps_to_the_same_logits(tied: bool) -> None:
    layers = [architecture("gated-conv"), architecture("softmax:rope=true,heads=2")]
    model = Backbone([0, 1], Tokens(11), layers, MODEL.model_copy(update={"tied": tied}), "auto").double()
    ids = torch.arange(2 * 3 * 7).view(2, 3, 7) * 5 % 11
    positions = torch.arange(7).expand(2, 3, 7)
    whole, state = model(ids, positions), model.initial_state(3)
    for t in range(7):
        logits, state = model.step(ids[:, :, t], state, t)
        torch.testing.assert_close(logits, whole[:, :, t], rtol=1e-9, atol=1e-9)
