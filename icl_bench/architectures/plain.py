"""A user's own layer: any `torch.nn.Module` from [B, T, C] to [B, T, C], looped over the members of a fleet.

The layer is named `package.module:Class`, or by a function that makes one. It is built at the model width, which it
takes as `d_model`, `hidden_size`, `dim`, `n_embd` or as its first argument, under a seed of its own. It is trained in
its parallel form alone; of a tuple that it returns the first is its output. Buffers follow seed and member, and the
module is in evaluation mode wherever it is scored. Its state is counted where it has a method
`state_elements(length)`. Where it has `initial_state(batch)` and `step(x, state, position)`, from [B, C] to [B, C] and
the next state, a tensor or a tuple of states, `icl-bench check-arch` holds both forms and the count against each other.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call

from icl_bench import random
from icl_bench.architectures.base import Architecture, FirstLayer, Flops, LayerContext, Mixer, StateSize
from icl_bench.architectures.initialisation import Initialised
from icl_bench.architectures.layers import Kind, marked
from icl_bench.errors import SpecError
from icl_bench.isolation import isolated_once
from icl_bench.outside import guarded, source_digest
from icl_bench.registry import import_object
from icl_bench.runs.declarations import ArchitectureDeclaration, declaration_by_name
from icl_bench.schema import Spec, Value, parse_spec

KIND_BY_AXES: Mapping[int, Kind] = {0: "vector", 1: "vector", 2: "matrix"}
"""Kind of a parameter of such a layer by its number of axes; weights of more axes, as of a convolution, decay too."""
WIDTH_ARGUMENTS = ("d_model", "hidden_size", "dim", "n_embd")
"""Names by which a class may take the model width."""
LARGEST_STATE = 10**15
"""Elements of a state that no machine holds."""


class LayerFaultError(Exception):
    """A layer from outside the package breaks the contract: the outcome of its runs, no error of a command."""


class LayerFacts(NamedTuple):
    """The facts about a layer that are known without training it, at a model width and a length."""

    source: str | None
    """Digest of its source; None where its package is known by name."""
    state: int | None
    """Elements of its state; None where it does not tell."""
    weights: int
    """Elements of its parameters of two and more axes."""
    parameters: int
    """Elements of all trained parameters."""


class Plain(Architecture):
    """A torch.nn.Module given by its import path."""

    path: str
    """`package.module:Class`."""
    params: Mapping[str, Value]
    """Arguments of the class besides the model width."""

    def resolved(self, d_model: int) -> Self:
        self.facts(d_model, 1)  # what is wrong with the class shows before anything is trained
        return self

    def facts(self, d_model: int, length: int) -> LayerFacts:
        """Return the facts about the layer, from a process of its own where calls are isolated; raise SpecError."""
        text = str(Spec(self.path, self.params))
        return isolated_once(f"{text} cannot be built", facts_of, text, d_model, length)

    def find_facts(self, d_model: int, length: int) -> LayerFacts:
        """Build the layer here and return the facts about it."""
        module = self.make(d_model)
        trained = [own for own in module.parameters() if own.requires_grad]
        weights = sum(own.numel() for own in trained if own.dim() > 1)
        state = self.count_state(module, length)
        return LayerFacts(self.source(), state, weights, sum(own.numel() for own in trained))

    def source(self) -> str | None:
        """Return the digest of the source of the layer, imported already."""
        return source_digest(self.path.partition(":")[0], self.find_class())

    def make(self, d_model: int, seed: int = 0) -> nn.Module:
        """Make one module on the CPU; its class draws the parameters under a global seed, restored afterwards.

        Raise UnknownNameError if the path names nothing, SpecError if it makes no `torch.nn.Module` or the parameters
        do not fit.
        """
        entry = self.find_class()
        building = guarded(f"{self.path} is built as Class(d_model, parameters)", "check them")
        with building, torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.manual_seed(seed)
            module = self.instantiate(entry, d_model)
        if not isinstance(module, nn.Module):
            raise SpecError(f"a layer is a torch.nn.Module; {self.path} makes a {type(module).__name__}; return one")
        return module

    def find_class(self) -> Callable[..., object]:
        """Import the class or the function; raise UnknownNameError if there is none, SpecError if it is neither."""
        entry = import_object(self.path)
        if inspect.isfunction(entry) or (isinstance(entry, type) and issubclass(entry, nn.Module)):
            return entry
        raise SpecError(f"a path names a class of torch.nn.Module; {self.path} is {entry!r:.80}; name the class")

    def instantiate(self, entry: Callable[..., object], d_model: int) -> object:
        """Call the class at this model width."""
        name = width_argument(entry)
        if name is None or name in self.params:
            return entry(d_model, **self.params)
        return entry(**{name: d_model}, **self.params)

    def build(self, members: int, d_model: int, layer: LayerContext) -> Mixer:
        return PlainMixer(members, d_model, self)

    def count_state(self, module: nn.Module, length: int) -> int | None:
        """Return the elements of the state that a module tells; raise SpecError where that is no number of elements."""
        count = getattr(module, "state_elements", None)
        if count is None:
            return None
        with guarded(f"{self.path} counts its state by state_elements({length})"):
            told = count(length)
            elements = int(told)
        if elements != told or not 0 <= elements <= LARGEST_STATE:
            raise SpecError(
                f"state_elements(length) returns a whole number from 0 to 10^15; {self.path} returned {told!r:.40}; "
                "mend it"
            )
        return elements

    def state_size(self, d_model: int, length: int) -> StateSize | None:
        """Count the state of one sequence; it is taken for sums, in float32, since a layer does not tell its type."""
        state = self.facts(d_model, length).state
        return None if state is None else StateSize(sums=state)

    def flops(self, d_model: int, length: int) -> Flops:
        return Flops(2.0 * self.facts(d_model, 1).weights, None)

    def count_parameters(self, d_model: int, layer: LayerContext) -> int:
        return self.facts(d_model, 1).parameters

    def declaration(self) -> ArchitectureDeclaration:
        return declaration_by_name({"name": self.path, "params": self.params})


def facts_of(text: str, d_model: int, length: int) -> LayerFacts:
    """Return the facts about a layer, as typed."""
    spec = parse_spec(text)
    with guarded(f"{text} cannot be built"):  # a property or the parameters of its module may fail too
        return Plain(path=spec.name, params=spec.params).find_facts(d_model, length)


def width_argument(entry: Callable[..., object]) -> str | None:
    """Return the name by which a class takes the model width; None for its first argument.

    A name counts where the class must be given it, or where all of its arguments have defaults.
    """
    try:
        fields = [
            field
            for field in inspect.signature(entry).parameters.values()
            if field.kind in (field.POSITIONAL_OR_KEYWORD, field.KEYWORD_ONLY)
        ]
    except ValueError:  # a class written in C
        return None
    needed = [field.name for field in fields if field.default is field.empty]
    names = [field.name for field in fields] if fields and not needed else needed
    return next((name for name in WIDTH_ARGUMENTS if name in names), None)


class PlainMixer(Mixer, Initialised):
    """One template, called with the parameters and buffers of each member in turn; both are stacked like all others."""

    recurrent = False

    def __init__(self, members: int, d_model: int, config: Plain) -> None:
        super().__init__()
        self.config, self.d_model = config, d_model
        module = config.make(d_model)
        self.template: dict[str, nn.Module] = {"module": module}
        trained = [(name, own) for name, own in module.named_parameters() if own.requires_grad]
        self.names = [name for name, _ in trained]
        self.stacked = nn.ParameterList(
            marked(
                nn.Parameter(torch.empty(members, *own.shape)), decay=True, kind=KIND_BY_AXES.get(own.dim(), "table")
            )
            for _, own in trained
        )
        held = held_tensors(module)
        self.held_names = list(held)
        for i, own in enumerate(held.values()):
            self.register_buffer(f"held{i}", own.detach().expand(members, *own.shape).clone())
        module.requires_grad_(False)

    @property
    def held(self) -> list[Tensor]:
        """Buffers and frozen parameters of all members, [M, ...] each."""
        return [self.get_buffer(f"held{i}") for i in range(len(self.held_names))]

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the module, which is no submodule, too."""
        self.template["module"].train(mode)
        return super().train(mode)

    @torch.no_grad()
    def initialise(self, seeds: Sequence[int], path: str) -> None:
        """Let the class draw its parameters and buffers, from the member's seed and the layer's qualified name."""
        for row, seed in enumerate(seeds):
            fresh = self.config.make(self.d_model, random.stream("init", seed, path) % 2**63)
            drawn = dict(fresh.named_parameters())
            for name, stacked in zip(self.names, self.stacked, strict=True):
                stacked[row].copy_(drawn[name])
            for own, stacked in zip(held_tensors(fresh).values(), self.held, strict=True):
                stacked[row].copy_(own)

    def forward(self, x: Tensor, first: FirstLayer | None = None) -> Tensor:
        return torch.stack([self.call(x[member], member) for member in range(x.shape[0])])

    def call(self, x: Tensor, member: int) -> Tensor:
        """Call the module with the parameters and buffers of a member, [B, T, C] -> [B, T, C].

        Raise LayerFaultError if the output has another shape, OutsideCodeError if the module raises anything.
        """
        module = self.template["module"].to(x.device)
        buffers = dict(zip(self.held_names, (own[member] for own in self.held), strict=True))
        given = dict(zip(self.names, (own[member] for own in self.stacked), strict=True)) | buffers
        with guarded(f"{self.config.path} failed"):
            y = functional_call(module, given, (x,))
        for name, stacked in zip(self.held_names, self.held, strict=True):
            if given[name] is not buffers[name]:  # the module has set another tensor, instead of writing in place
                stacked[member] = given[name].detach()
        return self.output_of(y, x)

    def output_of(self, y: object, x: Tensor) -> Tensor:
        """Return the output, the first of a tuple; raise LayerFaultError if it has not the shape of the input."""
        first = y[0] if isinstance(y, tuple) and y else y
        if isinstance(first, Tensor) and first.is_floating_point() and shape_of(first) == shape_of(x):
            return first.to(x.dtype) if first.dtype == torch.float64 else first
        found = f"{list(first.shape)} {first.dtype}" if isinstance(first, Tensor) else type(first).__name__
        raise LayerFaultError(
            f"a layer maps [B, T, C] to [B, T, C]; {self.config.path} maps {list(x.shape)} to {found}; return one "
            "tensor of the shape of the input"
        )

    def initial_state(self, batch: int) -> Any:
        raise SpecError(f"{self.config.path} has no recurrent form here; evaluate it in parallel")

    def step(self, x: Tensor, state: Any, position: int, first: FirstLayer | None = None) -> tuple[Tensor, Any]:
        raise SpecError(f"{self.config.path} has no recurrent form here; evaluate it in parallel")


def shape_of(x: Tensor) -> tuple[torch.Size, torch.device]:
    """Return shape and device of a tensor."""
    return x.shape, x.device


def held_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the buffers and the frozen parameters of a module by name."""
    frozen = {name: own for name, own in module.named_parameters() if not own.requires_grad}
    return frozen | dict(module.named_buffers())
