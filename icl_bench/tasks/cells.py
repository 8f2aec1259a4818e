"""Cells: the combinations of values of a task's list parameters, and refusals of parameters that cannot be met."""

from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, Field

from icl_bench.schema import Frozen


def one_or_many(value: Any) -> Any:
    """Turn a single number into a list of one; leave other values as they are."""
    return (value,) if isinstance(value, int | float) else value


IntegerList = Annotated[tuple[int, ...], BeforeValidator(one_or_many), Field(min_length=1)]
"""A parameter that lists one or more values of an axis: `pairs=4` or `pairs=[4|8]`."""
OptionalIntegers = Annotated[tuple[int, ...], BeforeValidator(one_or_many)]
"""A parameter that lists values of an axis that are evaluated but not trained; may be empty."""
Sizes = tuple[Any, ...]
"""Values of the axes of a task, in their order; integers but for the fraction of `flip-flop`."""


class Axis(NamedTuple):
    """A list parameter of a task; every combination of the values of all axes is a cell."""

    name: str
    """Name of the parameter."""
    lowest: int = 1
    """Smallest value that has a meaning."""
    extrapolated: bool = False
    """Evaluate also at the values in the parameter `extrapolate`, which are not trained."""


class ExampleShape(NamedTuple):
    """Sizes of the examples of a cell."""

    length: int
    """Positions in a sequence, T."""
    load: int
    """Amount that must be remembered, in the unit of the task: pairs, symbols, hops."""
    scored: int
    """Scored positions in an example, S."""


class Cell(Frozen):
    """One setting of the axes of a task: all its examples have one `ExampleShape`, of length, load and scored."""

    label: str
    """Name of the cell, such as `pairs=16`, unique in its task."""
    length: int
    load: int
    scored: int
    sizes: Sizes = ()
    """Values of the axes of the task."""
    weight: float = 1.0
    """Training steps spent on this cell, relative to the other cells; 0 for a cell that is only evaluated."""


def format_size(value: float) -> str:
    """Write a value of an axis for a label; a fraction has up to six digits."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def check_values(name: str, values: Sizes, lowest: int = 1) -> None:
    """Raise ValueError for values of an axis that repeat or are too small."""
    if values and min(values) < lowest:
        raise ValueError(f"{name} must be at least {lowest}; got {min(values)}; raise {name}")
    if len(set(values)) != len(values):
        raise ValueError(f"{name} must differ from each other; got {list(values)}; drop the repeated one")


def check_at_most(name: str, value: int, limit_name: str, limit: int) -> None:
    """Raise ValueError for a parameter, or an expression of parameters, that is above another."""
    if value > limit:
        raise ValueError(
            f"{name} must be at most {limit_name}; got {name} = {value} with {limit_name} = {limit}; "
            f"lower {name} or raise {limit_name} to {value}"
        )


def check_multiple(name: str, value: int, factor: int) -> None:
    """Raise ValueError for a parameter that is not a multiple of a factor."""
    if value % factor:
        rule = "even" if factor == 2 else f"a multiple of {factor}"
        raise ValueError(f"{name} must be {rule}; got {value}; try {value + -value % factor}")


def check_length(length: int, needed: int, contents: str, lower: str) -> None:
    """Raise ValueError for a sequence too short for its contents; `lower` are parameters to lower instead."""
    if needed > length:
        raise ValueError(f"length must hold {contents}; got {length}; raise length to {needed} or lower {lower}")
