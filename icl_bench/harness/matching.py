"""Matching: find dimensions at which an architecture has a given state, number of parameters or number of operations.

The search is exact over the knobs that the architecture declares; parameters typed in the spec stay unchanged. The
first knob is tried alone. The next one joins only where the first cannot come within the tolerance, nearest to its
default first.

A state in which keys are wider than their rank is not matched, because part of it can hold nothing (`is_padded`).
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from icl_bench.architectures import ARCHITECTURES, Architecture
from icl_bench.architectures.base import Cut
from icl_bench.errors import SpecError, StateBudgetError
from icl_bench.harness.accounting import Footprint
from icl_bench.harness.resolve import split_pattern
from icl_bench.runs.spec import Canon
from icl_bench.schema import DOTTED, Spec, Value, build, parse_spec

Quantity = Literal["state", "params", "flops"]

TOLERANCE = 0.05
BYTES_PER_ELEMENT = 4
UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "k": 4 * 10**3, "M": 4 * 10**6, "": BYTES_PER_ELEMENT}
"""Bytes in each unit of a state; a number without a unit counts elements of float32."""


class Budget(NamedTuple):
    """A target to meet, over all layers."""

    target: int
    """Value to meet, in the unit of the quantity."""
    quantity: Quantity = "state"
    """Elements of the state, parameters of the mixers, or operations of a token."""
    cut: Cut = "width"
    """Parameters that may vary: `width`, those that set widths or windows; `degree`, the power of the scores."""
    padding: bool = False
    """Accept a state in which keys are wider than their rank."""


class Shape(NamedTuple):
    """The sizes of a model around its mixers."""

    d_model: int
    """Model width, C."""
    layers: int
    """Number of layers."""
    length: int
    """Tokens after which the state is counted."""
    canon: Canon = "none"
    """Places of canon layers, whose state counts too."""
    mlp_width: int = 0
    """Hidden width of the MLP."""


class Match(NamedTuple):
    """An architecture that meets a budget."""

    arch: str
    """Spec of the architecture, dimensions written out."""
    value: int
    """Value of the matched quantity."""
    error: float
    """Relative distance from the target."""


def parse_state(text: str) -> int:
    """Parse state elements `16384`, `16k`, `1M`, or bytes of float32 as `64KiB`; raise SpecError for other text.

    >>> parse_state("16384"), parse_state("64KiB"), parse_state("16k")
    (16384, 16384, 16000)
    """
    for unit, size in UNITS.items():
        number = text.removesuffix(unit)
        if number + unit == text and number.isdigit() and int(number) > 0:
            return max(1, int(number) * size // BYTES_PER_ELEMENT)
    raise SpecError(f"a state is elements, as 16384 or 16k, or bytes of float32, as 64KiB; got {text!r}; try 16384")


def match(text: str, budget: Budget, shape: Shape) -> Match:
    """Find dimensions of an architecture, as typed, that meet the budget.

    Raises:
        StateBudgetError: None comes within 5 %, or only one whose keys are padded; the message names the nearest.
        SpecError: The spec leaves nothing free, or is not a single architecture of this package.
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
    if budget.quantity == "state" and not budget.padding:
        refuse_padding(match(text, budget._replace(padding=True), shape), shape)
    if best is None:
        measure(build(ARCHITECTURES[spec.name], spec.params, spec.name), budget.quantity, shape)  # may say why
        raise SpecError(f"{text} leaves nothing free to match with; type fewer of its parameters")
    raise StateBudgetError(
        f"{text} must come within {TOLERANCE:.0%} of {budget.target:,} ({budget.quantity}); its nearest is {best.arch} "
        f"with {best.value:,}; choose that value or free another parameter"
    )


def refuse_padding(padded: Match, shape: Shape) -> None:
    """Raise StateBudgetError for the only setting that meets a budget, because its keys are padded."""
    spec = parse_spec(padded.arch)
    rank, width = build(ARCHITECTURES[spec.name], spec.params, spec.name).key_rank(shape.d_model) or (0, 0)
    raise StateBudgetError(
        f"keys of a matched state may be at most as wide as their rank; got {padded.arch} with {padded.value:,} "
        f"(state), whose keys have rank {rank} of d_key = {width}, so that the rest is padding; lower the state, raise "
        f"model.d_model to {width}, or choose a feature map that is not linear"
    )


def is_padded(architecture: Architecture, d_model: int) -> bool:
    """Tell if the keys of a head are wider than the largest rank that they can have."""
    rank, width = architecture.key_rank(d_model) or (0, 0)
    return width > rank


def free_knobs(spec: Spec, cut: Cut, shape: Shape) -> Mapping[str, Sequence[Value]]:
    """Return the values to try for each parameter that may vary, in order; those typed in the spec may not."""
    cls = ARCHITECTURES[spec.name]
    typed = build(cls, spec.params, spec.name)
    knobs = {knob.name: knob.values(typed, shape.d_model, shape.length) for knob in cls.knobs.get(cut, ())}
    return {name: values for name, values in knobs.items() if values and name not in spec.params}


def nearest_match(spec: Spec, knobs: Mapping[str, Sequence[Value]], budget: Budget, shape: Shape) -> Match | None:
    """Return the setting of these knobs nearest to the target; None where no setting is allowed."""
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
    """Measure the values of one knob; stop once twice the target is passed, where the values are a `range`."""
    fields = ARCHITECTURES[spec.name].model_fields
    for value in values:
        free = {**params, name: value}
        full = {**spec.params, **{key: free[key] for key in fields if key in free and key not in spec.params}}
        architecture = build(ARCHITECTURES[spec.name], full, spec.name)
        try:
            got = measure(architecture, budget.quantity, shape)
            padded = budget.quantity == "state" and not budget.padding and is_padded(architecture, shape.d_model)
        except SpecError:
            continue
        if padded:  # and so are all later values of a range, which widen the keys or leave them as they are
            if isinstance(values, range):
                return
            continue
        yield Match(str(Spec(spec.name, full)), got, abs(got - budget.target) / budget.target)
        if got > 2 * budget.target and isinstance(values, range):
            return


def measure(architecture: Architecture, quantity: Quantity, shape: Shape) -> int:
    """Return state elements, mixer parameters or forward operations of a token, over all layers."""
    size = Footprint([architecture] * shape.layers, shape.d_model, shape.length, shape.canon, shape.mlp_width)
    if quantity == "params":
        return size.parameters
    if quantity == "flops":
        return round(size.flops.weights + size.flops.state)
    if size.state is None:
        raise SpecError(f"the state of {type(architecture).__name__} is unknown, so nothing can match it; match flops")
    return size.state.elements
