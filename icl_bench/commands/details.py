"""Cards of single tasks and architectures: description, parameters, cells or sizes, an example, a command to try."""

import inspect
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from rich.console import Group, RenderableType
from rich.text import Text

from icl_bench.architectures import ARCHITECTURES
from icl_bench.commands.tables import example_text, make_table
from icl_bench.harness.accounting import account
from icl_bench.harness.resolve import arch_component, make_arch, make_task, task_component
from icl_bench.harness.training.batches import draw_example
from icl_bench.outside import guarding
from icl_bench.runs.spec import Component
from icl_bench.schema import Frozen, field_descriptions, format_value
from icl_bench.tasks import TASKS
from icl_bench.tasks.cells import Cell

WIDTH, LAYERS = 64, 2
"""Width and layers of the model in which an architecture is counted, those of a run by default."""
LENGTHS = (64, 1024)
BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
TYPES = {int: "integer", float: "number", bool: "true or false", str: "word"}


class Parameter(NamedTuple):
    """A parameter of a task or an architecture, as a card shows it."""

    name: str
    type: str
    default: str
    meaning: str


class DetailCard(NamedTuple):
    """The facts about one task or architecture; `rows` has its cells or its sizes."""

    name: str
    description: str
    parameters: list[Parameter]
    rows: list[dict[str, str | int]]
    example: Text | None
    command: str

    def document(self) -> dict[str, Any]:
        """Return the card as JSON."""
        plain = {**self._asdict(), "parameters": [one._asdict() for one in self.parameters]}
        return {key: value for key, value in plain.items() if key != "example"}

    def render(self) -> RenderableType:
        """Return the card for a terminal."""
        parameters = make_table("", ["parameter", "type", "default", "meaning"], [])
        for one in self.parameters:
            parameters.add_row(*map(Text, one))
        heads = list(self.rows[0])
        rows = make_table("", heads[:1], heads[1:])
        for row in self.rows:
            rows.add_row(*(Text(f"{value:,}" if isinstance(value, int) else value) for value in row.values()))
        parts: list[RenderableType] = [Text(self.description), parameters, rows]
        if self.example is not None:
            parts.append(self.example)
        parts.append(Text(f"Try: {self.command}"))
        return Group(*(piece for part in parts for piece in (part, Text())))


def task_card(text: str) -> DetailCard:
    """Return the card of a task as typed, `name` or `name:key=value,...`; raise IclBenchError if there is none."""
    component = task_component(text)
    with guarding(TASKS.version(component.name, component.version), component.name):
        return card_of_task(component, text)


def card_of_task(component: Component, text: str) -> DetailCard:
    """Return the card of the component of a task as typed."""
    task = make_task(component)
    cls = type(task)
    total = sum(cell.weight for cell in task.train_cells)
    shares = {cell.label: cell.weight / total for cell in task.train_cells}

    def row(cell: Cell) -> dict[str, str | int]:
        counts = {"tokens": cell.length, "scored": cell.scored, "bits to carry": round(task.state_bits(cell))}
        return {"cell": cell.label, **counts, "of training": f"{shares.get(cell.label, 0):.0%}"}

    shortest = min(task.eval_cells, key=lambda cell: cell.length)
    picture = (
        draw_example(f"{component.name}:{cls.picture}", None, 0) if cls.picture and text == component.name else None
    )
    return DetailCard(
        component.label,
        f"{component.label}: {prose(cls.__doc__)}" + (f"\n\nRetired: {cls.retired}" if cls.retired else ""),
        list(parameters_of(cls, values_of(task), {})),
        [row(cell) for cell in task.eval_cells],
        example_text(picture or draw_example(text, shortest.label, 0)),
        f"icl-bench run {component.name}:{cls.budget.params} --arch {cls.budget.arch} "
        f"--set train.steps={cls.budget.steps} --lr {cls.budget.lr:g}",
    )


def arch_card(text: str) -> DetailCard:
    """Return the card of an architecture as typed; raise IclBenchError if there is none or its state is unknown."""
    component = arch_component(text, WIDTH)
    if component.name not in ARCHITECTURES:
        name, description = component.label, prose(type(make_arch(component)).__doc__)
        given = [Parameter(key, "", format_value(value), "") for key, value in component.params.items()]
    else:
        cls = ARCHITECTURES[component.name]
        name, description = component.name, prose(sys.modules[cls.__module__].__doc__)
        given = list(parameters_of(cls, values_of(cls()), component.params))
    sizes = [account(text, WIDTH, LAYERS, length) for length in LENGTHS]
    rows: list[dict[str, str | int]] = [
        {
            f"after tokens, at width {WIDTH} and {LAYERS} layers": f"{size.length:,}",
            "state elements": size.elements,
            "mixer parameters": size.params,
            "weight FLOPs": round(size.weight_flops),
            "state FLOPs": "unknown" if size.state_flops is None else round(size.state_flops),
        }
        for size in sizes
    ]
    command = f"icl-bench run assoc-recall --arch {text} --preset quick"
    return DetailCard(name, f"{name}: {description}", given, rows, None, command)


def prose(docstring: str | None) -> str:
    """Return a docstring without its doctests."""
    return inspect.cleandoc(docstring or "").split("\n>>>")[0].strip()


def values_of(model: Frozen) -> dict[str, Any]:
    """Return the values of all fields; `dict` would take a field `keys` for a method."""
    return {name: getattr(model, name) for name in type(model).model_fields}


def parameters_of(model: type[Frozen], defaults: Mapping[str, Any], derived: Mapping[str, Any]) -> Iterator[Parameter]:
    """Yield the parameters of a model; `derived` has the values that follow from the width where no default stands."""
    meanings = field_descriptions(model)
    for name, field in model.model_fields.items():
        default = format_value(defaults[name]).replace('"none"', "none")  # as a user may type it
        if defaults[name] is None and derived.get(name) is not None:
            default = f"{format_value(derived[name])} (derived)"
        meaning = " ".join(meanings.get(name, "").split())
        yield Parameter(name, type_words(field.annotation, field.metadata), default, meaning)


def type_words(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """Describe the type of a parameter as a user types it.

    >>> type_words(int), type_words(Literal["sum", "rms"]), type_words(tuple[int, ...])
    ('integer', 'sum or rms', 'list of integer')
    """
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        return type_words(inner, [*more, *metadata])
    bounds = [
        f"{sign} {getattr(mark, key):g}"
        for mark in metadata
        for key, sign in BOUNDS.items()
        if getattr(mark, key, None) is not None
    ]
    if get_origin(annotation) in (Union, types.UnionType):
        kinds = [type_words(each) for each in get_args(annotation) if each is not type(None)]
        words = " or ".join(dict.fromkeys(kinds)) + (" or none" if type(None) in get_args(annotation) else "")
    elif get_origin(annotation) is Literal:
        words = " or ".join(map(str, get_args(annotation)))
    elif get_origin(annotation) is tuple:
        words = f"list of {type_words(get_args(annotation)[0])}"
    else:
        words = TYPES.get(annotation, str(annotation))
    return " ".join([words, *bounds])
