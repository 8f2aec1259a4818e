"""Problems of the selective scan and of the linear scan."""

import dataclasses
import importlib
import itertools
from collections.abc import Iterator, Mapping
from typing import ClassVar, Self, cast, get_args

import torch
from torch import Tensor
from torch.nn.functional import softplus

from icl_bench.kernels.arguments import accumulation_dtype
from icl_bench.kernels.measurement.associative import associative_selective_scan
from icl_bench.kernels.measurement.limits import Work
from icl_bench.kernels.measurement.peers import compiled_steps
from icl_bench.kernels.measurement.problem import Case, ContenderRun, Draw, Peer, Problem, Tensors, table_case
from icl_bench.kernels.scan.api import ScanImpl, linear_scan_with_state, selective_scan_with_state

COMPILED_TOKENS = 8
"""Tokens of a call of the compiled plain form: PyTorch's compiler takes a minute for 16 and minutes for 32."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScanProblem(Problem):
    """A problem of a scan over C channels; a large one is checked at a few sequences."""

    op: ClassVar[str] = "scan"
    stepwise: ClassVar[bool] = True
    impls: ClassVar[tuple[str, ...]] = get_args(ScanImpl)
    plain: ClassVar[tuple[str, ...]] = ("sequential",)

    channels: int = 32
    initial: bool = False
    """Begin with a state."""


def _mamba(problem: "MeasuredSelective", device: torch.device) -> ContenderRun:
    scan = importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn

    def run(inputs: Tensors) -> Tensor:
        x, dt, b, c = (inputs[name].transpose(1, 2) for name in ("x", "dt", "b", "c"))
        parameters = {"D": inputs["d"][0], "delta_bias": inputs["dt_bias"][0], "delta_softplus": True}
        y: Tensor = scan(x, dt, inputs["a"][0], b, c, **parameters)
        return y.transpose(1, 2)

    return run


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeasuredSelective(ScanProblem):
    """A problem of the selective scan, with S numbers to a channel and M members."""

    axes: ClassVar[Mapping[str, str]] = {"n": "N", "t": "T", "channels": "C", "states": "S", "members": "M"}
    shared: ClassVar[tuple[str, ...]] = ("a", "d", "dt_bias")
    peers: ClassVar[Mapping[str, Peer]] = {
        "mamba-ssm": Peer("mamba_ssm", _mamba, channels_first=True),
        "compiled sequential": compiled_steps("sequential", COMPILED_TOKENS),
        "compiled associative": Peer("compiled", associative_selective_scan),
    }

    states: int = 16
    members: int = 1
    bias: bool = True
    """Steps are the softplus of what is given, plus a bias."""

    @property
    def name(self) -> str:
        """Name of the operator."""
        return "selective scan"

    def inputs(self, device: torch.device) -> Tensors:
        """Draw steps of about .1, log decays of -1 to -S at a step of 1, and normal inputs and vectors."""
        draw, kind = Draw(1000 * self.t + self.channels, device), accumulation_dtype(self.dtype)
        n, t, c, s, m = self.n, self.t, self.channels, self.states, self.members
        steps = draw.normal(n, t, c) - 2
        drawn = {
            "x": draw.normal(n, t, c).to(self.dtype),
            "dt": (steps if self.bias else softplus(steps)).to(self.dtype),
            "a": -(s * draw.uniform(m, c, s) + 1).to(kind),
            "b": draw.normal(n, t, s).to(self.dtype),
            "c": draw.normal(n, t, s).to(self.dtype),
            "d": draw.normal(m, c).to(kind),
        }
        if self.bias:
            drawn["dt_bias"] = (0.1 * draw.normal(m, c)).to(kind)
        if self.initial:
            drawn["initial_state"] = draw.normal(n, c, s).to(kind)
        return drawn

    def run(self, impl: str, inputs: Tensors) -> Tensors:
        """Return y and the last state by a form."""
        y, state = selective_scan_with_state(
            inputs["x"], inputs["dt"], inputs["a"], inputs["b"], inputs["c"], inputs["d"], inputs.get("dt_bias"),
            initial_state=inputs.get("initial_state"), impl=cast(ScanImpl, impl),
        )  # fmt: skip
        return {"y": y, "state": state}

    def exact(self, inputs: Tensors, index: Tensor) -> Tensors:
        """Return y and the last state of the sequences `index`, one token after the other."""
        x, dt, b, c = (inputs[name] for name in ("x", "dt", "b", "c"))
        member = index // (self.n // self.members)
        if self.bias:
            dt = softplus(dt + inputs["dt_bias"][member][:, None])
        a, state, outputs = inputs["a"][member], inputs.get("initial_state", x.new_zeros(())), []
        # Taken apart once: the gradient of an index would be a tensor of all tokens, for each of them.
        for step, given, write, read in zip(dt.unbind(1), (dt * x).unbind(1), b.unbind(1), c.unbind(1), strict=True):
            state = (step[..., None] * a).exp() * state + given[..., None] * write[:, None]
            outputs.append((state * read[:, None]).sum(2))
        return {"y": torch.stack(outputs, dim=1) + inputs["d"][member][:, None] * x, "state": state}

    def few(self) -> Self:
        """Return the problem with no more sequences than it takes to compile its kernels."""
        return dataclasses.replace(self, n=min(self.n, 2 * self.members))

    def first_state(self, device: torch.device) -> tuple[str, Tensor]:
        """Return zeros [N, C, S]."""
        shape = (self.n, self.channels, self.states)
        return "initial_state", torch.zeros(shape, device=device, dtype=accumulation_dtype(self.dtype))

    def work(self) -> Work:
        """Count for each token and number of the state: its decay, its input, its update and its read-out."""
        elements = float(self.n * self.t * self.channels * self.states)
        return Work(operations=6 * elements, exponentials=elements)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeasuredLinear(ScanProblem):
    """A problem of the linear scan."""

    axes: ClassVar[Mapping[str, str]] = {"n": "N", "t": "T", "channels": "C"}
    peers: ClassVar[Mapping[str, Peer]] = {"compiled sequential": compiled_steps("sequential", COMPILED_TOKENS)}

    @property
    def name(self) -> str:
        """Name of the operator."""
        return "linear scan"

    def inputs(self, device: torch.device) -> Tensors:
        """Draw decays between 0 and 1, and normal inputs."""
        draw, kind = Draw(1000 * self.t + self.channels, device), accumulation_dtype(self.dtype)
        shape = (self.n, self.t, self.channels)
        decay = torch.sigmoid(draw.normal(*shape) + 2).to(kind)
        drawn = {"a": decay, "b": draw.normal(*shape).to(self.dtype)}
        if self.initial:
            drawn["initial_state"] = draw.normal(self.n, self.channels).to(kind)
        return drawn

    def run(self, impl: str, inputs: Tensors) -> Tensors:
        """Return y and the last state by a form."""
        y, state = linear_scan_with_state(
            inputs["a"], inputs["b"], initial_state=inputs.get("initial_state"), impl=cast(ScanImpl, impl)
        )
        return {"y": y, "state": state}

    def exact(self, inputs: Tensors, index: Tensor) -> Tensors:
        """Return y and the last state, one token after the other."""
        a, b = inputs["a"], inputs["b"]
        state, outputs = inputs.get("initial_state", torch.zeros_like(b[:, 0])), []
        for decay, given in zip(a.unbind(1), b.unbind(1), strict=True):
            state = decay * state + given
            outputs.append(state)
        return {"y": torch.stack(outputs, dim=1), "state": state}

    def first_state(self, device: torch.device) -> tuple[str, Tensor]:
        """Return zeros [N, C]."""
        shape = (self.n, self.channels)
        return "initial_state", torch.zeros(shape, device=device, dtype=accumulation_dtype(self.dtype))

    def work(self) -> Work:
        """Count a multiplication and an addition for each element."""
        return Work(operations=2.0 * self.n * self.t * self.channels)


def scan_problems(dtype: torch.dtype, lengths: tuple[int, ...]) -> Iterator[Problem]:
    """Yield the problems on which both scans are checked."""
    for t, initial in itertools.product(lengths, (False, True)):
        yield MeasuredSelective(t=t, dtype=dtype, n=2, initial=initial)
        yield MeasuredLinear(t=t, dtype=dtype, n=2, initial=initial)
    middle = MeasuredSelective(t=65, dtype=dtype, n=6, members=3, initial=True)
    yield middle
    yield dataclasses.replace(middle, bias=False)
    yield dataclasses.replace(middle, channels=40, states=64)
    yield dataclasses.replace(middle, channels=7, states=3)


def scan_table(quick: bool) -> Iterator[Case]:
    """Yield the timed cases on CUDA."""
    n, kind = 256 if quick else 1024, torch.bfloat16
    mamba = MeasuredSelective(t=256, dtype=kind, n=n, channels=256)
    yield table_case(mamba, "auto", "mamba-ssm", "sequential", "compiled sequential", "compiled associative")
    yield table_case(dataclasses.replace(mamba, members=32), "auto")
    yield table_case(MeasuredLinear(t=256, dtype=kind, n=n, channels=256), "auto", "sequential", "compiled sequential")


def small_scan_table(quick: bool) -> Iterator[Case]:
    """Yield the timed cases on a CPU."""
    t = 32 if quick else 128
    yield table_case(MeasuredSelective(t=t, dtype=torch.float32, n=4), "auto")
    yield table_case(MeasuredLinear(t=t, dtype=torch.float32, n=4), "auto")
