"""Declarations of architectures, as results keep them."""

import pytest

from icl_bench.harness.resolve import arch_components, make_arch
from icl_bench.runs.declarations import ArchitectureDeclaration, CapacityLaw, declaration_by_name

SPECS = [
    "gated-conv", "linear", "linear:feature_map=elu", "power", "power:p=3,gate=true,kv_heads=2", "softmax:heads=2",
    "window:w=3", "torch.nn.modules.linear:Linear:out_features=16",
]  # fmt: skip


@pytest.mark.parametrize("text", SPECS)
def test_a_result_without_declarations_gets_those_that_the_architectures_declare(text: str) -> None:
    for component in arch_components(text, 16):
        assert declaration_by_name(component.model_dump(mode="json")) == make_arch(component).declaration()


def test_a_name_alone_declares_a_layer_that_sees_all() -> None:
    plain = ArchitectureDeclaration(name="mine:Layer")
    assert (plain.law, plain.reach, plain.short_range, plain.shown, plain.size_parameters) == (
        None,
        None,
        False,
        (),
        (),
    )


def test_the_law_speaks_of_power_sums_of_unmapped_keys() -> None:
    (component,) = arch_components("power:p=3,kv_heads=2,d_key=5", 16)
    assert make_arch(component).declaration() == ArchitectureDeclaration(
        name="power",
        size_parameters=("heads", "kv_heads", "d_key", "d_value"),
        shown=("p",),
        law=CapacityLaw(degree=3, key_width=5, key_heads=2, value_width=4),
    )
