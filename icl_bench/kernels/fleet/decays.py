"""Logarithms of decays of channels: factor act(x + bias), act = sigmoid, log sigmoid, or exp of at most 0."""

from typing import get_args

import torch
from torch import Tensor
from torch.nn import functional

from icl_bench.kernels.arguments import check_choice, check_shape
from icl_bench.kernels.backends import FleetImpl, takes_triton
from icl_bench.kernels.fleet.records import DecayForm


def channel_decays(
    x: Tensor,
    form: DecayForm,
    factor: float,
    bias: Tensor | None = None,
    *,
    narrow: bool = False,
    impl: FleetImpl = "auto",
) -> Tensor:
    """Return factor act(x + bias) for x [M, ..., C], in float32, or in float64 for x in float64.

    The bias is [M, C], 0 where it is None. Where `narrow` the result has the type of x, which rounds each decay by a
    share of its own logarithm.
    """
    check_choice("form", form, get_args(DecayForm))
    if bias is not None:
        check_shape("bias", bias, (x.shape[0], x.shape[-1]), "[M, C]")
    if takes_triton(impl, x):
        from icl_bench.kernels.fleet.triton.decays import FusedChannelDecays

        fused: Tensor = FusedChannelDecays.apply(x, bias, form, factor, narrow)
        return fused
    wide = x.double() if impl == "reference" else x.to(torch.promote_types(x.dtype, torch.float32))
    z = wide if bias is None else wide + bias.view(x.shape[0], *(1,) * (x.ndim - 2), -1)
    return (factor * activate_decay(z, form)).to(x.dtype if narrow else torch.promote_types(x.dtype, torch.float32))


def decays_with_shares(x: Tensor, factor: float, *, impl: FleetImpl = "auto") -> tuple[Tensor, ...]:
    """Return the logarithms l = factor log sigmoid(x) of decays as `channel_decays` does, 1 - exp(l), and both again.

    The second is what a token writes where what is kept and what is written add up to 1; it has the type of x. They
    are there twice for two readers, whose gradients are added inside.
    """
    if takes_triton(impl, x):
        from icl_bench.kernels.fleet.triton.decays import FusedDecaysWithShares

        fused: tuple[Tensor, ...] = FusedDecaysWithShares.apply(x, factor)
        return fused
    log_decay = channel_decays(x, "log-sigmoid", factor, impl=impl)
    return (log_decay, -log_decay.expm1().to(x.dtype)) * 2


def activate_decay(z: Tensor, form: DecayForm) -> Tensor:
    """Return act(z), in operators of torch."""
    if form == "exp":
        return z.clamp(max=0).exp()
    return z.sigmoid() if form == "sigmoid" else functional.logsigmoid(z)
