"""Power attention whose sum of scores is raised by a share of its largest value, and not by a number.

    y_i = sum_j A_ij v_j / (sum_j A_ij + eps E_i),   E_i = sum_j exp(c_i - c_j) (scale |q_i| |k_j|)^p,   p even

E_i is the sum that keys in the direction of the query would have. So y does not depend on the scale of queries and
keys, and no score is small beside eps because p is large. E_i costs no state: sum_j exp(c_i - c_j) |k_j|^p is degree 0
of the normaliser z, a contraction of it (see `spectrum`). Over a sequence it is linear attention with one channel.
"""

import torch
from torch import Tensor
from torch.nn import functional

from icl_bench.errors import ArgumentError
from icl_bench.kernels.power.api import PowerImpl, power_attention, power_step
from icl_bench.kernels.power.records import PowerInputs, PowerState, repeat_heads
from icl_bench.kernels.power.spectrum import contract_state, norm_power


def relative_attention(
    inputs: PowerInputs, *, p: int, eps: float, scale: float | None = None, impl: PowerImpl = "auto"
) -> Tensor:
    """Return y [N, T, O, V], O = max(H, G), of a sequence without a state that enters.

    The tensors are those of `power_attention`; `eps` is a share of the largest sum, and `impl` an implementation of
    `power_attention`. Raise ArgumentError for an odd p, and KernelUnavailableError as `power_attention` does.
    """
    q, k, v, log_g, _ = inputs
    scale = _check(q, p, scale)
    sums = power_attention(q, k, _with_ones(v), log_g, p=p, scale=scale, normalize="none", impl=impl)
    lengths = repeat_heads(norm_power(k, p), v.shape[2]).to(v.dtype)
    rows, keys = torch.ones_like(v[..., :1]), torch.ones_like(k[..., :1])
    largest = power_attention(rows, keys, lengths, log_g, p=1, scale=1.0, normalize="none", impl=impl)
    return _divide(sums, largest, inputs, p, eps, scale)


def relative_step(
    inputs: PowerInputs, *, p: int, eps: float, scale: float | None = None, impl: PowerImpl = "auto"
) -> tuple[Tensor, PowerState]:
    """Take one token: y [N, O, V] and the state after it, s and z as of `power_step` with normalize = "sum".

    The arguments are those of `relative_attention` without the axis T, and the state before the token.
    """
    q, k, v, log_g, state = inputs
    scale = _check(q, p, scale)
    if state is None or state.z is None:
        raise ArgumentError("a step needs the state with z before the token; got none: start with initial_power_state")
    joint = PowerState(torch.cat([state.s, state.z[..., None]], dim=-1), None)
    sums, new = power_step(q, k, _with_ones(v), log_g, joint, p=p, scale=scale, normalize="none", impl=impl)
    largest = new.s[..., -1:]
    for degree in range(p, 0, -2):
        largest = contract_state(largest, k.shape[-1], degree)
    y = _divide(sums, largest[..., 0], inputs, p, eps, scale)
    return y, PowerState(new.s[..., :-1], new.s[..., -1])


def _divide(sums: Tensor, largest: Tensor, inputs: PowerInputs, p: int, eps: float, scale: float) -> Tensor:
    """Divide the first columns of sums [.., O, V + 1] by the last one and its share of E, from sum |k|^p [.., G, 1]."""
    reach = repeat_heads(norm_power(scale * inputs.q, p), inputs.heads) * repeat_heads(largest, inputs.heads)
    total = sums[..., -1:] + eps * reach
    safe = total.clamp(min=torch.finfo(total.dtype).tiny)  # all keys are zeros, and so are the sums
    return (sums[..., :-1] / safe).to(inputs.v.dtype)


def _with_ones(v: Tensor) -> Tensor:
    return functional.pad(v, (0, 1), value=1.0)


def _check(q: Tensor, p: int, scale: float | None) -> float:
    if p < 2 or p % 2:
        raise ArgumentError(f"a sum of scores that eps is relative to needs an even p; got p = {p}: use 2, 4 or 6")
    return q.shape[-1] ** -0.5 if scale is None else scale
