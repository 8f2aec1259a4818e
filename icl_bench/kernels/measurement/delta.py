"""Problems of the delta rule and of gated linear attention, with keys and gates that break solvers and exponents."""

import dataclasses
import importlib
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal, cast, get_args

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize

from icl_bench.kernels.arguments import accumulation_dtype
from icl_bench.kernels.delta.api import DeltaImpl, delta_rule
from icl_bench.kernels.delta.records import DeltaInputs, DeltaKind, DeltaOptions, Reads
from icl_bench.kernels.measurement.limits import Work
from icl_bench.kernels.measurement.peers import compiled_steps
from icl_bench.kernels.measurement.problem import LENGTHS, Case, ContenderRun, Draw, Peer, Problem, Tensors, table_case

DeltaGate = Literal["none", "head", "channel", "value"]
"""Decays: none, one for a value head, one for each key channel, or one for each value channel."""
KeyDraw = Literal["random", "same", "four", "close"]
"""Keys of a sequence: random, all equal, four distinct ones, or of cosine .9 with one another."""

LEAST_LOG_DECAY, LEAST_UNTIED = -5.0, -0.607
"""The bounds of KDA's safe gate and of RWKV-7; random gates of channels keep them, those of the untied rule the second.
"""
COMPILED_TOKENS = 64
"""Tokens of a call of the compiled plain form, four of its chunks."""
COUNTED_CHUNK = 16
"""Tokens to a chunk where operations are counted: fewest at the narrowest tile of a matrix unit."""


def _fla(problem: "MeasuredDelta", device: torch.device) -> ContenderRun:
    """Return the function of fla for the rule and the gate, with the options that fla's own layer of it gives.

    It scales by 1/sqrt(K) but for RWKV-7. Bounds of gates let the package use tensor cores where it would not without.
    """
    kind = (problem.rule, problem.gate)
    if kind == ("delta", "none"):
        delta = importlib.import_module("fla.ops.delta_rule").chunk_delta_rule
        return lambda x: delta(x["q"], x["k"], x["v"], x["beta"])[0]
    if kind == ("delta", "head"):
        gated = importlib.import_module("fla.ops.gated_delta_rule").chunk_gated_delta_rule
        return lambda x: gated(x["q"], x["k"], x["v"], x["log_decay"], x["beta"], state_v_first=True)[0]
    bounded = {"safe_gate": True, "lower_bound": problem.least}
    if kind == ("delta", "channel"):
        kda = importlib.import_module("fla.ops.kda").chunk_kda
        return lambda x: kda(x["q"], x["k"], x["v"], x["log_decay"], x["beta"], state_v_first=True, **bounded)[0]
    if kind == ("linear", "channel"):
        gla = importlib.import_module("fla.ops.gla").chunk_gla
        return lambda x: gla(x["q"], x["k"], x["v"], x["log_decay"], state_v_first=True)[0]
    rwkv = importlib.import_module("fla.ops.rwkv7").chunk_rwkv7
    rest = {"scale": problem.key**-0.5, "chunk_size": 64, **bounded}
    return lambda x: rwkv(x["q"], x["log_decay"], x["k"], x["v"], x["read"], x["erase"], **rest)[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeasuredDelta(Problem):
    """A problem of `delta_rule`; a large one is checked at a few sequences."""

    op: ClassVar[str] = "delta"
    stepwise: ClassVar[bool] = True
    impls: ClassVar[tuple[str, ...]] = get_args(DeltaImpl)
    plain: ClassVar[tuple[str, ...]] = ("chunked",)
    peers: ClassVar[Mapping[str, Peer]] = {
        "fla": Peer("fla", _fla),
        "compiled chunked": compiled_steps("chunked", COMPILED_TOKENS),
    }
    axes: ClassVar[Mapping[str, str]] = {
        "n": "N", "t": "T", "heads": "H", "groups": "G", "key": "K", "value": "V",
    }  # fmt: skip
    # With products in bfloat16, rounding adds up over tokens where keys are equal and rates 2, and the gradient of a
    # rate is there what is left of 16 terms: the root of their number times the rounding of each.
    bounds: ClassVar[Mapping[torch.dtype, Mapping[str, float]]] = {torch.bfloat16: {"outputs": 2e-2, "gradients": 4e-2}}

    heads: int = 2
    groups: int = 2
    key: int = 32
    value: int = 32
    rule: DeltaKind = "delta"
    reads: Reads = "decayed"
    gate: DeltaGate = "none"
    substeps: int = 1
    keys: KeyDraw = "random"
    beta: float = 1.0
    """Largest rate of writing; each is uniform below it, and with other keys than random all are equal to it."""
    log_decay: float | None = None
    """The logarithm of every decay; drawn by default."""
    bonus: bool = False
    initial: bool = False
    """Begin with a state."""

    @property
    def name(self) -> str:
        """Name of the rule with its gates."""
        rule = {"delta": "delta", "untied": "delta untied", "linear": "gated linear"}[self.rule]
        gate = {"none": "", "head": " gated", "channel": " vector gate", "value": " value gate"}[self.gate]
        return rule + gate

    @property
    def undecayed(self) -> bool:
        """Read the state before the decay of the token, as the untied rule of RWKV-7 does."""
        return self.reads == "undecayed"

    @property
    def least(self) -> float:
        """Lower bound of random log decays."""
        return LEAST_UNTIED if self.rule == "untied" else LEAST_LOG_DECAY

    def inputs(self, device: torch.device) -> Tensors:
        """Draw normal queries and values, keys of length 1, and gates that differ at every position."""
        draw = Draw(1000 * self.t + self.key, device)
        n, t, writes, kind = self.n, self.t, self.substeps * self.t, accumulation_dtype(self.dtype)
        keys = normalize(self._keys(draw, writes), dim=-1)
        drawn = {
            "q": draw.normal(n, t, self.heads, self.key).to(self.dtype),
            "k": keys.to(self.dtype),
            "v": draw.normal(n, writes, self.groups, self.value).to(self.dtype),
        }
        if self.rule == "delta":
            beta = (
                draw.uniform(n, writes, self.groups) if self.keys == "random" else torch.ones_like(drawn["v"][..., 0])
            )
            drawn["beta"] = (self.beta * beta).to(kind)
        if self.rule == "untied":
            erased = normalize(draw.normal(n, t, self.heads, self.key), dim=-1)
            drawn["read"] = (-erased).to(self.dtype)
            drawn["erase"] = (self.beta * draw.uniform(n, t, self.heads, self.key) * erased).to(self.dtype)
        if self.gate != "none":
            width = {"head": (), "channel": (self.key,), "value": (self.value,)}[self.gate]
            gates = logsigmoid(draw.normal(n, t, self.groups, *width) + (2 if t < 1000 else 4))
            gates = gates.clamp(min=self.least) if self.log_decay is None else 0 * gates + self.log_decay
            drawn["log_value_decay" if self.gate == "value" else "log_decay"] = gates.to(kind)
        if self.bonus:
            drawn["bonus"] = draw.normal(n, self.heads, self.key).to(self.dtype)
        if self.initial:
            drawn["state"] = draw.normal(n, self.groups, self.key, self.value).to(kind)
        return drawn

    def _keys(self, draw: Draw, tokens: int) -> Tensor:
        shape = (self.n, tokens, self.heads, self.key)
        if self.keys == "random":
            return draw.normal(*shape)
        if self.keys == "four":
            picks = torch.arange(tokens, device=draw.device) % 4
            return draw.normal(self.n, 4, self.heads, self.key)[:, picks]
        common: Tensor = normalize(draw.normal(self.n, 1, self.heads, self.key), dim=-1)
        if self.keys == "same":
            return common.expand(shape)
        # cosine .9 between two keys: a part sqrt(.9) along a common vector, and sqrt(.1) along independent ones
        own: Tensor = normalize(draw.normal(*shape), dim=-1)
        return math.sqrt(0.9) * common + math.sqrt(0.1) * own

    def first_state(self, device: torch.device) -> tuple[str, Tensor]:
        """Return zeros [N, G, K, V]."""
        shape = (self.n, self.groups, self.key, self.value)
        return "state", torch.zeros(shape, device=device, dtype=accumulation_dtype(self.dtype))

    def run(self, impl: str, inputs: Tensors) -> Tensors:
        """Return y and the last state by a form."""
        bounded = self.gate == "channel" and (self.log_decay is None or self.log_decay >= self.least)
        options = DeltaOptions(self.rule, self.reads, least_log_decay=self.least if bounded else None)
        y, state = delta_rule(DeltaInputs(**inputs), options, impl=cast(DeltaImpl, impl))
        return {"y": y, "state": state}

    def exact(self, inputs: Tensors, index: Tensor) -> Tensors:
        """Return y and the last state, one token after the other, by the recurrences of the papers.

        Beyond the lengths of the check the gradients of so many states take too much memory. The chunked form in
        float64, which the check holds against the recurrences, is exact there.
        """
        if self.t > LENGTHS[-1]:
            return self.run("chunked", inputs)
        n, share = len(index), self.groups // self.heads
        wide = {
            name: inputs[name].repeat_interleave(share, dim=2) for name in ("q", "k", "read", "erase") if name in inputs
        }
        # Taken apart once: the gradient of an index would be a tensor of all tokens, for each of them.
        rows = {name: x.unbind(1) for name, x in (inputs | wide).items() if name not in ("bonus", "state")}
        gates = rows.get("log_decay", rows.get("log_value_decay"))
        state = inputs.get("state", inputs["v"].new_zeros(n, self.groups, self.key, self.value))
        outputs = []
        for t in range(self.t):
            before = state
            if gates is not None:
                state = state * _over_state(gates[t].exp(), self.gate)
            for i in range(self.substeps * t, self.substeps * (t + 1)):
                written = rows["v"][i]
                if self.rule != "linear":
                    seen = (before if self.undecayed else state).mT @ rows.get("read", rows["k"])[i][..., None]
                if self.rule == "delta":
                    written = rows["beta"][i][..., None] * (written - seen[..., 0])
                if self.rule == "untied":
                    state = state + rows["erase"][i][..., None] * seen.mT
                state = state + rows["k"][i][..., None] * written[:, :, None]
            if self.bonus:
                now = inputs["bonus"].repeat_interleave(share, dim=1) * rows["k"][t]
                before = before + now[..., None] * rows["v"][t][:, :, None]
            outputs.append(((before if self.bonus else state) * rows["q"][t][..., None]).sum(2))
        return {"y": self.key**-0.5 * torch.stack(outputs, dim=1), "state": state}

    def work(self) -> Work:
        """Count the products of chunks of 16 tokens, for each value head (zoo: tied, untied, and without a read)."""
        c, k, v = min(COUNTED_CHUNK, self.t), self.key, self.value
        each = {
            "delta": 4 * c * k + 4 * c * v + 6 * k * v + c * c,
            "untied": 8 * c * k + 8 * c * v + 8 * k * v,
            "linear": 2 * c * k + 2 * c * v + 4 * k * v,
        }
        return Work(float(self.n * self.t * self.substeps * self.groups * each[self.rule]))

    def natural_size(self, gradient: str) -> float:
        """Return the size of the terms of a gradient that cancel, or decay to nothing, with constant decays.

        Those of a gate's gradient are products of queries, or keys, with their own gradients, of order 1 over all
        channels; so are those of the vectors that read a state. Without an earlier token there is nothing to read.
        """
        nothing = self.t == 1 and not self.initial
        if gradient not in ("log_decay", "log_value_decay", "read", "erase") or not (
            nothing or self.log_decay is not None
        ):
            return 0.0
        return 1.0 if self.gate == "head" else float(self.key**-0.5)


def _over_state(decay: Tensor, gate: DeltaGate) -> Tensor:
    """Return decays of heads, key channels or value channels, shaped to multiply a state [N, G, K, V]."""
    return {"head": decay[..., None, None], "channel": decay[..., None], "value": decay[:, :, None]}[gate]


VARIANTS: tuple[Mapping[str, object], ...] = (
    {},
    {"gate": "head"},
    {"gate": "channel"},
    {"gate": "channel", "rule": "untied", "reads": "undecayed"},
    {"gate": "channel", "rule": "linear"},
)
"""The tied rule with its gates, the untied rule of RWKV-7, and gated linear attention."""


def delta_problems(dtype: torch.dtype, lengths: tuple[int, ...]) -> Iterator[Problem]:
    """Yield the problems on which the delta rule is checked."""
    for t, variant in itertools.product(lengths, VARIANTS):
        yield MeasuredDelta(t=t, dtype=dtype).varied(variant)
    middle, gated = MeasuredDelta(t=65, dtype=dtype), MeasuredDelta(t=65, dtype=dtype, gate="head")
    for keys, beta in itertools.product(("same", "four", "close"), (1.0, 2.0)):
        # With beta = 2 and equal keys a state only changes sign, and gathers a rounding of k.k at each token: T eps.
        yield middle.varied({"keys": keys, "beta": beta, "t": 33})
    for variant, log_decay in itertools.product(VARIANTS[1:], (0.0, LEAST_LOG_DECAY, -50.0)):
        yield middle.varied({**variant, "log_decay": log_decay})
    for variant in VARIANTS:
        yield middle.varied({**variant, "initial": True, "n": 2, "heads": 1, "key": 24, "value": 40})
    yield dataclasses.replace(gated, heads=1, groups=4, key=64, value=64)
    yield dataclasses.replace(gated, key=128, value=256)
    yield dataclasses.replace(gated, substeps=2, t=33)
    yield dataclasses.replace(gated, reads="undecayed")
    yield dataclasses.replace(middle, rule="linear", gate="value", initial=True)
    yield dataclasses.replace(middle, rule="linear", gate="channel", bonus=True, initial=True)


def delta_table(quick: bool) -> Iterator[Case]:
    """Yield the timed cases on CUDA: many short sequences, and one long one."""
    short = MeasuredDelta(t=256, dtype=torch.bfloat16, n=1024 if quick else 8192, heads=4, groups=4)
    for i, variant in enumerate(VARIANTS):
        yield table_case(short.varied(variant), "auto", "fla", *(("chunked", "compiled chunked") if i == 0 else ()))
    long = dataclasses.replace(short, n=1, t=8192 if quick else 65_536, heads=12, groups=12, key=64, value=64)
    for variant in VARIANTS[:2]:
        yield table_case(long.varied(variant), "auto", "fla")


def small_delta_table(quick: bool) -> Iterator[Case]:
    """Yield the timed cases on a CPU."""
    plain = MeasuredDelta(t=64 if quick else 256, dtype=torch.float32, n=4)
    for variant in VARIANTS:
        yield table_case(plain.varied(variant), "auto")
