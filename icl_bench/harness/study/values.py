"""Values of a study file in the forms that YAML suggests: a number or a list, one text alone, mappings.

Every form is read into the one that the command line has: tuples of numbers, specs and assignments as text.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from icl_bench.errors import IclBenchError, SpecError
from icl_bench.harness.matching import parse_state
from icl_bench.harness.resolve import parse_lrs, parse_seeds
from icl_bench.schema import Scalar, Spec, format_value, quoted

CUT_OFF = re.compile(r"[a-z][a-z0-9_]*=")
"""Begin of a parameter that a comma of YAML cut off from its spec."""


def read_by(read: Callable[[Any], object]) -> BeforeValidator:
    """Return a validator that reads a value of a YAML file; what it refuses is an error of the field."""

    def validate(value: Any) -> object:
        try:
            return read(value)
        except IclBenchError as error:
            raise ValueError(str(error)) from None

    return BeforeValidator(validate)


def numbers_by(parse: Callable[[str], Sequence[Any]]) -> BeforeValidator:
    """Return a validator that reads text in the grammar of an option, a number or a list; a tuple is read already."""

    def read(value: Any) -> object:
        if isinstance(value, tuple):
            return value
        return parse(",".join(map(str, value)) if isinstance(value, list) else str(value))

    return read_by(read)


def read_list(value: Any) -> Sequence[Any]:
    """Read a list, or one value alone."""
    return value if isinstance(value, list | tuple) else (value,)


def read_sizes(value: Any) -> object:
    """Read sizes, `16384` or `64KiB`, as a list or one alone."""
    return tuple(parse_state(str(size)) for size in read_list(value))


def read_specs(value: Any) -> tuple[object, ...]:
    """Read tasks or architectures: text, `name: {key: value}`, or a list of both."""
    if isinstance(value, Mapping):
        return tuple(written_spec(str(name), params) for name, params in value.items())
    items: list[object] = []
    for item in read_list(value):
        if isinstance(item, str) and CUT_OFF.match(item):
            raise SpecError(f"a comma ends an item of a YAML list; got {item!r} alone; put the whole spec into quotes")
        items += read_specs(item) if isinstance(item, Mapping) else (item,)
    return tuple(items)


def written_spec(name: str, params: object) -> str:
    """Write a spec whose parameters are given as a mapping; without any, they are none."""
    if not isinstance(params, Mapping | None):
        raise SpecError(f"parameters are a mapping, {name}: {{key: value}}; got {quoted(params)}; write it so")
    values = {str(key): tuple(own) if isinstance(own, list) else own for key, own in (params or {}).items()}
    return str(Spec(name, values))


def read_assignments(value: Any) -> object:
    """Read fields of --set: text `train.steps=100`, a mapping `{train: {steps: 100}}`, or a list of texts."""
    if not isinstance(value, Mapping):
        return read_list(value)
    found: list[str] = []
    for name, own in value.items():
        fields = {f"{name}.{field}": one for field, one in own.items()} if isinstance(own, Mapping) else {name: own}
        found += [f"{field}={format_value(one)}" for field, one in fields.items()]
    return tuple(found)


def read_axes(value: Any) -> object:
    """Read the values of each axis, as a list or one alone."""
    return {name: read_list(own) for name, own in value.items()} if isinstance(value, Mapping) else value


Texts = Annotated[tuple[str, ...], BeforeValidator(read_list)]
Specs = Annotated[tuple[str, ...], read_by(read_specs)]
RateGrid = Annotated[tuple[float, ...], numbers_by(parse_lrs)]
SeedList = Annotated[tuple[int, ...], numbers_by(parse_seeds)]
Sizes = Annotated[tuple[int, ...], read_by(read_sizes)]
Axes = Annotated[Mapping[str, Annotated[tuple[Scalar, ...], Field(min_length=1)]], BeforeValidator(read_axes)]
Ladder = Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(read_list)]
Assignments = Annotated[tuple[str, ...], BeforeValidator(read_assignments)]
