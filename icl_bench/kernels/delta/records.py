"""The records of a call of the delta rule, checked once at the door."""

import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from icl_bench.errors import ArgumentError
from icl_bench.kernels.arguments import (
    SEQUENCE_DTYPES,
    accumulation_dtype,
    check_at_least_one,
    check_choice,
    check_scale,
    check_shape,
)

DeltaKind = Literal["delta", "untied", "linear"]
"""The recurrence: a correction written with the key that stores values, an erasure with vectors of its own, or none."""
Reads = Literal["decayed", "undecayed"]
WIDEST_KEY, WIDEST_VALUE = 128, 256
"""Largest widths of keys and values that the Triton form takes."""


class DeltaInputs(NamedTuple):
    """Tensors of a call, for N sequences, T tokens of n sub-steps each, H key heads and G = R H value heads.

    Value head g reads key head g // R. Vectors share one type; `beta`, gates and the state are float32, or float64 with
    float64 vectors, and `log_decay` of channels may have the type of the vectors.
    """

    q: Tensor
    """Queries [N, T, H, K]."""
    k: Tensor
    """Keys that write [N, nT, H, K]."""
    v: Tensor
    """Values [N, nT, G, V]."""
    beta: Tensor | None = None
    """Rates of writing [N, nT, G] of "delta"; None for 1."""
    log_decay: Tensor | None = None
    """Logarithms of decays, at most 0: [N, T, G], or [N, T, G, K] for a decay of each key channel; None for 0."""
    read: Tensor | None = None
    """Vectors that read the state before a write [N, nT, H, K]; None for the keys ("delta") or for none ("linear")."""
    erase: Tensor | None = None
    """Vectors that write back what was read [N, nT, H, K]: "untied" alone."""
    log_value_decay: Tensor | None = None
    """Logarithms of decays of the value channels [N, T, G, V], at most 0: "linear" alone, without `log_decay`."""
    bonus: Tensor | None = None
    """Weights u [H, K] or [N, H, K] of the current token: "linear" alone; then a query reads the state before it."""
    state: Tensor | None = None
    """The state before the first token [N, G, K, V]; None for zeros."""

    @property
    def substeps(self) -> int:
        """Writes to a token, n."""
        return self.k.shape[1] // self.q.shape[1]

    @property
    def gates_channels(self) -> bool:
        """Each key channel has a decay of its own."""
        return self.log_decay is not None and self.log_decay.ndim == 4


class DeltaOptions(NamedTuple):
    """Options of a call."""

    rule: DeltaKind = "delta"
    reads: Reads = "decayed"
    """The state that `read` reads at a token: after the decay of this token, or before it."""
    scale: float | None = None
    """Factor on the outputs; None for 1/sqrt(K)."""
    least_log_decay: float | None = None
    """A lower bound that the caller guarantees for gates of channels. From -5 on, Triton takes one product for the
    scores of 16 tokens in place of five; without a bound nothing can overflow either."""
    chunk: int | None = None
    """Tokens to a chunk of the chunked form, a power of two; None to have it chosen."""
    ahead: bool = False
    """Let a query read the state before its token and its decay, as with a bonus: "linear" alone."""


class ErasingWeights(NamedTuple):
    """Parameters of the core of RWKV-7, [M, H, K] where nothing else is said."""

    shift: Tensor
    """Bias of the rates."""
    erasing: Tensor
    weakening: Tensor
    decay: Tensor
    """Bias of the decays, [M, H K]."""
    rate_adapter: Tensor
    """Second factor of the rates, [M, R, H K]."""
    decay_adapter: Tensor
    """Second factor of the decays, [M, R, H K]."""
    bonus: Tensor


class ErasingOptions(NamedTuple):
    """Sizes and numbers of the core of RWKV-7."""

    heads: int
    key_width: int
    value_width: int
    least: float
    """Least log decay, the factor of the sigmoid."""
    rate_at: int
    """First column of what the second factor of the rates reads."""
    decay_at: int
    """First column of what the second factor of the decays reads the tanh of."""


def check_delta(inputs: DeltaInputs, options: DeltaOptions) -> DeltaOptions:
    """Return the options with the scale filled in; raise ArgumentError for inputs or options that break a rule."""
    check_choice("rule", options.rule, get_args(DeltaKind))
    check_choice("reads", options.reads, get_args(Reads))
    _check_fields(inputs, options.rule)
    _check_vectors(inputs)
    _check_gates(inputs)
    ahead = options.ahead or inputs.bonus is not None
    _check_ahead(inputs, options.rule, ahead)
    chunk, bound = options.chunk, options.least_log_decay
    if chunk is not None:
        check_at_least_one("chunk", chunk, "leave it out to have it chosen")
        if chunk & (chunk - 1):
            raise ArgumentError(f"chunk must be a power of two; got {chunk}: leave it out to have it chosen")
    if bound is not None and not -math.inf < bound <= 0:
        raise ArgumentError(f"least_log_decay must be finite and at most 0; got {bound}: leave it out for no bound")
    return options._replace(scale=check_scale(options.scale, inputs.q), ahead=ahead)


ALLOWED: dict[str, tuple[str, ...]] = {
    "beta": ("delta",),
    "read": ("delta", "untied"),
    "erase": ("untied",),
    "log_value_decay": ("linear",),
    "bonus": ("linear",),
}
"""Rules in which an optional input has a meaning."""


def _check_fields(inputs: DeltaInputs, rule: DeltaKind) -> None:
    for name, rules in ALLOWED.items():
        if getattr(inputs, name) is not None and rule not in rules:
            raise ArgumentError(f"{name} belongs to rule {' or '.join(rules)}; got rule={rule!r}: leave it out")
    if rule == "untied" and (inputs.read is None or inputs.erase is None):
        raise ArgumentError("rule='untied' needs read and erase; got None: give both, or use rule='delta'")
    if inputs.log_value_decay is not None and inputs.log_decay is not None:
        raise ArgumentError("log_value_decay and log_decay exclude each other; got both: leave one out")


def _check_ahead(inputs: DeltaInputs, rule: DeltaKind, ahead: bool) -> None:
    name = "ahead" if inputs.bonus is None else "bonus"
    if ahead and rule != "linear":
        raise ArgumentError(f"{name} belongs to rule linear; got rule={rule!r}: leave it out")
    if ahead and inputs.substeps > 1:
        raise ArgumentError(f"{name} needs one key to a query; got {inputs.substeps}: leave one of them out")
    if ahead and inputs.log_value_decay is not None:
        raise ArgumentError("a query ahead of its token has no log_value_decay; got both: leave one out")


def _check_vectors(inputs: DeltaInputs) -> None:
    q, k, v = inputs[:3]
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 4:
            raise ArgumentError(f"{name} must have 4 axes [N, T, heads, width]; got {list(x.shape)}: reshape it")
    n, t, heads, width = q.shape
    tokens, groups = k.shape[1], v.shape[2]
    if t < 1 or tokens < t or tokens % t != 0:
        raise ArgumentError(f"k must have n T tokens for T queries; got {tokens} for T = {t}: give n keys to a query")
    if heads < 1 or groups < heads or groups % heads != 0:
        raise ArgumentError(
            f"G must be a multiple of H, so that value heads share keys evenly; got G = {groups}, H = {heads}: "
            "change one of them"
        )
    if width < 1 or v.shape[3] < 1:
        raise ArgumentError(f"K and V must be at least 1; got K = {width}, V = {v.shape[3]}: use wider heads")
    keys, axes = (n, tokens, heads, width), "[N, nT, H, K]"
    check_shape("v", v, (n, tokens, groups, v.shape[3]), "[N, nT, G, V]")
    for name in ("k", "read", "erase"):
        x = getattr(inputs, name)
        if x is not None:
            check_shape(name, x, keys, axes)
    _check_kinds(inputs)


def _check_kinds(inputs: DeltaInputs) -> None:
    q = inputs.q
    vectors = {name: x for name in ("q", "k", "v", "read", "erase") if (x := getattr(inputs, name)) is not None}
    kinds = {x.dtype for x in vectors.values()}
    if len(kinds) > 1 or q.dtype not in SEQUENCE_DTYPES:
        raise ArgumentError(
            f"{', '.join(vectors)} must share one type of bfloat16, float16, float32 or float64; "
            f"got {', '.join(sorted(str(kind) for kind in kinds))}: cast them to one"
        )
    devices = {x.device for x in inputs if x is not None}
    if len(devices) > 1:
        raise ArgumentError(f"all inputs must be on one device; got {sorted(map(str, devices))}: move them together")


def _check_gates(inputs: DeltaInputs) -> None:
    n, t, heads, width = inputs.q.shape
    _, tokens, groups, value_width = inputs.v.shape
    if inputs.beta is not None:
        check_shape("beta", inputs.beta, (n, tokens, groups), "[N, nT, G]")
    gate = inputs.log_decay
    if gate is not None and gate.ndim == 4:
        check_shape("log_decay", gate, (n, t, groups, width), "[N, T, G, K]")
    elif gate is not None:
        check_shape("log_decay", gate, (n, t, groups), "[N, T, G] or [N, T, G, K]")
    if inputs.log_value_decay is not None:
        check_shape("log_value_decay", inputs.log_value_decay, (n, t, groups, value_width), "[N, T, G, V]")
    if inputs.bonus is not None and tuple(inputs.bonus.shape) not in ((heads, width), (n, heads, width)):
        raise ArgumentError(f"bonus must be [H, K] or [N, H, K]; got {list(inputs.bonus.shape)}: reshape it to fit")
    if inputs.state is not None:
        check_shape("state", inputs.state, (n, groups, width, value_width), "[N, G, K, V]")
    kind = accumulation_dtype(inputs.q.dtype)
    for name in ("beta", "log_decay", "log_value_decay", "state"):
        x = getattr(inputs, name)
        of_channels = name == "log_decay" and inputs.gates_channels
        if x is not None and x.dtype not in (kind, torch.float64) and not (of_channels and x.dtype == inputs.q.dtype):
            raise ArgumentError(f"{name} must be {kind} for inputs of {inputs.q.dtype}; got {x.dtype}: cast it")
