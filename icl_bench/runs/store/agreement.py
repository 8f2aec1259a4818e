"""Comparison of the files of a finished run: a result says nothing that its specification and metrics contradict."""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

from pydantic import ValidationError

from icl_bench.errors import SpecError
from icl_bench.runs.declarations import declaration_by_name
from icl_bench.runs.record import MetricPoint, RunResult
from icl_bench.schema import Scalar, Value, canonical_json, parse_spec


def disagreements(spec: Mapping[str, Any], result: RunResult, metrics: Sequence[MetricPoint]) -> Iterator[str]:
    """Yield, as text, each part of a result or its metrics that contradicts the specification, or another part."""
    steps = spec["train"]["steps"]
    if (result.seed, result.lr) != (spec["seed"], spec["train"]["lr"]):
        yield "seed or learning rate are not those of the specification"
    if not is_label(result.task, canonical_json([spec["task"]])):
        yield "the task is not that of the specification"
    if not is_label(result.arch, canonical_json(spec["arch"])):
        yield "the architecture is not that of the specification"
    done = [point.step for point in metrics]
    if any(one >= other for one, other in pairwise(done)):
        yield "the steps of metrics.jsonl do not increase"
    if max([result.steps, *done[-1:], result.solved_at or 0]) > steps:
        yield f"there are more steps than {steps}"
    labels = [cell.label for cell in result.cells]
    if len(set(labels)) != len(labels):
        yield "a cell is scored twice"
    if not result.declarations and not all(map(can_be_declared, spec["arch"])):
        yield "a parameter of the architecture is out of range"
    if bool(labels) != (result.status == "ok"):
        yield "a run has scores if, and only if, its status is ok"


def can_be_declared(component: Mapping[str, Any]) -> bool:
    """Return whether the parameters of a component without a declaration are such that one can be made of them."""
    try:
        declaration_by_name(component)
    except ValidationError:
        return False
    return True


@lru_cache(maxsize=4096)  # many thousand runs have few tasks and architectures
def is_label(label: str, components: str) -> bool:
    """Return whether reports name these components, a JSON array, by this label: names, and parameters that they have.

    Several components are joined by plus signs, as layers of a pattern are.
    """
    named, place = [(part["name"], part) for part in json.loads(components)], 0
    for i, (name, part) in enumerate(named):
        following = label.find(f"+{named[i + 1][0]}", place + len(name)) if i + 1 < len(named) else len(label)
        if following < 0 or not is_label_of(label[place:following], part):
            return False
        place = following + 1
    return bool(named)


def is_label_of(label: str, component: Mapping[str, Any]) -> bool:
    """Return whether a label is the name of a component with some of its parameters, and with no other version."""
    name, params = component["name"], component["params"]
    if label == name:
        return True
    try:
        spec = parse_spec(label, versioned=True)
    except SpecError:
        return False
    return (spec.name, spec.version or component["version"]) == (name, component["version"]) and all(
        key in params and (value is None or values_in(value) == values_in(params[key]))
        for key, value in spec.params.items()
    )


def values_in(value: Value) -> list[Scalar]:
    """Return a parameter as a list; labels write a list of one value as that value, and `none` for a derived value."""
    return list(value) if isinstance(value, tuple | list) else [value]
