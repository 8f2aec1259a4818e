"""The dimensions at which an architecture carries a given state, has given parameters or does given work.

The search is exact over the declared knobs: what is typed in the spec stays as it is, the first knob is tried alone,
and the second joins only where the first cannot come within the tolerance, nearest to its default first.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import torch

from icl_bench.architectures import ARCHITECTURES, Architecture
from icl_bench.errors import SpecError, StateBudgetError
from icl_bench.harness.resolve import split_pattern
from icl_bench.schema import DOTTED, Spec, Value, build, parse_spec

Quantity = Literal["state", "params", "flops"]
Cut = Literal["width", "degree"]

TOLERANCE = 0.05
WIDEST_KEY = 2048
HIGHEST_POWER = 6
UNITS = {"": 1, "k": 10**3, "M": 10**6}
BYTE_UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20}
BYTES_PER_ELEMENT = 4


class Budget(NamedTuple):
    """What is to be met, over all layers."""

    target: int
    quantity: Quantity = "state"
    cut: Cut = "width"
    """`width`: key and value widths are free, and p where it is typed stays; `degree`: p alone is free."""


class Shape(NamedTuple):
    """The model around the mixers, as far as matching needs it."""

    d_model: int
    layers: int
    length: int
    """Tokens after which state is counted."""


class Match(NamedTuple):
    """An architecture that meets a budget."""

    arch: str
    """Its spec, dimensions written out."""
    value: int
    """What it comes to."""
    error: float
    """Relative distance from the target."""


def parse_state(text: str) -> int:
    """Elements: `16384`, `16k`, `1M`, or bytes of float32 as `64KiB`.

    >>> parse_state("16384"), parse_state("64KiB"), parse_state("16k")
    (16384, 16384, 16000)

    Raises:
        SpecError: where the text is none of these.
    """
    for unit, factor in BYTE_UNITS.items():
        number = text.removesuffix(unit)
        if number != text and number.isdigit() and int(number) > 0:
            return max(1, int(number) * factor // BYTES_PER_ELEMENT)
    for unit, factor in UNITS.items():
        number = text.removesuffix(unit)
        if number.isdigit() and int(number) > 0:
            return int(number) * factor
    raise SpecError(f"a state is elements, as 16384 or 16k, or bytes of float32, as 64KiB; got {text!r}; try 16384")


def match(text: str, budget: Budget, shape: Shape) -> Match:
    """Dimensions of an architecture as typed that meet the budget.

    Raises:
        StateBudgetError: where none comes within 5 %; names the nearest.
        SpecError: where the spec leaves nothing free, or is no single architecture of this package.
    """
    if len(split_pattern(text)) > 1 or DOTTED.fullmatch(text):
        raise SpecError(
            f"matching takes single architectures of this package; got {text!r}; match its parts one by one"
        )
    spec = parse_spec(text)
    knobs = free_knobs(spec, budget.cut, shape)
    best: Match | None = None
    for used in range(1, len(knobs) + 1):
        found = nearest_match(spec, dict(list(knobs.items())[:used]), budget, shape)
        if found is not None and (best is None or found.error < best.error):
            best = found
        if best is not None and best.error <= TOLERANCE:
            return best
    if best is None:
        raise SpecError(f"{text} leaves nothing free to match with; type fewer of its parameters")
    raise StateBudgetError(
        f"{text} must come within {TOLERANCE:.0%} of {budget.target:,} ({budget.quantity}); its nearest is {best.arch} "
        f"with {best.value:,}; choose that value or free another parameter"
    )


def free_knobs(spec: Spec, cut: Cut, shape: Shape) -> Mapping[str, Sequence[Value]]:
    """Values of each parameter that may be varied, in the order in which they are; those typed are not."""
    cls = ARCHITECTURES[spec.name]
    build(cls, spec.params, spec.name)
    if "heads" not in cls.model_fields:
        return {}
    if cut == "degree":
        knobs: dict[str, Sequence[Value]] = {"p": range(1, HIGHEST_POWER + 1)}
    else:
        heads = spec.params.get("heads", cls.model_fields["heads"].default)
        width = max(1, shape.d_model // (heads if isinstance(heads, int) else 1))
        values = sorted(range(max(1, width // 2), 2 * width + 1), key=lambda v: abs(v - width))
        knobs = {"w": range(1, shape.length + 1), "d_key": range(1, WIDEST_KEY + 1), "d_value": values}
    if "w" in cls.model_fields and "w" not in spec.params and cut == "width":
        knobs = {"w": knobs["w"], "d_value": knobs["d_value"]}
    return {name: values for name, values in knobs.items() if name in cls.model_fields and name not in spec.params}


def nearest_match(spec: Spec, knobs: Mapping[str, Sequence[Value]], budget: Budget, shape: Shape) -> Match | None:
    """The setting of these knobs nearest to the target; None where no setting is allowed."""
    best: Match | None = None
    inner, *outer = knobs
    for setting in itertools.product(*(knobs[name] for name in outer)):
        fixed = dict(zip(outer, setting, strict=True))
        for found in along(spec, {**spec.params, **fixed}, inner, knobs[inner], budget, shape):
            if best is None or found.error < best.error:
                best = found
        if best is not None and best.error <= TOLERANCE:
            break
    return best


def along(
    spec: Spec, params: Mapping[str, Value], name: str, values: Sequence[Value], budget: Budget, shape: Shape
) -> Iterator[Match]:
    """Measure one knob's values, stopping once the target is passed where the knob only adds."""
    fields = ARCHITECTURES[spec.name].model_fields
    for value in values:
        free = {**params, name: value}
        full = {**spec.params, **{key: free[key] for key in fields if key in free and key not in spec.params}}
        architecture = build(ARCHITECTURES[spec.name], full, spec.name)
        try:
            got = measure(architecture, budget.quantity, shape)
        except SpecError:
            continue
        yield Match(str(Spec(spec.name, full)), got, abs(got - budget.target) / budget.target)
        if got > 2 * budget.target and isinstance(values, range):
            return


def measure(architecture: Architecture, quantity: Quantity, shape: Shape) -> int:
    """State elements, mixer parameters or forward operations a token, over all layers."""
    if quantity == "state":
        return shape.layers * architecture.state_elements(shape.d_model, shape.length)
    if quantity == "flops":
        flops = architecture.flops(shape.d_model, shape.length)
        return round(shape.layers * (flops.weights + flops.state))
    with torch.device("meta"):
        mixer = architecture.build(1, shape.d_model, 1.0, "auto")
    return shape.layers * sum(parameter.numel() for parameter in mixer.parameters())
