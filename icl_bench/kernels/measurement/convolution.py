"""Problems of the long convolution."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import ClassVar, Self, cast, get_args

import torch
from torch import Tensor
from torch.nn.functional import pad

from icl_bench.kernels.arguments import accumulation_dtype
from icl_bench.kernels.long_convolution.api import ConvolutionImpl, long_convolution
from icl_bench.kernels.measurement.limits import Work
from icl_bench.kernels.measurement.problem import Case, Draw, Peer, Problem, Tensors, table_case


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeasuredConvolution(Problem):
    """A problem of `long_convolution` over C channels and M members; a large one is checked at a few sequences."""

    op: ClassVar[str] = "long-convolution"
    impls: ClassVar[tuple[str, ...]] = get_args(ConvolutionImpl)
    plain: ClassVar[tuple[str, ...]] = ("toeplitz", "fft")
    axes: ClassVar[Mapping[str, str]] = {"n": "N", "t": "T", "channels": "C", "members": "M"}
    shared: ClassVar[tuple[str, ...]] = ("filters",)
    peers: ClassVar[Mapping[str, Peer]] = {
        "three FFTs": Peer("torch", lambda problem, device: lambda inputs: problem.run("fft", inputs)["y"]),
    }

    channels: int = 16
    members: int = 1
    cached: int = 0
    """Tokens before the first one."""

    @property
    def name(self) -> str:
        """Name of the operator."""
        return "long convolution"

    def inputs(self, device: torch.device) -> Tensors:
        """Draw normal inputs, and normal filters that decay over the sequence to a tenth."""
        draw, length = Draw(1000 * self.t + self.channels, device), self.t + self.cached
        envelope = torch.logspace(0, -1, length, device=device)
        filters = draw.normal(self.members, self.channels, length) * envelope
        drawn = {
            "u": draw.normal(self.n, self.t, self.channels).to(self.dtype),
            "filters": filters.to(accumulation_dtype(self.dtype)),
        }
        if self.cached:
            drawn["cache"] = draw.normal(self.n, self.cached, self.channels).to(self.dtype)
        return drawn

    def run(self, impl: str, inputs: Tensors) -> Tensors:
        """Return y by a form."""
        made = long_convolution(
            inputs["u"], inputs["filters"], cache=inputs.get("cache"), impl=cast(ConvolutionImpl, impl)
        )
        return {"y": made}

    def exact(self, inputs: Tensors, index: Tensor) -> Tensors:
        """Return y of the sequences `index` as a sum over lags."""
        u = torch.cat([inputs["cache"], inputs["u"]], dim=1) if self.cached else inputs["u"]
        taps = inputs["filters"][index // (self.n // self.members)]
        y = torch.zeros_like(u)
        for lag in range(u.shape[1]):
            y = y + pad(u[:, : u.shape[1] - lag] * taps[:, None, :, lag], (0, 0, lag, 0))
        return {"y": y[:, self.cached :]}

    def few(self) -> Self:
        """Return the problem with no more sequences than it takes to compile its kernels."""
        return dataclasses.replace(self, n=min(self.n, 2 * self.members))

    def work(self) -> Work:
        """Count the triangle of a Toeplitz product for each sequence and channel."""
        return Work(float(self.n * self.channels * self.t * (self.t + 1 + 2 * self.cached)))


def convolution_problems(dtype: torch.dtype, lengths: tuple[int, ...]) -> Iterator[Problem]:
    """Yield the problems on which the long convolution is checked."""
    for t in lengths:
        yield MeasuredConvolution(t=t, dtype=dtype, n=2)
    middle = MeasuredConvolution(t=65, dtype=dtype, n=6, members=3, channels=7)
    yield middle
    yield dataclasses.replace(middle, cached=9)
    yield dataclasses.replace(middle, n=40, members=1, channels=1)


def convolution_table(quick: bool) -> Iterator[Case]:
    """Yield the timed cases on CUDA."""
    for t in (256, 1024):
        problem = MeasuredConvolution(
            t=t, dtype=torch.bfloat16, n=(2**16 if quick else 2**19) // t, channels=128, members=16
        )
        yield table_case(problem, "auto", "toeplitz", "three FFTs")


def small_convolution_table(quick: bool) -> Iterator[Case]:
    """Yield the timed cases on a CPU."""
    problem = MeasuredConvolution(t=64 if quick else 256, dtype=torch.float32, n=8)
    yield table_case(problem, "auto", "toeplitz", "fft")
