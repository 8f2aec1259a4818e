"""What an architecture is: a frozen configuration that builds a mixer and counts its state and its work."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple, Self

from torch import Tensor, nn

from icl_bench.kernels.fleet.rows import take_rows
from icl_bench.registry import Registry
from icl_bench.schema import Frozen


class StateSize(NamedTuple):
    """Elements of the recurrent state of one sequence in one layer."""

    sums: int = 0
    """Running sums, kept in float32: memories and normalisers."""
    cache: int = 0
    """Copies of activations, kept in their dtype: keys, values and the tails of convolutions."""

    @property
    def elements(self) -> int:
        """All elements."""
        return self.sums + self.cache

    def bytes(self, activation_bytes: int) -> int:
        """Size in memory where an activation takes `activation_bytes`."""
        return 4 * self.sums + activation_bytes * self.cache

    def plus(self, other: "StateSize") -> "StateSize":
        """The state of two parts together."""
        return StateSize(self.sums + other.sums, self.cache + other.cache)


class Flops(NamedTuple):
    """Floating-point operations of one token in the forward pass, two a multiply-add, averaged over a sequence.

    The quotient of the two is the weight-state FLOP ratio (arXiv 2507.04239, section 3.2).
    """

    weights: float
    """Activation times parameter."""
    state: float
    """Activation times state, in the recurrent form."""


class Mixer(nn.Module, ABC):
    """A sequence-mixing layer over a fleet, in its parallel and its recurrent form."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """The parallel form, causal in T: [M, B, T, C] -> [M, B, T, C]."""

    def at(self, x: Tensor, positions: Tensor) -> Tensor:
        """The parallel form at these positions alone: [M, B, T, C], [M, B, S] -> [M, B, S, C]."""
        return take_rows(self(x), positions)

    @abstractmethod
    def initial_state(self, batch: int) -> Any:
        """The state before the first token: a NamedTuple of tensors [M, B, ...] or [M·B, ...], possibly nested."""

    @abstractmethod
    def step(self, x: Tensor, state: Any, position: int) -> tuple[Tensor, Any]:
        """One token of the recurrent form: x [M, B, C] at `position` -> output [M, B, C] and the next state."""


class Architecture(Frozen):
    """Base of all architectures. The fields are its parameters; `None` means derived from the model width."""

    shown: ClassVar[tuple[str, ...]] = ()
    """Parameters that its label names even at their defaults."""

    @abstractmethod
    def resolved(self, d_model: int) -> Self:
        """The same with every `None` written out; raises SpecError where the width does not allow it."""

    @abstractmethod
    def build(self, members: int, d_model: int, gain: float, impl: str) -> Mixer:
        """A mixer with parameters not yet drawn.

        Args:
            members: Size of the fleet, M.
            d_model: Model width, C.
            gain: Scale of the output projection at the start, relative to keeping the variance.
            impl: Kernel implementation, `auto` for the best here.
        """

    @abstractmethod
    def state_size(self, d_model: int, length: int) -> StateSize:
        """State of one sequence after `length` tokens, exactly what `step` carries."""

    @abstractmethod
    def flops(self, d_model: int, length: int) -> Flops:
        """Work of one token, averaged over a sequence of `length`."""

    def state_elements(self, d_model: int, length: int) -> int:
        """Elements of the state of one sequence in one layer."""
        return self.state_size(d_model, length).elements


ARCHITECTURES: Registry[type[Architecture]] = Registry("architecture")


def state_tensors(state: object) -> Iterator[Tensor]:
    """Every tensor of a state, through nested tuples."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, tuple):
        for part in state:
            yield from state_tensors(part)
