"""Architectures as commands and reports see them: facts of a listing, matched states, families, training steps."""

import pytest
import torch

from icl_bench.architectures import ARCHITECTURES
from icl_bench.architectures.layers import decays
from icl_bench.errors import StateBudgetError
from icl_bench.harness.matching import Budget, Shape, match
from icl_bench.harness.resolve import Request, arch_components, expand_request, label_of_arch, make_arch
from icl_bench.harness.training.trainer import Machine, Trainer
from icl_bench.runs.record import RunRecord
from tests.reports.factory import make_record, section_of

WITHOUT_OPERATOR = {
    "flipped-power", "log-linear", "lstm", "mesa-net", "nsa", "path", "s-lstm", "ttt-linear", "ttt-mlp"
}  # fmt: skip


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_a_listing_has_every_fact(name: str) -> None:
    card = ARCHITECTURES[name].card()
    assert card.family != "other" and (card.operator != "own" or name in WITHOUT_OPERATOR)
    assert card.recurrence and card.state and card.source.startswith("arXiv "), card


@pytest.mark.parametrize("target", [2_000, 8_000, 32_000])
@pytest.mark.parametrize(
    "text",
    [
        "based",
        "log-linear-delta",
        "m-lstm",
        "mamba",
        "mamba-2",
        "mamba-3",
        "min-gru",
        "min-lstm",
        "power-retention",
        "re-based",
        "ret-net",
        "ttt-linear",
        "ttt-mlp",
    ],
)
def test_a_state_is_matched_within_five_percent(text: str, target: int) -> None:
    assert match(text, Budget(target), Shape(d_model=128, layers=2, length=256)).error <= 0.05


def test_a_state_that_sizes_cannot_reach_is_named() -> None:
    with pytest.raises(StateBudgetError, match="its nearest is h3:d_state=4,d_head=1 with 1,792"):
        match("h3", Budget(2_000), Shape(d_model=128, layers=2, length=256))


@pytest.mark.parametrize(
    ("archs", "family"),
    [
        (("mamba-2:d_key=4", "mamba-2:d_key=8,d_value=16", "mamba-2"), "mamba-2"),
        (("gated-delta-net:d_key=4", "gated-delta-net:heads=2,value_heads=4,d_key=9"), "gated-delta-net"),
        (("ttt-mlp:d_key=4", "ttt-mlp:heads=2,d_key=8"), "ttt-mlp"),
        (("gated-conv+kda:d_key=4", "gated-conv+kda:d_value=5"), "gated-conv+kda"),
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


@pytest.mark.parametrize(
    ("arch", "exempt"),
    [
        ("gated-conv+mamba-2", {"log_rate", "step_bias", "bias", "weight"}),
        ("kda", {"log_rate", "step_bias", "bias", "weight"}),
        ("delta-net", {"weight"}),
        ("gated-conv+m-lstm", {"bias", "weight"}),
    ],
)
def test_training_steps_stay_finite_in_bfloat16_and_no_rate_decays(arch: str, exempt: set[str]) -> None:
    settings = ("model.d_model=16", "train.steps=3", "train.batch=4")
    specs = expand_request(
        Request("assoc-recall:pairs=4", [arch], seeds=(0, 1), precision="bfloat16", settings=settings)
    )
    trainer = Trainer(specs, Machine(torch.device("cpu")))
    for _ in range(3):
        trainer.step()
    assert all(bool(parameter.isfinite().all()) for parameter in trainer.model.parameters())
    names = {name.rpartition(".")[2] for name, own in trainer.model.named_parameters() if not decays(own, recipe=1)}
    assert names == exempt


def test_a_parameter_added_later_is_no_part_of_a_run_at_its_default() -> None:
    (plain,), (given,) = arch_components("power:p=2", 64), arch_components("power:p=2,silu=true,eps=0.1", 64)
    added = {
        "silu",
        "key_norm",
        "output_norm",
        "output_gate",
        "gate_bias",
        "gate_divisor",
        "learned_rope",
        "eps",
        "scale",
    }
    assert not added & set(plain.params)
    assert given.params == {**plain.params, "silu": True, "eps": 0.1} and make_arch(given).silu
    assert given.label == "power:p=2,silu=true,eps=0.1"
    assert label_of_arch("power:p=2,silu=false", 64) == plain.label == "power:p=2"
    assert "silu" in arch_components("power-retention", 64)[0].params
