"""Decays of a recurrence that depend on the token: the plain gate, and the step sizes of state-space models."""

import torch
from torch import Tensor
from torch.nn import functional

from icl_bench.architectures.initialisation import Init, constant, mapped, step_bias, stratified
from icl_bench.architectures.layers import Stacked, StackedLinear, spread, widen
from icl_bench.kernels.backends import takes_triton
from icl_bench.kernels.fleet.decays import channel_decays
from icl_bench.kernels.fleet.projection import project

INITIAL_GATE_BIAS = 6.0
"""Bias of a gate at the start: sigmoid(6) = 0.9975, a horizon of about 400 tokens."""
TORCH_GAIN = 3**-0.5
"""Standard deviation, relative to 1 / sqrt(C_in), of the weights that `torch.nn.Linear` starts with."""


class DecayGate(StackedLinear):
    """log sigmoid(x W + b) / divisor: one scalar decay for each token and key-value head."""

    def __init__(
        self,
        members: int,
        d_model: int,
        heads: int,
        bias: Init | None = None,
        decay: bool = True,
        divisor: float = 1.0,
    ) -> None:
        super().__init__(members, d_model, heads, bias=bias or constant(INITIAL_GATE_BIAS), decay=decay)
        self.divisor = divisor

    def forward(self, x: Tensor) -> Tensor:
        """Return the logarithm of the gate, float32, at most 0: [M, ..., C] -> [M, ..., G]."""
        if takes_triton("auto", x):
            rows = project(x.flatten(1, -2), self.weight).view(*x.shape[:-1], -1)
            return channel_decays(rows, "log-sigmoid", 1 / self.divisor, self.bias)
        return functional.logsigmoid(widen(super().forward(x))) / self.divisor


class StepSizes(Stacked):
    """Step sizes d = softplus(x W + c) of state-space models, float32, one for each head: [M, ..., C] -> [M, ..., G].

    At the start softplus(c) is log-uniform in (0.001, 0.1), spread over the heads (Gu and Dao, arXiv 2312.00752,
    section 3.6). Weight decay leaves c alone.
    """

    step_bias: Tensor

    def __init__(self, members: int, d_model: int, heads: int) -> None:
        super().__init__(members)
        self.project = StackedLinear(members, d_model, heads, gain=TORCH_GAIN)
        self.declare("step_bias", (heads,), step_bias(), decay=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.sizes(widen(self.project(x)))

    def sizes(self, raw: Tensor) -> Tensor:
        """Return the step sizes of products with W."""
        return functional.softplus(raw + spread(self.step_bias, raw))


class StepDecay(Stacked):
    """Decays by step sizes, log a = -exp(A) d: [M, ..., C] -> [M, ..., G]; exp(A) starts in (1, 16) over the heads."""

    log_rate: Tensor

    def __init__(self, members: int, d_model: int, heads: int) -> None:
        super().__init__(members)
        self.steps = StepSizes(members, d_model, heads)
        self.declare("log_rate", (heads,), mapped(stratified(1.0, 16.0), torch.log), decay=False)

    def log_decays(self, steps: Tensor) -> Tensor:
        """Return the logarithm of the decays, at most 0, for step sizes [M, ..., G]."""
        return -spread(self.log_rate, steps).exp() * steps

    def forward(self, x: Tensor) -> Tensor:
        return self.log_decays(self.steps(x))
