"""Second factors of adapters with what reads them: products of few columns that are not written by themselves."""

from typing import get_args

from torch import Tensor

from icl_bench.kernels.arguments import check_choice, check_shape
from icl_bench.kernels.backends import FleetImpl, takes_triton
from icl_bench.kernels.fleet.decays import channel_decays
from icl_bench.kernels.fleet.products import gated_product
from icl_bench.kernels.fleet.projection import project
from icl_bench.kernels.fleet.records import ColumnForm, DecayForm

WIDEST_ADAPTER = 128
"""Most columns of x whose weights, and their gradient, a program of Triton holds."""


def adapted_product(x: Tensor, weight: Tensor, bias: Tensor, *, impl: FleetImpl = "auto") -> Tensor:
    """Return x W + b for x [M, ..., R], the weight [M, R, C] and the bias [M, C], in the type of x.

    A batched product of the library first copies the bias to all rows.
    """
    check_shape("weight", weight, (x.shape[0], x.shape[-1], weight.shape[-1]), "[M, R, C]")
    check_shape("bias", bias, (x.shape[0], weight.shape[-1]), "[M, C]")
    if takes_triton(impl, x) and (impl == "triton" or x.shape[-1] <= WIDEST_ADAPTER):
        from icl_bench.kernels.fleet.triton.adapters import FusedAdaptedProduct

        fused: Tensor = FusedAdaptedProduct.apply(x, weight, bias)
        return fused
    parts = (x.double(), weight.double(), bias.double()) if impl == "reference" else (x, weight, bias)
    return project(parts[0].flatten(1, -2), *parts[1:]).view(*x.shape[:-1], -1).to(x.dtype)


def adapted_gate(
    y: Tensor, x: Tensor, weight: Tensor, activation: ColumnForm = "none", *, impl: FleetImpl = "auto"
) -> Tensor:
    """Return y (act(x) W) for y [M, ..., C], x [M, ..., R] and the weight [M, R, C], in the type of y."""
    check_choice("activation", activation, get_args(ColumnForm))
    check_shape("y", y, (*x.shape[:-1], weight.shape[-1]), "[M, ..., C]")
    check_shape("weight", weight, (x.shape[0], x.shape[-1], y.shape[-1]), "[M, R, C]")
    if takes_triton(impl, x) and (impl == "triton" or x.shape[-1] <= WIDEST_ADAPTER):
        from icl_bench.kernels.fleet.triton.adapters import FusedAdaptedGate

        fused: Tensor = FusedAdaptedGate.apply(y, x, weight, activation)
        return fused
    if impl == "reference":
        y, x, weight = y.double(), x.double(), weight.double()
    gate = project(activate_columns(x, activation).flatten(1, -2), weight).view(y.shape)
    return gated_product(y, gate, "none", impl=impl).to(y.dtype)


def activate_columns(x: Tensor, activation: ColumnForm) -> Tensor:
    """Return act(x), in operators of torch."""
    return x if activation == "none" else x.tanh() if activation == "tanh" else x.sigmoid()


def adapted_decays(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    form: DecayForm,
    factor: float,
    activation: ColumnForm = "none",
    *,
    impl: FleetImpl = "auto",
) -> Tensor:
    """Return factor f(act(x) W + bias), logarithms of decays by the form f, for x [M, ..., R], in its type.

    The weight is [M, R, C], the bias [M, C].
    """
    check_choice("form", form, get_args(DecayForm))
    check_choice("activation", activation, get_args(ColumnForm))
    check_shape("weight", weight, (x.shape[0], x.shape[-1], weight.shape[-1]), "[M, R, C]")
    check_shape("bias", bias, (x.shape[0], weight.shape[-1]), "[M, C]")
    if takes_triton(impl, x) and (impl == "triton" or x.shape[-1] <= WIDEST_ADAPTER):
        from icl_bench.kernels.fleet.triton.adapters import FusedAdaptedDecays

        fused: Tensor = FusedAdaptedDecays.apply(x, weight, bias, form, factor, activation)
        return fused
    wide, matrix = (x.double(), weight.double()) if impl == "reference" else (x, weight)
    z = project(activate_columns(wide, activation).flatten(1, -2), matrix).view(*x.shape[:-1], -1)
    return channel_decays(z, form, factor, bias, narrow=True, impl=impl).to(x.dtype)
