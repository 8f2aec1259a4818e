"""The base of the problems on which operators are checked and timed: inputs, forms, exact results, peers and counts."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor

from icl_bench.kernels.measurement.limits import Work

LENGTHS = (1, 7, 15, 16, 17, 63, 64, 65, 255, 1000, 4097)
FEW_LENGTHS = (1, 7, 65, 100)
"""Lengths for a quick check, and for a CPU."""

CasePart = Literal["table", "crossover"]
Tensors = dict[str, Tensor]
"""Tensors by their names."""
Subject = Literal["ours", "plain", "torch", "compiled", "fla", "retention", "mamba_ssm"]
"""Owners of contenders: forms of this library with kernels and in operators of torch, and whose package a peer is."""
ContenderRun = Callable[[Tensors], Tensor]
"""Inputs to y."""


class Peer(NamedTuple):
    """A contender from outside on problems of one operator."""

    subject: Subject
    build: Callable[[Any, torch.device], ContenderRun]
    """A problem and a device to the contender, ready for the problem; imports its package."""
    same: bool = True
    """Compute the function of the problem, so that its error means something."""
    channels_first: bool = False
    """Keep sequences [N, T, C] as the package does, the tokens of a channel side by side, so that none is copied."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem(ABC):
    """One problem of an operator: sizes and options are its fields; inputs, outputs and gradients have names.

    A large problem is checked in part, at some sequences or some queries of its outputs.
    """

    op: ClassVar[str]
    """Name of the operator, a key of `operators.OPERATORS`."""
    impls: ClassVar[tuple[str, ...]]
    """Names of the forms."""
    plain: ClassVar[tuple[str, ...]]
    """Forms in operators of torch: slow at the sizes of the table."""
    peers: ClassVar[Mapping[str, Peer]] = {}
    axes: ClassVar[Mapping[str, str]]
    """Letters of the fields that are sizes."""
    checked_axis: ClassVar[Literal[0, 1]] = 0
    """The axis of y of which a part can be checked: sequences, or queries."""
    shared: ClassVar[tuple[str, ...]] = ()
    """Inputs without an axis of sequences."""
    stepwise: ClassVar[bool] = False
    """Exact results are made token by token, in small steps."""
    bounds: ClassVar[Mapping[torch.dtype, Mapping[str, float]]] = {}
    """Allowed errors of outputs and gradients, in types whose bounds differ from those of other operators."""

    t: int
    dtype: torch.dtype
    n: int = 1

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the operator with the options that make it another one."""

    @abstractmethod
    def inputs(self, device: torch.device) -> Tensors:
        """Draw the inputs; the same at every call."""

    @abstractmethod
    def run(self, impl: str, inputs: Tensors) -> Tensors:
        """Return y, and further outputs, by a form."""

    @abstractmethod
    def exact(self, inputs: Tensors, index: Tensor) -> Tensors:
        """Return the exact outputs at `index` along the checked axis, for the part of the inputs in float64."""

    @abstractmethod
    def work(self) -> Work:
        """Count the operations of a forward pass."""

    def first_state(self, device: torch.device) -> tuple[str, Tensor]:
        """Return the name of the input of a state, and a state of zeros; only where a state is passed on."""
        raise NotImplementedError(f"{self.name} passes no state on")

    def takes(self, impl: str) -> bool:
        """Return whether a form serves this problem."""
        return impl in self.impls

    def natural_size(self, gradient: str) -> float:
        """Return the size of terms that cancel in the gradient of an input; its error is not relative to less."""
        return 0.0

    def varied(self, fields: Mapping[str, object]) -> Self:
        """Return the problem with other values of some fields."""
        return dataclasses.replace(self, **fields)  # type: ignore[arg-type]  # the values fit their fields

    def few(self) -> Self:
        """Return the problem with no more sequences than it takes to compile its kernels."""
        return dataclasses.replace(self, n=min(self.n, 2))

    def longer(self) -> Self:
        """Return the problem with sequences of twice the length."""
        return dataclasses.replace(self, t=2 * self.t)

    @property
    def sizes(self) -> dict[str, int]:
        """Sizes by their letters."""
        return {letter: getattr(self, field) for field, letter in self.axes.items()}

    @property
    def title(self) -> str:
        """Name and sizes."""
        return f"{self.name}: " + ", ".join(f"{letter}={size:,}" for letter, size in self.sizes.items())

    @property
    def place(self) -> str:
        """Sizes, and the options that are not the default."""
        options = [
            field.name if value is True else f"{field.name}={value}"
            for field in dataclasses.fields(self)
            if field.name not in (*self.axes, "dtype") and (value := getattr(self, field.name)) != field.default
        ]
        return " ".join([*(f"{letter}={size}" for letter, size in self.sizes.items()), *options])

    def part(self, tensors: Tensors, index: Tensor) -> Tensors:
        """Return the part of inputs, or of their gradients, that belongs to outputs at `index`."""
        if self.checked_axis == 1:
            return tensors
        return {name: x if name in self.shared else x.index_select(0, index) for name, x in tensors.items()}


class Case(NamedTuple):
    """A problem, and the contenders that are timed on it."""

    title: str
    part: CasePart
    problem: Any
    """A `Problem`."""
    contenders: tuple[str, ...]
    curve: tuple[int, int | None] | None = None
    """Width and power of a point of the crossover; the power is None for softmax."""


def table_case(problem: Problem, *contenders: str) -> Case:
    """Return a case of the table, named by its operator and sizes."""
    return Case(problem.title, "table", problem, contenders)


class Draw:
    """Random inputs of a problem: the same numbers for the same seed."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.generator = torch.Generator(device).manual_seed(seed)
        self.device = device

    def normal(self, *shape: int) -> Tensor:
        """Return standard normal numbers in float32."""
        return torch.randn(*shape, generator=self.generator, device=self.device)

    def uniform(self, *shape: int) -> Tensor:
        """Return uniform numbers in [0, 1) in float32."""
        return torch.rand(*shape, generator=self.generator, device=self.device)
