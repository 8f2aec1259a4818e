"""Checks of the layers from outside the package before their training, and of the sources that they are read from."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.func import functional_call

from icl_bench.architectures.base import FirstLayer, Mixer, StateSize
from icl_bench.architectures.causality import (
    ROUNDING,
    Layer,
    call_alike,
    drawing_alike,
    earlier_influence,
    example_influence,
    later_influence,
    nudge,
    relative,
)
from icl_bench.architectures.plain import LayerFaultError, Plain, PlainMixer
from icl_bench.errors import SourceChangedError
from icl_bench.harness.resolve import current_source, make_arch, outside_source
from icl_bench.runs.spec import RunSpec
from icl_bench.tasks import TASKS


def calls_outside_code(spec: RunSpec) -> bool:
    """Return whether a run calls code from outside the package, layers of flash-linear-attention included.

    Such a run shares its process with no other thread that computes: while the code runs, standard output goes
    elsewhere for all threads.
    """
    return spec.from_outside or any(isinstance(make_arch(component), Plain) for component in spec.layer_components)


def check_sources(spec: RunSpec) -> None:
    """Raise SourceChangedError if a layer or a task from outside is no longer what the run was named after."""
    now = (
        [outside_source(TASKS.version(spec.task.name, spec.task.version)), *map(current_source, spec.arch)]
        if spec.from_outside
        else []
    )
    for component, source in zip((spec.task, *spec.arch), now, strict=False):
        if component.source != source:
            raise SourceChangedError(
                f"the id of a run holds the source of its layer; {component.name} changed after the command had read "
                "it; give the command again, for new runs of the edited layer"
            )


def check_layer(drawn: Tensor, mixer: Mixer, path: str, state: StateSize | None) -> None:
    """Check a layer from outside, named `path`, as it starts and with all parameters moved off their start.

    `drawn` has two inputs and the weights of a sum of outputs, [3, M, B, T, C]; `state` is what the layer declares. A
    layer is checked in evaluation mode, in which it is scored, and its gradients in training mode; its buffers are left
    as they were. Raise LayerFaultError if an output has another shape, is not finite, depends on a later token, on
    another example or on an earlier call, if a layer that declares no state reads earlier tokens, or if a gradient is
    not finite.
    """
    x, fresh, weights = drawn[:, :1] if isinstance(mixer, PlainMixer) else drawn
    start = dict(mixer.named_parameters())
    moved = {name: nudge(name, own) for name, own in start.items()}
    with unchanged_buffers(mixer):
        mixer.eval()
        try:
            check_outputs(layer_of(mixer, start), path, x)
            for parameters in (start, moved):
                fault = fault_of(layer_of(mixer, parameters), state, x, fresh)
                if fault is not None:
                    raise LayerFaultError(f"{path}: {fault}, with the help of `icl-bench check-arch {path}`")
        finally:
            mixer.train()
        check_first_gradients(layer_of(mixer, start), path, start, x, weights)


def layer_of(mixer: Mixer, parameters: Mapping[str, Tensor]) -> Layer:
    """Return the mixer with these parameters as a function of its input [M, B, T, C]."""

    def layer(x: Tensor) -> Tensor:
        first = FirstLayer() if mixer.asks_first_layer else None
        if first is not None:
            first.values = x.new_zeros(*x.shape[:3], *(mixer.value_shape or ()))
        y: Tensor = functional_call(mixer, dict(parameters), (x, first))
        return y

    return layer


@contextmanager
def unchanged_buffers(mixer: Mixer) -> Iterator[None]:
    """Give the buffers of a mixer the values again that they have now."""
    before = [buffer.clone() for buffer in mixer.buffers()]
    try:
        yield
    finally:
        for buffer, value in zip(mixer.buffers(), before, strict=True):
            buffer.copy_(value)


def check_outputs(layer: Layer, path: str, x: Tensor) -> None:
    """Raise LayerFaultError if outputs have another shape, are not finite, or differ between two calls on one input."""
    y = call_alike(layer, x)
    if y.shape != x.shape:
        raise LayerFaultError(f"{path}: an output has the shape of the input, {list(x.shape)}; got {list(y.shape)}")
    if not bool(y.isfinite().all()):
        position = int((~y.isfinite()).nonzero()[0, -2])
        raise LayerFaultError(
            f"{path}: outputs are finite numbers at the start; the output at position {position} is not"
        )
    change = relative(call_alike(layer, x) - y, y)
    if change > ROUNDING[x.dtype]:
        raise LayerFaultError(
            f"{path}: equal inputs have equal outputs; a second call changes them by {change:.2g} of the largest, so "
            "that a call carries something to the next; keep nothing between calls in evaluation mode"
        )


def fault_of(layer: Layer, state: StateSize | None, x: Tensor, fresh: Tensor) -> str | None:
    """Return the influence that a layer has and must not have, with the positions of output and token, from 0."""
    limit = ROUNDING[x.dtype]
    found = example_influence(layer, x, fresh)
    if limit < found.change < math.inf:  # moved parameters may overflow
        return (
            f"an output depends on its own example; the output at position {found.output} changes with the other "
            f"examples of the batch, by {found.change:.2g} of the largest; keep examples apart"
        )
    found = later_influence(layer, x, fresh)
    if limit < found.change < math.inf:
        return (
            f"an output depends on no later token; the output at position {found.output} reads the token at position "
            f"{found.token}, which changes it by {found.change:.2g} of the largest; make the layer causal"
        )
    found = earlier_influence(layer, x, fresh)
    if state is not None and state.elements == 0 and limit < found.change < math.inf:
        return (
            f"a state is what carries earlier tokens; the layer declares 0 elements, but its output at position "
            f"{found.output} reads the token at position {found.token}; count what a recurrent form would carry"
        )
    return None


def check_first_gradients(
    layer: Layer, path: str, parameters: Mapping[str, Tensor], x: Tensor, weights: Tensor
) -> None:
    """Raise LayerFaultError if a gradient of a weighted sum of outputs is not finite; the layer is in training mode."""
    with torch.enable_grad(), drawing_alike(x):
        total = (layer(x) * weights).sum()
        if not (parameters and total.requires_grad):
            return
        gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    for name, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None and not bool(gradient.isfinite().all()):
            raise LayerFaultError(f"{path}: gradients are finite numbers at the start; that of {name} is not")
