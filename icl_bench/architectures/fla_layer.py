"""A layer of the package flash-linear-attention (fla), by the name of its class: `fla:DeltaNet:num_heads=2`.

It is built as `Class(hidden_size=d_model, layer_idx=0, **parameters)`, and treated like a layer of one's own. It stays
in training mode, because several classes evaluate up to 64 tokens by another kernel than they train with. Its state is
measured, where there is a CUDA device: the elements of the cache that it fills.
"""

import functools
import importlib
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Self

import torch
from torch import Tensor, nn

from icl_bench import random
from icl_bench.architectures.base import StateSize
from icl_bench.architectures.plain import LayerFacts, Plain
from icl_bench.errors import SpecError, UnknownNameError
from icl_bench.outside import first_line
from icl_bench.registry import import_object
from icl_bench.schema import Spec, Value, nearest, parse_spec

LOG = logging.getLogger("icl_bench")
PREFIX = "fla:"
GIVEN = ("hidden_size", "d_model", "layer_idx")
"""Parameters of the classes that are not the user's to set."""
SUMS = "recurrent_state"
"""Entry of a cache that has running sums; the others have copies of activations."""


def outside_layer(path: str, params: Mapping[str, Value]) -> Plain:
    """Return the architecture `package.module:Class` or `fla:Class` with its parameters."""
    return (FlaLayer if path.startswith(PREFIX) else Plain)(path=path, params=params)


class CachedLayer(nn.Module):
    """A layer of fla as a map from [B, T, C] to [B, T, C]."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs alone; a class returns them first, before attention weights and cache."""
        y = self.layer(x)
        outputs: Tensor = y[0] if isinstance(y, tuple) else y
        return outputs

    def train(self, mode: bool = True) -> Self:
        """Stay in training mode."""
        return super().train()


class FlaLayer(Plain):
    """A layer of flash-linear-attention given by the name of its class."""

    def find_class(self) -> type[nn.Module]:
        """Import the class.

        Raise SpecError for a missing package or a parameter that the class has not, UnknownNameError for another name.
        """
        try:
            layers = importlib.import_module("fla.layers")
        except ImportError as error:
            raise SpecError(
                f"{self.path} needs flash-linear-attention, which cannot be imported ({first_line(error)}); run "
                "`pip install 'icl-bench[fla]'`"
            ) from None
        name = self.path.removeprefix(PREFIX)
        cls = getattr(layers, name, None)
        if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
            known = ", ".join(layers.__all__)
            raise UnknownNameError(f"fla has no layer {name!r}; {nearest(name, layers.__all__)}known: {known}")
        own = settable(cls)
        for key in self.params:
            if key not in own:
                raise SpecError(
                    f"{self.path} has no parameter {key!r}; {nearest(key, own)}parameters: {', '.join(own)}"
                )
        return cls

    def instantiate(self, entry: Callable[..., object], d_model: int) -> nn.Module:
        """Call the class at this model width, as the first layer that uses a cache."""
        place = {"layer_idx": 0} if "layer_idx" in inspect.signature(entry).parameters else {}
        layer = entry(hidden_size=d_model, **place, **self.params)
        assert isinstance(layer, nn.Module)
        return CachedLayer(layer)

    def facts(self, d_model: int, length: int) -> LayerFacts:
        """Return the facts about the layer; fla is trusted, so that it needs no process of its own."""
        return self.find_facts(d_model, length)

    def source(self) -> str | None:
        """Return None: the identity of a run holds no sources of installed packages that are known by name."""
        return None

    def state_size(self, d_model: int, length: int) -> StateSize | None:
        """Measure the cache of one sequence; None without a CUDA device, or where the class fills no cache."""
        return measured_state(str(Spec(self.path, self.params)), d_model, length) if torch.cuda.is_available() else None


def settable(cls: type[nn.Module]) -> list[str]:
    """Return the parameters of a class that a spec may set; what it would swallow as keywords is none of them."""
    fields = inspect.signature(cls).parameters.items()
    return [name for name, field in fields if name not in GIVEN and field.kind is not field.VAR_KEYWORD]


@functools.cache
def measured_state(text: str, d_model: int, length: int, device: str = "cuda") -> StateSize | None:
    """Count the elements that a layer, as typed, keeps of one sequence after `length` tokens; None without a cache.

    A layer that raises an error has none; the error is logged.
    """
    spec = parse_spec(text)
    module = FlaLayer(path=spec.name, params=spec.params).make(d_model).to(device)
    x = random.normal_by_name(0, "state", length * d_model).view(1, length, d_model).to(device, torch.float32)
    cache = import_object("fla.models.utils:Cache")()  # type: ignore[operator]
    try:
        with torch.no_grad(), torch.autocast(device, dtype=torch.bfloat16):  # several kernels take no float32
            module.layer(x, past_key_values=cache, use_cache=True)  # type: ignore[operator]
    except Exception as error:  # a class from outside may raise anything, and its trained runs need no count
        LOG.warning("the state of %s could not be measured: %s", text, first_line(error))
        return None
    if not len(cache):
        return None
    state = cache[0]
    counts = {key: sum(part.numel() for part in cached_tensors(value)) for key, value in state.items()}
    sums = counts.pop(SUMS, 0)
    return StateSize(sums, sum(counts.values()))


def cached_tensors(value: object) -> Iterator[Tensor]:
    """Return every tensor of an entry of a cache, through lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from cached_tensors(part)
