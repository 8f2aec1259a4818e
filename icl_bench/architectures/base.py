"""The contract of an architecture: a frozen configuration that builds a mixer and counts its state and its work.

It also declares its sizes and its law, so that matching and reports know no architecture by name.
"""

import inspect
import math
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from icl_bench.architectures.layers import PublishedInit
from icl_bench.errors import SpecError
from icl_bench.kernels.fleet.rows import take_rows
from icl_bench.registry import Registry
from icl_bench.runs.declarations import ArchitectureDeclaration, CapacityLaw
from icl_bench.schema import Parameters

Cut = Literal["width", "degree"]
"""Parameters that matching may vary: `width`, those that set widths or windows; `degree`, the power of the scores."""


class StateSize(NamedTuple):
    """Elements of the recurrent state of one sequence in one layer."""

    sums: int = 0
    """Numbers that tokens change, kept in float32: memories, normalisers and reflected keys."""
    cache: int = 0
    """Copies of activations, kept in their dtype: keys, values and the tails of convolutions."""

    @property
    def elements(self) -> int:
        """Number of all elements."""
        return self.sums + self.cache

    def bytes(self, activation_bytes: int) -> int:
        """Return the size in memory where an activation takes `activation_bytes`."""
        return 4 * self.sums + activation_bytes * self.cache

    def plus(self, other: "StateSize") -> "StateSize":
        """Return the size of two states together."""
        return StateSize(self.sums + other.sums, self.cache + other.cache)


class Flops(NamedTuple):
    """Floating-point operations of one token in the forward pass, averaged over a sequence; a multiply-add counts two.

    The quotient of the two fields is the weight-state FLOP ratio (arXiv 2507.04239, section 3.2).
    """

    weights: float
    """Products of activations and parameters."""
    state: float | None
    """Products of activations and state, in the recurrent form; None where a layer from outside does not tell."""


@dataclass(frozen=True)
class LayerContext:
    """The place of a layer in its model."""

    index: int = 0
    """Index of the layer, from 0."""
    layers: int = 1
    """Number of layers of the model."""
    impl: str = "auto"
    """Kernel implementation, `auto` for the best available."""
    canon_width: int = 0
    """Channels of the canon layer on queries, keys and values together; 0 for none."""

    @property
    def output_gain(self) -> float:
        """Scale of output projections at the start, so that the residual sum of all layers keeps its variance."""
        return 1 / math.sqrt(2 * self.layers)


class FirstLayer:
    """Values that the first layer offers to the later ones in one pass of a model, made where a layer asks for them."""

    def __init__(self) -> None:
        self.values: Tensor | None = None
        """Values of the first layer, [M, B, (T,) G, V]; None before that layer has run."""


class DegreeRise(NamedTuple):
    """The rise of the degree of power sums from p - 2 to p, over the first updates of a training."""

    steps: Tensor
    """Number of updates done, a scalar on the device of the layer."""
    updates: float
    """Number of updates until the degree is p."""

    def share(self) -> Tensor:
        """Return the share of degree p in the next update, from 1 / updates to 1."""
        return ((self.steps + 1) / self.updates).clamp(max=1.0)


class Rising(ABC):
    """Part of a mixer with a degree that can rise in training."""

    @abstractmethod
    def raise_degree(self, rise: DegreeRise) -> None:
        """Let the degree rise, where it can."""


class DealsExamples:
    """Mark of a part of a mixer that treats the examples of a training batch by their places in it.

    No part of such a batch can stand alone.
    """


class Mixer(nn.Module, ABC):
    """A sequence-mixing layer over a fleet, in its parallel and its recurrent form.

    The argument `first` of each form is None unless some layer of the model asks for what the first layer offers.
    """

    recurrent: ClassVar[bool] = True
    """Have a recurrent form, `step`."""

    @property
    def takes_pairs(self) -> bool:
        """Want tokens of the parallel form beside the token before each, [M, B, T, 2 C], zeros before the first.

        Tokens alone will do.
        """
        return False

    @property
    def reads_one_product(self) -> bool:
        """Read the input of the parallel form in one product alone, and end with one: have `added_onto`."""
        return False

    def added_onto(self, total: Tensor, rows: Tensor, gain: Tensor, first: FirstLayer | None) -> Tensor:
        """Return the stream `total` with the output added in place, for rows to which gains [M, C] are to be applied.

        Only where `reads_one_product`; `total` and `rows` are [M, B, T, C].
        """
        raise NotImplementedError

    @property
    def value_shape(self) -> tuple[int, int] | None:
        """Heads and width of the values that fill `FirstLayer.values` where this is the first layer; None for none."""
        return None

    @property
    def asks_first_layer(self) -> bool:
        """Read `FirstLayer.values`, of the shape of its own values, in a layer that is not the first."""
        return False

    def scale_scores(self, gains: Tensor) -> bool:
        """Multiply the weights of queries and of keys by the gain of each member [M]; return False if it has none."""
        return False

    @abstractmethod
    def forward(self, x: Tensor, first: FirstLayer | None = None) -> Tensor:
        """Compute the parallel form, causal in T: [M, B, T, C] -> [M, B, T, C]."""

    def forward_at(self, x: Tensor, positions: Tensor, first: FirstLayer | None = None) -> Tensor:
        """Compute the parallel form at some positions only: [M, B, T, C], [M, B, S] -> [M, B, S, C]."""
        return take_rows(self(x, first), positions)

    @abstractmethod
    def initial_state(self, batch: int) -> Any:
        """Return the state before the first token: a tensor [M, B, ...] or [M·B, ...], or a tuple of states."""

    @abstractmethod
    def step(self, x: Tensor, state: Any, position: int, first: FirstLayer | None = None) -> tuple[Tensor, Any]:
        """Compute one token of the recurrent form: x [M, B, C] at `position` -> output [M, B, C] and the next state."""


class Knob(NamedTuple):
    """A parameter that matching may vary."""

    name: str
    values: Callable[[Any, int, int], Sequence[int]]
    """Return the values to try, from the architecture as typed, the model width and the length of a sequence.

    In a `range` the matched quantity must rise with the value, so that the search can stop early; of other sequences
    all values are tried. An empty sequence leaves the parameter as it is.
    """


class Card(NamedTuple):
    """The facts about an architecture that a listing shows; texts that its docstrings do not give are empty."""

    name: str
    family: str
    operator: str
    summary: str
    recurrence: str
    """First equation of the state, else of the output."""
    state: str
    """Size of the state of a layer."""
    source: str
    """First arXiv number of its sources."""


RECURRENCE = re.compile(r"([SChcm]_t(\[[^\]]*\])? =|S <-)")
STATE = re.compile(r"State: (.*?)\.(?= [A-Z]|$)")
SOURCE = re.compile(r"Sources?: .*?(arXiv \d{4}\.\d{5})")


class Architecture(Parameters):
    """Base of all architectures. The fields are its parameters; `None` means derived from the model width."""

    family: ClassVar[str] = "other"
    """Heading under which the architecture is listed."""
    operator: ClassVar[str] = "own"
    """Sequence operator of `kernels` that carries the mixer; `own` for none."""
    published_init: ClassVar[PublishedInit] = "gpt-2"
    """Start of its projections in the code of its authors, for `model.init=published`."""
    shown: ClassVar[tuple[str, ...]] = ()
    """Parameters that a label names even at their defaults."""
    size_parameters: ClassVar[tuple[str, ...]] = ()
    """Parameters that set how large the layer is; layers that differ in these alone are of one family."""
    short_range: ClassVar[bool] = False
    """Reach a fixed few tokens back only: a layer in front of the mixer under study."""
    holds_pairs: ClassVar[bool] = True
    """Learns to recall pairs in hundreds of updates; a vector of state takes thousands (`benchmarks/learning.py`)."""
    knobs: ClassVar[Mapping[Cut, tuple[Knob, ...]]] = {}
    """Parameters that matching varies for each cut, in the order in which it tries them."""

    @abstractmethod
    def resolved(self, d_model: int) -> Self:
        """Return a copy with every `None` written out; raise SpecError where the width does not allow it."""

    @abstractmethod
    def build(self, members: int, d_model: int, layer: LayerContext) -> Mixer:
        """Make a mixer for M `members` at model width C, `d_model`; its parameters are not yet drawn."""

    @abstractmethod
    def state_size(self, d_model: int, length: int) -> StateSize | None:
        """Count the state of one sequence after `length` tokens, exactly what `step` carries; None where unknown."""

    @abstractmethod
    def flops(self, d_model: int, length: int) -> Flops:
        """Count the work of one token, averaged over a sequence of `length`."""

    def count_parameters(self, d_model: int, layer: LayerContext) -> int:
        """Return the number of trained parameters of a layer at a model width."""
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in self.build(1, d_model, layer).parameters())

    @property
    def version(self) -> int:
        """Version of the numbers that these parameters give, part of the identity of a run; raised when they change."""
        return 1

    def key_rank(self, d_model: int) -> tuple[int, int] | None:
        """Return the largest rank and the width of the keys of a head; None where keys are no linear map of tokens.

        Keys that are a linear map of the residual stream tell tokens apart in at most `d_model` directions, so that a
        sum over wider keys holds no more than one over keys of width `d_model`: the rest of it is padding.
        """
        return None

    def canon_width(self, d_model: int) -> int:
        """Return the width of queries, keys and values together, where a canon layer can be on them.

        Raise SpecError where there are none, or where the mixer has a convolution of its own in that place.
        """
        raise SpecError(
            f"canon at b needs a mixer with joint queries, keys and values; got {type(self).__name__}; leave b out of "
            "model.canon"
        )

    @property
    def reach(self) -> int | None:
        """Number of the latest tokens that a layer sees, the current one included; None for all."""
        return None

    @property
    def rises(self) -> bool:
        """Have a degree that can rise in training, of a resolved architecture."""
        return False

    @property
    def law(self) -> CapacityLaw | None:
        """Dimensions of the law of capacity, of a resolved architecture; None where the law does not apply."""
        return None

    @classmethod
    def card(cls) -> "Card":
        """Return the facts that a listing shows, as the docstrings of the class and of its module have them."""
        text = inspect.cleandoc(sys.modules[cls.__module__].__doc__ or "")
        paragraphs = text.split("\n\n")
        equations = [line.strip() for part in paragraphs if part.startswith("    ") for line in part.splitlines()]
        recurrence = next((line for line in equations if RECURRENCE.match(line)), *equations[:1] or [""])
        prose = " ".join(" ".join(part.split()) for part in paragraphs if not part.startswith("    "))
        state, source = (pattern.search(prose) for pattern in (STATE, SOURCE))
        return Card(
            name=ARCHITECTURES.name_of(cls),
            family=cls.family,
            operator=cls.operator,
            summary=ARCHITECTURES.summary(ARCHITECTURES.name_of(cls)),
            recurrence=recurrence if "<-" in recurrence else recurrence.split(",   ")[0],
            state=state[1] if state else "",
            source=source[1] if source else "",
        )

    def declaration(self) -> ArchitectureDeclaration:
        """Return what a record keeps of a resolved architecture."""
        return ArchitectureDeclaration(
            name=ARCHITECTURES.name_of(type(self)),
            size_parameters=self.size_parameters,
            shown=self.shown,
            law=self.law,
            reach=self.reach,
            short_range=self.short_range,
        )


ARCHITECTURES_ELSEWHERE = {
    **dict.fromkeys(("attention", "mha", "attn", "self-attention", "transformer", "full-attention"), "softmax"),
    **dict.fromkeys(("sliding-window", "sliding-attn", "swa", "local-attention", "sliding"), "window"),
    **dict.fromkeys(("linear-attention", "lin-attn", "la"), "linear"),
    **dict.fromkeys(("power-attention", "sympow"), "power"),
    **dict.fromkeys(("deltanet", "delta", "delta-rule"), "delta-net"),
    **dict.fromkeys(("gdn", "gateddeltanet"), "gated-delta-net"),
    **dict.fromkeys(("ssm", "s6", "mamba1", "mamba-1"), "mamba"),
    **dict.fromkeys(("mamba2", "ssd"), "mamba-2"),
    **dict.fromkeys(("conv", "base-conv", "baseconv", "short-conv"), "gated-conv"),
    **dict.fromkeys(("rwkv", "rwkv7"), "rwkv-7"),
    **dict.fromkeys(("mlstm", "xlstm"), "m-lstm"),
    **dict.fromkeys(("rnn", "gru", "mingru"), "min-gru"),
    "retention": "ret-net",
}
"""Names that others give to architectures, with ours."""
ARCHITECTURES: Registry[type[Architecture]] = Registry("architecture", Architecture, ARCHITECTURES_ELSEWHERE)
