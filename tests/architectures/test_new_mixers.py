"""An architecture touches one file: two that are not shipped are registered, checked, matched, trained and reported."""

import importlib
import sys
from collections.abc import Iterator

import pytest
import torch
from torch.func import functional_call

from icl_bench.architectures import ARCHITECTURES
from icl_bench.architectures.backbone import Backbone
from icl_bench.architectures.interface import Tokens
from icl_bench.architectures.layers import decays
from icl_bench.errors import SpecError
from icl_bench.harness.matching import Budget, Shape, match
from icl_bench.harness.resolve import Request, arch_components, expand_request, make_arch
from icl_bench.harness.training.trainer import Machine, Trainer
from icl_bench.runs.record import RunRecord
from icl_bench.runs.spec import ModelSpec
from tests.architectures import test_contract as contract
from tests.reports.factory import make_record, section_of

FILES = ("tests.architectures.gated_delta", "tests.architectures.mamba_2")
SPECS = ["gated-delta", "gated-delta:kv_heads=2,d_value=5,rope=true,d_key=4", "mamba-2", "mamba-2:d_state=3,conv=1"]
CHECKS = [
    contract.test_parallel_form_equals_recurrent_form,
    contract.test_gradients_reach_every_parameter,
    contract.test_flops_count_the_projections_and_are_finite,
]
MODEL = ModelSpec(d_model=12, tied=False)


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """Register both architectures as their files do, for one test."""
    for name in FILES:
        sys.modules.pop(name, None)
        importlib.import_module(name)
    yield
    for name in ("gated-delta", "mamba-2"):
        del ARCHITECTURES._entries[name]


@pytest.mark.parametrize("text", SPECS)
def test_the_contract_of_architectures_holds(text: str) -> None:
    for check in CHECKS:
        check(text)
    for length in (1, 9):
        contract.test_state_elements_are_what_step_carries(text, length)
    for changed in (0, 4):
        contract.test_a_token_leaves_every_earlier_output_bit_equal(text, changed)


@pytest.mark.parametrize(
    ("text", "matched"), [("mamba-2", "mamba-2:d_state=60"), ("gated-delta", "gated-delta:d_key=115")]
)
def test_a_state_is_matched_by_what_the_architecture_declares(text: str, matched: str) -> None:
    found = match(text, Budget(20_000), Shape(d_model=64, layers=2, length=64))
    assert found.error <= 0.05 and found.arch.startswith(matched.partition("=")[0])


@pytest.mark.parametrize(
    ("archs", "family"),
    [
        (("mamba-2:d_state=4", "mamba-2:d_state=8,d_head=16", "mamba-2"), "mamba-2"),
        (("gated-delta:d_key=4", "gated-delta:heads=2,d_key=9"), "gated-delta"),
        (("gated-conv+gated-delta:d_key=4", "gated-conv+gated-delta:d_value=5"), "gated-conv+gated-delta"),
    ],
)
def test_sizes_of_an_architecture_are_one_family_in_a_report(archs: tuple[str, ...], family: str) -> None:
    entries = section_of([recorded(arch) for arch in archs]).entries
    assert len(entries) == len(archs) and {entry.family for entry in entries} == {family}


def recorded(text: str) -> RunRecord:
    """Make a record whose components and declarations are those of a run of this architecture."""
    components = arch_components(text, 64)
    label = "+".join(component.label for component in components)
    run = make_record(label, state=1000)
    declared = tuple(make_arch(component).declaration() for component in components)
    spec = {**run.spec, "arch": [component.model_dump(mode="json") for component in components]}
    return run.model_copy(update={"spec": spec, "result": run.result.model_copy(update={"declarations": declared})})


@pytest.mark.parametrize("arch", ["gated-delta:residual=true", "mamba-2", "gated-conv+mamba-2"])
def test_training_steps_stay_finite_and_no_gate_decays(arch: str) -> None:
    settings = ("model.d_model=16", "train.steps=3", "train.batch=4")
    specs = expand_request(Request("assoc-recall:pairs=4", [arch], seeds=(0, 1), settings=settings))
    trainer = Trainer(specs, Machine(torch.device("cpu")))
    for _ in range(3):
        trainer.step()
    assert all(bool(parameter.isfinite().all()) for parameter in trainer.model.parameters())
    exempt = {name.rpartition(".")[2] for name, own in trainer.model.named_parameters() if not decays(own)}
    assert exempt == ({"rate", "bias"} if "delta" in arch else {"rate", "step_bias", "skip", "conv_bias"})


def residual_model(*archs: str) -> Backbone:
    return Backbone([0, 1], Tokens(11), [contract.architecture(arch) for arch in archs], MODEL, "auto").double()


def test_values_of_the_first_layer_reach_later_ones_in_every_form() -> None:
    model = residual_model("softmax", "softmax", "gated-delta:residual=true")
    ids, positions = torch.arange(2 * 3 * 7).view(2, 3, 7) * 5 % 11, torch.arange(7).expand(2, 3, 7)
    whole, state = model(ids, positions), model.initial_state(3)
    for t in range(7):
        logits, state = model.step(ids[:, :, t], state, t)
        torch.testing.assert_close(logits, whole[:, :, t], rtol=1e-9, atol=1e-9)
    apart = residual_model("softmax", "softmax", "gated-delta")
    assert not torch.equal(functional_call(apart, dict(model.named_parameters()), (ids, positions)), whole)
    assert not apart.shares_first_layer


def test_a_first_layer_without_values_is_refused() -> None:
    with pytest.raises(SpecError, match="asks for the values of the first layer, which has none to offer; got a first"):
        residual_model("gated-conv", "gated-delta:residual=true")
