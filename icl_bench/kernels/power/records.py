"""The records of a call of power attention, checked once at the door.

Heads: G of values and of gates, each with a state; J of keys, of which value head g reads key head g // (G / J); and H
of queries. With H a multiple of G, H / G queries read each state; with H a divisor of G, value head g is read by query
head g // (G / H). The output has max(H, G) heads.
"""

from typing import Literal, NamedTuple, get_args

from torch import Tensor

from icl_bench.errors import ArgumentError
from icl_bench.kernels.arguments import accumulation_dtype, check_at_least_one, check_choice, check_scale, check_shape
from icl_bench.kernels.power.expansion import expanded_width

Normalize = Literal["sum", "none"]


class PowerState(NamedTuple):
    """The recurrent state of power attention, in the symmetric basis of `expansion`."""

    s: Tensor
    """[N, G, D, V], D = C(K + p - 1, p): sum of expanded keys times values; float32 (float64 for float64 inputs)."""
    z: Tensor | None
    """[N, G, D]: sum of expanded keys, the normaliser; None when normalize is "none"."""


class PowerInputs(NamedTuple):
    """Tensors of a call: q [N, T, H, K], k [N, T, J, K], v [N, T, G, V], log_g [N, T, G]; in a step without T."""

    q: Tensor
    k: Tensor
    v: Tensor
    log_g: Tensor | None
    state: PowerState | None
    """The state before the first token; None for zeros."""

    @property
    def heads(self) -> int:
        """Heads of the output, max(H, G)."""
        return max(self.q.shape[-2], self.v.shape[-2])

    def with_own_heads(self) -> "PowerInputs":
        """Repeat shared queries and keys, so that q has max(H, G) heads and k has G."""
        return self._replace(q=repeat_heads(self.q, self.heads), k=repeat_heads(self.k, self.v.shape[-2]))


def repeat_heads(x: Tensor, heads: int) -> Tensor:
    """Repeat each head of [.., J, K] for the heads that share it, [.., heads, K]; x itself where J = heads."""
    return x if x.shape[-2] == heads else x.repeat_interleave(heads // x.shape[-2], dim=-2)


class PowerOptions(NamedTuple):
    """Options of a call, as `power_attention` takes them; chunk is None to have it chosen."""

    p: int
    scale: float
    normalize: Normalize
    eps: float
    chunk: int | None

    @property
    def factor(self) -> float:
        """The factor on (q.k)^p, scale^p."""
        return self.scale**self.p


def check_options(
    inputs: PowerInputs, p: int, scale: float | None, normalize: Normalize, eps: float, chunk: int | None
) -> PowerOptions:
    """Return the options of a call; raise ArgumentError for a wrong value, and for a state that does not fit them."""
    check_power(p, normalize)
    if chunk is not None:
        check_at_least_one("chunk", chunk, "leave it out to have it chosen")
    if inputs.state is not None:
        _check_state(inputs.state, inputs, p, normalize)
    return PowerOptions(p, check_scale(scale, inputs.q), normalize, eps, chunk)


def check_power(p: int, normalize: Normalize) -> None:
    """Raise ArgumentError for a power below 1, and for normalised weights that can sum to zero."""
    check_at_least_one("p", p, "use p=2 for power attention or p=1 for linear attention")
    check_choice("normalize", normalize, get_args(Normalize))
    if normalize == "sum" and p > 1 and p % 2 == 1:
        raise ArgumentError(
            f"normalize='sum' needs an even p (or p=1), as odd powers can sum to zero; got p={p}: "
            "use normalize='none' or an even p"
        )


def _check_state(state: PowerState, inputs: PowerInputs, p: int, normalize: Normalize) -> None:
    q, k, v = inputs[:3]
    n, groups, width = q.shape[0], v.shape[-2], expanded_width(k.shape[-1], p)
    check_shape("state.s", state.s, (n, groups, width, v.shape[-1]), "[N, G, D, V]")
    if (state.z is None) != (normalize == "none"):
        raise ArgumentError(
            f"state.z must be a tensor with normalize='sum' and None with 'none'; got normalize={normalize!r} "
            f"and {'None' if state.z is None else 'a tensor'}: make the state with the same normalize"
        )
    if state.z is not None:
        check_shape("state.z", state.z, (n, groups, width), "[N, G, D]")
    kind = accumulation_dtype(q.dtype)
    if state.s.dtype != kind or (state.z is not None and state.z.dtype != kind):
        raise ArgumentError(f"the state must be {kind} for inputs of {q.dtype}; got {state.s.dtype}: cast it")
