"""Mixers compute the recurrences of flash-linear-attention, by its plain definitions, where that is installed.

`pip install fla-core==0.6.0 einops` in an environment of its own makes these tests run; they need no GPU.
"""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from icl_bench.kernels.delta.records import DeltaInputs
from tests.architectures.test_contract import inputs, mixer, varied


class Witness(NamedTuple):
    """A recurrence of flash-linear-attention: a module, a function, and its arguments from those of the delta rule."""

    module: str
    function: str
    arguments: Callable[[DeltaInputs], tuple[Any, ...]]


def heads_first(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor.transpose(1, 2) for tensor in tensors)


WITNESSES = {
    "delta-net:heads=2": Witness(
        "delta_rule.naive", "delta_rule_recurrence", lambda i: heads_first(i.q, i.k, i.v, i.beta)
    ),
    "gated-delta-net:heads=2,negative_eigenvalues=true": Witness(
        "gated_delta_rule.naive",
        "naive_recurrent_gated_delta_rule",
        lambda i: (i.q, i.k, i.v, i.beta, i.log_decay),
    ),
    "gated-delta-product:heads=2": Witness(
        "gated_delta_product.naive",
        "naive_recurrent_gated_delta_product",
        lambda i: (i.q, i.k, i.v, i.log_decay, i.beta, i.q.shape[-1] ** -0.5, None, None, False, 2),
    ),
    "gdn-2:heads=2": Witness(
        "gdn2.naive",
        "naive_recurrent_gdn2",
        lambda i: (i.q, i.k, i.v, i.log_decay, i.read / i.k, torch.ones_like(i.v)),
    ),
    "gla:heads=2": Witness("gla.naive", "naive_recurrent_gla", lambda i: (i.q, i.k, i.v, i.log_decay)),
    "hgrn2:heads=2": Witness("gla.naive", "naive_recurrent_gla", lambda i: (i.q, i.k, i.v, i.log_decay)),
    "kda:heads=2": Witness("kda.naive", "naive_recurrent_kda", lambda i: (i.q, i.k, i.v, i.log_decay, i.beta)),
    "kda:heads=2,safe_gate=false": Witness(
        "kda.naive", "naive_recurrent_kda", lambda i: (i.q, i.k, i.v, i.log_decay, i.beta)
    ),
}  # fmt: skip


def witnessed(witness: Witness, operands: DeltaInputs) -> Tensor:
    """Return what the recurrence gives in float32 for operands [N, T, ...], with axes in the order of its operands."""
    pytest.importorskip("fla")
    function = getattr(importlib.import_module(f"fla.ops.{witness.module}"), witness.function)
    plain = DeltaInputs(*(None if x is None else x.float() for x in operands))
    y: Tensor = function(*witness.arguments(plain))[0]
    return y.transpose(1, 2) if y.shape[1] != operands.q.shape[1] else y


@pytest.mark.filterwarnings("ignore")  # fla warns that there is no GPU
@pytest.mark.parametrize("text", list(WITNESSES))
def test_a_core_computes_the_recurrence_of_flash_linear_attention(text: str) -> None:
    made, x = varied(mixer(text, index=1)), inputs(length=40).requires_grad_()
    q, k, v = made.operands(made.project(x))
    operands = DeltaInputs(*(None if y is None else y.flatten(0, 1) for y in made.core.inputs(q, k, v, x)))
    assert_close_with_gradients(made.core(q, k, v, x).flatten(0, 1), witnessed(WITNESSES[text], operands), x)


def assert_close_with_gradients(got: Tensor, expected: Tensor, x: Tensor) -> None:
    """Compare outputs, and gradients of x of a fixed product with them, within two roundings of float32 a token."""
    weights = torch.randn(got.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    slopes = [torch.autograd.grad((y.double() * weights).sum(), x, retain_graph=True)[0] for y in (got, expected)]
    for own, other in ((got, expected.double()), slopes):
        assert float((own - other).abs().max()) <= 2 * x.shape[2] * torch.finfo(torch.float32).eps * float(
            other.abs().max()
        )


@pytest.mark.filterwarnings("ignore")
def test_rwkv_7_computes_the_diagonal_plus_low_rank_rule() -> None:
    made, x = varied(mixer("rwkv-7:heads=2")), inputs(length=40).requires_grad_()
    parts = made.parts(x, torch.nn.functional.pad(x[:, :, :-1], (0, 0, 1, 0)))
    own = made.inputs(parts, parts["v"].unflatten(-1, made.value_shape))
    witness = Witness(
        "generalized_delta_rule.dplr.naive",
        "dplr_recurrence",
        lambda i: heads_first(i.q * i.q.shape[-1] ** 0.5, i.k, i.v, i.read, i.erase, i.log_decay),
    )
    y = witnessed(witness, DeltaInputs(*(None if part is None else part.flatten(0, 1) for part in own)))
    expected = made.finish(y.unflatten(0, x.shape[:2]).double(), own)
    assert_close_with_gradients(made.mix(x, None)[0], expected, x)


def mamba_2_arguments(core: torch.nn.Module, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> tuple[Any, ...]:
    steps, shape = core.decay.steps(x), (*v.shape[:-1], q.shape[-1])
    return q.expand(shape), k.expand(shape), steps[..., None] * v, core.decay.log_decays(steps)


SUMS: dict[str, tuple[str, str, Callable[..., tuple[Any, ...]], bool]] = {
    "based:heads=2,d_key=3": ("based.naive", "naive_parallel_based", lambda core, q, k, v, x: (q, k, v), True),
    "fox:heads=2,pro=false": (
        "forgetting_attn.naive", "naive_forgetting_attn", lambda core, q, k, v, x: (q, k, v, core.forget(x)), False
    ),
    "mamba-2:heads=2": ("simple_gla.naive", "naive_recurrent_simple_gla", mamba_2_arguments, False),
    "re-based:heads=2,d_key=3": (
        "rebased.naive",
        "naive_parallel_rebased",
        lambda core, q, k, v, x: (core.query_norm(q), core.key_norm(k), v),
        True,
    ),
    "ret-net:heads=2": ("retention.naive", "naive_retention", lambda core, q, k, v, x: (q, k, v), True),
}  # fmt: skip
"""Module, function, arguments, and True where heads stand before tokens, of the mixers over sums and of fox."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("text", list(SUMS))
def test_sums_and_attention_are_those_of_flash_linear_attention(text: str) -> None:
    pytest.importorskip("fla")
    module, name, arguments, first = SUMS[text]
    function = getattr(importlib.import_module(f"fla.ops.{module}"), name)
    made, x = varied(mixer(text, members=1)), inputs(members=1, length=40).requires_grad_()
    q, k, v = made.operands(made.project(x))
    given = [part[0].float() for part in arguments(made.core, q, k, v, x)]
    given = list(heads_first(*given)) if first else given
    y = function(*given, scale=1.0) if text.startswith("mamba-2") else function(*given)
    y = y[0] if isinstance(y, tuple) else y
    own = made.core(q, k, v, x)
    got = own - made.core.skip(v) * v if text.startswith("mamba-2") else own
    assert_close_with_gradients(got[0], y.transpose(1, 2) if first else y, x)
