"""Matching: find dimensions at which an architecture has a given state, number of parameters or number of operations.

The search is exact over the knobs that the architecture declares; parameters typed in the spec stay unchanged. The
first knob is tried alone. The next one joins only where the first cannot come within the tolerance, nearest to its
default first.

Parts of a pattern `a+b` share the target, and the pattern is matched as a whole. A parameter may be marked as free, as
in `package.module:Class:d_head=?`: then the marked ones alone vary, over whole numbers, also in layers from outside the
package.

A state in which keys are wider than their rank is not matched, because part of it can hold nothing (`is_padded`).
"""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from icl_bench.architectures import ARCHITECTURES, Architecture
from icl_bench.architectures.base import Cut
from icl_bench.architectures.fla_layer import outside_layer
from icl_bench.errors import SpecError, StateBudgetError, UnknownSizeError
from icl_bench.harness.accounting import Footprint
from icl_bench.harness.resolve import split_pattern
from icl_bench.isolation import isolated
from icl_bench.runs.spec import Canon
from icl_bench.schema import DOTTED, Spec, Value, build, parse_spec

Quantity = Literal["state", "params", "flops"]

TOLERANCE = 0.05
FREE = re.compile(r"(?<=[:,])([a-z][a-z0-9_]*)=\?(?:,|$)")
"""A parameter that is marked as free."""
MOST_VALUES = 4096
"""Largest value that is tried for a marked parameter."""
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


class Tried(NamedTuple):
    """A setting of an architecture that was measured; its text is written once it is chosen."""

    params: Mapping[str, Value]
    value: int
    error: float
    padded: bool


STATE_DIGITS = re.compile("0*[1-9][0-9]{0,15}")
"""A number of elements or bytes, from 1 up."""


def parse_state(text: str) -> int:
    """Parse state elements `16384`, `16k`, `1M`, or bytes of float32 as `64KiB`; raise SpecError for other text.

    >>> parse_state("16384"), parse_state("64KiB"), parse_state("16k")
    (16384, 16384, 16000)
    """
    for unit, size in UNITS.items():
        number = text.removesuffix(unit)
        if number + unit == text and STATE_DIGITS.fullmatch(number):
            return max(1, int(number) * size // BYTES_PER_ELEMENT)
    raise SpecError(f"a state is elements, as 16384 or 16k, or bytes of float32, as 64KiB; got {text!r}; try 16384")


class PatternPart(NamedTuple):
    """A part of a pattern of layers as typed, and the number of layers that it has."""

    spec: Spec
    """The part without the parameters that are marked as free."""
    marked: tuple[str, ...]
    """Parameters that are marked as free, `d_head=?`."""
    layers: int


def parse_pattern(text: str, layers: int) -> list[PatternPart]:
    """Parse `a+b`, whose parts may mark parameters as free, in a model of so many layers; raise SpecError."""
    texts = split_pattern(text)
    parts = []
    for i, part in enumerate(texts):
        marked = tuple(FREE.findall(part))
        typed = parse_spec(FREE.sub("", part).rstrip(",:") if marked else part)
        parts.append(PatternPart(typed, marked, len(range(i, layers, len(texts)))))
    return parts


def match(text: str, budget: Budget, shape: Shape) -> Match:
    """Find dimensions of an architecture, as typed, that meet the budget; a pattern `a+b` is matched as a whole.

    Of a pattern, each part with free parameters gets an equal share for each of its layers of what the others leave;
    the last part takes the rest. Where a parameter is marked as free, the marked ones vary alone.

    Raises:
        StateBudgetError: None comes within 5 %, or only one whose keys are padded; the message names the nearest.
        SpecError: The spec leaves nothing free, or the size of a layer is unknown.
    """
    parts = [part for part in parse_pattern(text, shape.layers) if part.layers]
    any_marked = any(part.marked for part in parts)
    knobs = [{} if any_marked and not part.marked else free_knobs(part, budget.cut, shape) for part in parts]
    found = {i: as_typed(parts[i], budget, shape) for i, free in enumerate(knobs) if not free}
    waiting = [i for i, free in enumerate(knobs) if free]
    if not waiting and joined(found, budget).error > TOLERANCE:
        raise SpecError(
            f"{text} leaves nothing free to match with, and has {joined(found, budget).value:,} ({budget.quantity}); "
            "type fewer of its parameters, or mark one as free, as d_head=?"
        )
    for i in (*waiting, *waiting):  # the second time, a part gets what the others could not take
        if len(found) == len(parts) and joined(found, budget).error <= TOLERANCE:
            break
        others = sum(own.value for place, own in found.items() if place != i)
        layers = sum(parts[place].layers for place in waiting if place not in found or place == i)
        share = max(1, round((budget.target - others) * parts[i].layers / layers))
        within = shape._replace(layers=parts[i].layers)
        found[i] = match_part(parts[i], knobs[i], budget._replace(target=share), within, alone=len(parts) == 1)
    return accept(text, found, budget)


def joined(found: Mapping[int, Match], budget: Budget) -> Match:
    """Return the match of a pattern from those of its parts by place."""
    parts = [found[i] for i in range(len(found))]
    total = sum(part.value for part in parts)
    return Match("+".join(part.arch for part in parts), total, abs(total - budget.target) / budget.target)


def accept(text: str, found: Mapping[int, Match], budget: Budget) -> Match:
    """Return the match of a pattern from those of its parts; raise StateBudgetError if it is not near enough."""
    whole = joined(found, budget)
    if whole.error > TOLERANCE:
        raise StateBudgetError(
            f"{text} must come within {TOLERANCE:.0%} of {budget.target:,} ({budget.quantity}); its nearest is "
            f"{whole.arch} with {whole.value:,}; choose that value or free another parameter"
        )
    return whole


def as_typed(part: PatternPart, budget: Budget, shape: Shape) -> Match:
    """Return a part of a pattern as it is typed, with its size."""
    value = measure(architecture_of(part.spec), budget.quantity, shape._replace(layers=part.layers))
    return Match(str(part.spec), value, 0.0)


def match_part(
    part: PatternPart, knobs: Mapping[str, Sequence[Value]], budget: Budget, shape: Shape, alone: bool
) -> Match:
    """Find the dimensions of one part that come nearest to a budget over its own layers.

    Raise StateBudgetError if only padded keys come within the tolerance of a part `alone`, and SpecError if no setting
    is allowed.
    """
    best: Match | None = None
    outside = bool(DOTTED.fullmatch(part.spec.name))
    for used in range(1, len(knobs) + 1):
        tried = dict(list(knobs.items())[:used])
        if outside:
            found = isolated(f"{part.spec} cannot be matched", nearest_match, part.spec, tried, budget, shape)
        else:
            found = nearest_match(part.spec, tried, budget, shape)
        if found is not None and (best is None or found.error < best.error):
            best = found
        if best is not None and best.error <= TOLERANCE:
            return best
    if budget.quantity == "state" and not budget.padding and alone and not outside:
        padded = match_part(part, knobs, budget._replace(padding=True), shape, alone)
        if padded.error <= TOLERANCE:
            refuse_padding(padded, shape)
    if best is None:
        smallest = {name: values[0] for name, values in knobs.items()} if outside else {}
        measure(architecture_of(Spec(part.spec.name, {**part.spec.params, **smallest})), budget.quantity, shape)
        raise SpecError(f"{part.spec} allows none of the values that were tried for {', '.join(knobs)}; type one")
    return best


def architecture_of(spec: Spec) -> Architecture:
    """Build the architecture of a spec, of the package or from outside."""
    if DOTTED.fullmatch(spec.name):
        return outside_layer(spec.name, spec.params)
    return build(ARCHITECTURES[spec.name], spec.params, spec.name)


def refuse_padding(padded: Match, shape: Shape) -> None:
    """Raise StateBudgetError for the only setting that meets a budget, because its keys are padded."""
    rank, width = architecture_of(parse_spec(padded.arch)).key_rank(shape.d_model) or (0, 0)
    raise StateBudgetError(
        f"keys of a matched state may be at most as wide as their rank; got {padded.arch} with {padded.value:,} "
        f"(state), whose keys have rank {rank} of d_key = {width}, so that the rest is padding; lower the state, raise "
        f"model.d_model to {width}, or choose a feature map that is not linear"
    )


def is_padded(architecture: Architecture, d_model: int) -> bool:
    """Tell if the keys of a head are wider than the largest rank that they can have."""
    rank, width = architecture.key_rank(d_model) or (0, 0)
    return width > rank


def free_knobs(part: PatternPart, cut: Cut, shape: Shape) -> Mapping[str, Sequence[Value]]:
    """Return the values to try for each parameter that may vary, in order.

    These are the marked ones, whole numbers unless the architecture declares others; else those that it declares for
    the cut and that are not typed.
    """
    declared: dict[str, Sequence[Value]] = {}
    if not DOTTED.fullmatch(part.spec.name):
        cls = ARCHITECTURES[part.spec.name]
        typed = build(cls, part.spec.params, part.spec.name)
        for name in set(part.marked) - set(cls.model_fields):
            build(cls, {name: 1}, part.spec.name)  # says that there is no such parameter
        cuts = [cut] if not part.marked else list(cls.knobs)
        knobs = [knob for own in cuts for knob in cls.knobs.get(own, ())]
        declared = {knob.name: knob.values(typed, shape.d_model, shape.length) for knob in knobs}
    if part.marked:
        return {name: declared.get(name) or range(1, MOST_VALUES + 1) for name in part.marked}
    return {name: values for name, values in declared.items() if values and name not in part.spec.params}


def nearest_match(spec: Spec, knobs: Mapping[str, Sequence[Value]], budget: Budget, shape: Shape) -> Match | None:
    """Return the setting of these knobs nearest to the target; None where no setting is allowed."""
    best: Tried | None = None
    inner, *outer = knobs
    for setting in itertools.product(*(knobs[name] for name in outer)):
        fixed = dict(zip(outer, setting, strict=True))
        for found in along(spec, {**spec.params, **fixed}, inner, knobs[inner], budget, shape):
            if best is None or found.error < best.error:
                best = found
        if best is not None and best.error <= TOLERANCE:
            break
    return None if best is None else Match(str(Spec(spec.name, best.params)), best.value, best.error)


def along(
    spec: Spec, params: Mapping[str, Value], name: str, values: Sequence[Value], budget: Budget, shape: Shape
) -> Iterator[Tried]:
    """Measure the values of one knob; of a `range`, along which sizes do not fall, those next to the target."""
    outside = bool(DOTTED.fullmatch(spec.name))
    fields = {**params, name: None} if outside else ARCHITECTURES[spec.name].model_fields

    def measured(value: Value) -> Tried | None:
        free = {**params, name: value}
        full = {**spec.params, **{key: free[key] for key in fields if key in free and key not in spec.params}}
        architecture = architecture_of(Spec(spec.name, full))
        try:
            got = measure(architecture, budget.quantity, shape)
            padded = budget.quantity == "state" and not budget.padding and is_padded(architecture, shape.d_model)
        except UnknownSizeError:
            raise
        except SpecError:
            return None
        return Tried(full, got, abs(got - budget.target) / budget.target, padded)

    ordered = isinstance(values, range)
    if ordered and not outside and (near := next_to_target(values, measured, budget.target)) is not None:
        yield from near
        return
    for value in values:
        found = measured(value)
        if found is None or (found.padded and not ordered):
            continue
        if found.padded:  # and so are all later values, which widen the keys or leave them as they are
            return
        yield found
        if found.value > 2 * budget.target and ordered:
            return


def next_to_target(
    values: Sequence[Value], measured: Callable[[Value], Tried | None], target: int
) -> list[Tried] | None:
    """Return the first values of the largest size below the target, and of the next size; both by bisection.

    None where a value on the way is not allowed, so that all must be measured.
    """

    def first_with(size: int, end: int) -> int | None:
        """Return the place of the first value that has this size or is padded; `end` if there is none before it."""
        low = 0
        while low < end:
            middle = (low + end) // 2
            found = measured(values[middle])
            if found is None:
                return None
            low, end = (low, middle) if found.padded or found.value >= size else (middle + 1, end)
        return low

    try:
        above = first_with(target, len(values))
        below = measured(values[above - 1]) if above else None
        first_below = None if below is None or above is None else first_with(below.value, above - 1)
        places = [first_below, above] if above else [above]
        if None in places:
            return None
        found = [measured(values[place]) for place in places if place is not None and place < len(values)]
    except SpecError:  # of a value that is beyond its bounds
        return None
    return [one for one in found if one is not None and not one.padded]


def measure(architecture: Architecture, quantity: Quantity, shape: Shape) -> int:
    """Return state elements, mixer parameters or forward operations of a token, over all layers."""
    size = Footprint([architecture] * shape.layers, shape.d_model, shape.length, shape.canon, shape.mlp_width)
    if quantity == "params":
        return size.parameters
    if quantity == "flops":
        if size.flops.state is None:
            raise SpecError(
                "the operations of a layer of one's own are unknown, so nothing can match them; match state"
            )
        return round(size.flops.weights + size.flops.state)
    if size.state is None:
        raise UnknownSizeError(
            f"the state of {name_of(architecture)} is unknown, so nothing can match it; give it a method "
            "state_elements(length)"
        )
    return size.state.elements


def name_of(architecture: Architecture) -> str:
    """Return the name of an architecture, or the path of a layer from outside."""
    return architecture.declaration().name
