"""The generated parts of the pages; `make docs` writes them into the pages, `make lint` checks that they are fresh.

Each function returns Markdown and depends on the code alone: not on the machine, the terminal or the time.
"""

import ast
import inspect
import os
import re
import shlex
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

os.environ["TERMINAL_WIDTH"] = "100"
os.environ["_TYPER_FORCE_DISABLE_TERMINAL"] = "1"

import torch
import typer
from typer.testing import CliRunner

from icl_bench.architectures import ARCHITECTURES
from icl_bench.architectures.backbone import Backbone
from icl_bench.architectures.heads import HeadsArchitecture
from icl_bench.architectures.interface import Vectors
from icl_bench.architectures.plain import Plain
from icl_bench.cli import app
from icl_bench.commands.tables import example_text
from icl_bench.harness.accounting import account
from icl_bench.harness.engines.base import ENGINES, install_command
from icl_bench.harness.resolve import PRESETS, make_task, task_component
from icl_bench.harness.study.file import LossPoint, MatchSpec, Published, Study
from icl_bench.harness.training.batches import ExampleStream, draw_example
from icl_bench.runs import declarations, record, spec
from icl_bench.runs.columns import CELL_COLUMNS, CURVE_COLUMNS, RUN_COLUMNS
from icl_bench.schema import Frozen, canonical_json, field_descriptions, format_value
from icl_bench.tasks import TASKS, Batch, Cell, Task
from icl_bench.tasks.base import TrainingBudget, measured_floors

ROOT = Path(__file__).resolve().parents[1]
FLOOR_EXAMPLES = 256
SHOWN = {"text": "text:corpus=example,length=32"}
"""Specs in place of defaults that differ from machine to machine."""
FOLDERS = {
    "tests": "Tests, in the folders and files of the modules that they test",
    "benchmarks": "Scripts that measure, and their results",
    "docs": "These pages; `make docs` writes their generated parts",
}
RUN_MODELS = (
    record.RunResult, record.CellScore, record.GroupScore, record.StateReport, record.WorkReport,
    declarations.ArchitectureDeclaration, declarations.CapacityLaw,
)  # fmt: skip
SPEC_MODELS = (spec.RunSpec, spec.Component, spec.ModelSpec, spec.TrainSpec, spec.EvalSpec)


def block(text: str, language: str = "text") -> str:
    """Return a fenced block without trailing spaces."""
    lines = "\n".join(line.rstrip() for line in text.strip("\n").splitlines())
    return f"```{language}\n{lines}\n```\n"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table; bars inside cells are escaped."""
    lines = [list(head)]
    lines.append([":--"] * len(lines[0]))
    lines += [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def prose(docstring: str | None) -> str:
    """Return a docstring as Markdown: equations become blocks, doctests are left out."""
    text = inspect.cleandoc(docstring or "").split("\n>>>")[0].strip("\n")
    parts = []
    for paragraph in re.split(r"\n\s*\n", text):
        is_equation = paragraph.startswith("    ") or re.search(r"\S {3,}\S", paragraph)
        parts.append(block(inspect.cleandoc(paragraph)) if is_equation else paragraph + "\n")
    return "\n".join(parts)


def module_prose(entry: type) -> str:
    """Return the docstring of the module that defines a class, as Markdown."""
    return prose(sys.modules[entry.__module__].__doc__)


def parameters(
    model: type[Frozen],
    defaults: Mapping[str, object],
    names: Iterable[str],
    derived: Mapping[str, object] | None = None,
) -> str:
    """Return a table of parameters with their defaults and docstrings; `derived` has those of one model width."""
    rows, meanings = [], field_descriptions(model)
    for name in names:
        default = plain(defaults[name])
        shown = "derived" if default is None else f"`{format_value(default)}`"
        value = plain((derived or {}).get(name))
        if default is None and value is not None:
            shown += f", `{format_value(value)}` at width 64"
        rows.append((f"`{name}`", shown, meanings.get(name, "")))
    return table(("parameter", "default", "meaning"), rows)


def plain(value: object) -> str | int | float | bool | tuple[int, ...] | None:
    """Return a default as the spec grammar writes it."""
    assert value is None or isinstance(value, str | int | float | bool | tuple | list)
    return tuple(value) if isinstance(value, list) else value


def commands() -> str:
    """Return the help of every command."""
    group = typer.main.get_command(app)
    names = list(group.commands)
    parts = [block(help_of([]))]
    for name in names:
        parts.append(f"## {name}\n\n{block(help_of([name]))}")
        for inner in getattr(group.commands[name], "commands", {}):
            parts.append(f"### {name} {inner}\n\n{block(help_of([name, inner]))}")
    return "\n" + "\n".join(parts) + "\n"


def help_of(arguments: list[str]) -> str:
    """Return the output of `icl-bench ... --help`."""
    return CliRunner().invoke(app, [*arguments, "--help"], prog_name="icl-bench").stdout


def console(*lines: str) -> str:
    """Run commands, and return them with their output."""
    shown = [f"$ {line}\n{CliRunner().invoke(app, shlex.split(line)[1:]).stdout.rstrip()}" for line in lines]
    return "\n" + block("\n".join(shown), "console") + "\n"


def engines() -> str:
    """Return a table of the engines, and for each a table of its options."""
    rows = [(f"`{name}`", ENGINES.summary(name), engine_needs(name)) for name in ENGINES]
    parts = [table(("engine", "meaning", "needs"), rows)]
    for name in ENGINES:
        meanings = field_descriptions(ENGINES[name])
        options = [
            (f"`{key}`", "required" if field.is_required() else option_default(field.default), meanings.get(key, ""))
            for key, field in ENGINES[name].model_fields.items()
        ]
        parts += [f"### {name}\n", table(("option", "default", "meaning"), options)] if options else []
    return "\n" + "\n".join(parts) + "\n"


def engine_needs(name: str) -> str:
    """Return the extra and the program that an engine needs."""
    engine = ENGINES[name]
    needs = [f"`{install_command(name)}`"] if engine.package else []
    return ", ".join([*needs, *([f"the program `{engine.program}`"] if engine.program else [])]) or "nothing"


def option_default(value: object) -> str:
    """Return the default of an option, or `-` for none."""
    return "-" if value is None else f"`{format_value(plain(value))}`"


def presets() -> str:
    """Return a table of the fields that each preset changes."""
    rows = []
    for name, sections in PRESETS.items():
        changes = [
            f"{section}.{key}={format_value(value)}" for section, own in sections.items() for key, value in own.items()
        ]
        rows.append((f"`{name}`", ", ".join(f"`{change}`" for change in changes) or "nothing"))
    return "\n" + table(("preset", "sets"), rows) + "\n"


def tasks() -> str:
    """Return a section for each task."""
    return "\n" + "\n".join(task_section(name) for name in TASKS) + "\n"


def task_section(name: str) -> str:
    """Return the rule, the parameters, the cells and an example of a task."""
    cls, spec = TASKS[name], SHOWN.get(name, name)
    task, defaults = make_task(task_component(spec)), cls()
    shortest = min(task.eval_cells, key=lambda cell: cell.length)
    choice = "" if shortest == task.eval_cells[0] else f" --cell {shortest.label}"
    shown = example_text(draw_example(spec, shortest.label, 0)).plain
    return "\n".join(
        [
            f"## {name}\n",
            prose(cls.__doc__),
            budget(name, cls.budget),
            f"![A small example of {name}, scored tokens framed, their targets below](figures/tasks/{name}.svg)\n",
            parameters(cls, {name: getattr(defaults, name) for name in cls.model_fields}, cls.model_fields),
            f"{alphabet(task)} Load: {task.load_name}.\n",
            cells(task),
            trivial_solvers(task),
            block(f"$ icl-bench show {spec}{choice}\n{shown}", "console"),
        ]
    )


def budget(name: str, known: TrainingBudget) -> str:
    """Say with which training the smallest cell is learned."""
    return (
        f"Budget: {known.steps} steps at a learning rate of {known.lr:g} on `{name}:{known.params}`, "
        f"with {known.arch}.\n"
    )


def alphabet(task: Task) -> str:
    """Return a sentence on inputs and targets."""
    if isinstance(task.interface, Vectors):
        return f"Inputs are vectors of {task.interface.width_in} real numbers, targets of {task.interface.width_out}."
    return f"{task.vocabulary} tokens, special ones included."


def cells(task: Task) -> str:
    """Return a table of the cells at the default parameters."""
    total = sum(cell.weight for cell in task.train_cells)
    shares = {cell.label: cell.weight / total for cell in task.train_cells}
    rows = []
    for cell in task.eval_cells:
        solver, accuracy = best_floor(task, cell)
        share = f"{shares[cell.label]:.0%}" if shares.get(cell.label) else "-"
        sizes = (str(cell.length), str(cell.scored), share, f"{task.state_bits(cell):.0f}")
        rows.append((f"`{cell.label}`", *sizes, f"{accuracy:.2f}", f"`{solver}`"))
    head = ("cell", "positions", "scored", "of training", "bits to carry", "floor", "reached by")
    return table(head, rows)


def best_floor(task: Task, cell: Cell) -> tuple[str, float]:
    """Return the best trivial solver on the first test examples of seed 0, and its accuracy."""
    feed = ExampleStream(task, cell, "test", [0], torch.device("cpu"))
    batch = Batch(*(part[0] for part in feed.batch(torch.arange(FLOOR_EXAMPLES))))
    measured = measured_floors(task, cell, batch)
    return max(measured.items(), key=lambda item: item[1])


def trivial_solvers(task: Task) -> str:
    """Return a list of the trivial solvers, and one of those that keep the whole context, if there are any."""
    kinds = {
        "Trivial solvers": task.floors,
        "Without training, but with the whole context kept, no floor for a state": task.references,
    }
    lists = []
    for kind, solvers in kinds.items():
        lines = [f"* `{name}`: {first_line(solve.__doc__)}" for name, solve in solvers.items()]
        lists += [f"{kind}:\n\n" + "\n".join(lines) + "\n"] if lines else []
    return "\n".join(lists)


def first_line(docstring: str | None) -> str:
    """Return the first paragraph of a docstring, on one line."""
    return " ".join(inspect.cleandoc(docstring or "").split("\n\n")[0].split())


def architectures() -> str:
    """Return a section for each architecture."""
    return "\n" + "\n".join(architecture_section(name) for name in ARCHITECTURES) + "\n"


def architecture_section(name: str) -> str:
    """Return the equations, the own parameters and the size of an architecture."""
    cls = ARCHITECTURES[name]
    shared = HeadsArchitecture.model_fields if issubclass(cls, HeadsArchitecture) else {}
    defaults = dict(cls())
    own = [field for field in cls.model_fields if field not in shared or defaults[field] != shared[field].default]
    parts = [f"## {name}\n", module_prose(cls)]
    if issubclass(cls, HeadsArchitecture):
        parts.append("Shares the [factors of multi-head mixers](#multi-head-mixers).\n")
    if own:
        parts.append(parameters(cls, defaults, own, dict(cls().resolved(64))))
    return "\n".join(parts)


def families() -> str:
    """Return a table of the architectures by family, with the operator that carries each and its state."""
    cards = [ARCHITECTURES[name].card() for name in ARCHITECTURES]
    families = list(dict.fromkeys(card.family for card in cards))
    rows = [
        (f"[`{card.name}`](#{card.name})", card.family, f"`{card.operator}`", f"`{card.recurrence}`", card.state)
        for card in sorted(cards, key=lambda card: (families.index(card.family), card.name))
    ]
    return "\n" + table(("architecture", "family", "operator", "recurrence", "state of a layer"), rows) + "\n"


def family_names() -> str:
    """Return a table of the names in each family of architectures."""
    cards = [ARCHITECTURES[name].card() for name in ARCHITECTURES]
    families = list(dict.fromkeys(card.family for card in cards))
    names = [", ".join(f"`{card.name}`" for card in cards if card.family == family) for family in families]
    return "\n" + table(("family", "architectures"), zip(families, names, strict=True)) + "\n"


def heads() -> str:
    """Return the equations and parameters that all multi-head mixers share."""
    fields = HeadsArchitecture.model_fields
    defaults = {name: field.default for name, field in fields.items()}
    return f"\n{module_prose(HeadsArchitecture)}\n{parameters(HeadsArchitecture, defaults, fields)}\n"


def backbone() -> str:
    """Return the equations of the model around the mixers."""
    fields = spec.ModelSpec.model_fields
    defaults = {name: field.default for name, field in fields.items()}
    return f"\n{module_prose(Backbone)}\n{parameters(spec.ModelSpec, defaults, fields)}\n"


def own_layers() -> str:
    """Return the description of layers from outside the package."""
    return f"\n{module_prose(Plain)}\n"


def sizes() -> str:
    """Return a table of state, parameters and operations of each architecture at its defaults."""
    rows = []
    for text in (*ARCHITECTURES, "power:p=3", "power:p=4", "gated-conv+softmax"):
        short, long = account(text, 64, 2, 64), account(text, 64, 2, 1024)
        ratio = "-" if long.ratio is None else f"{long.ratio:.3g}"
        rows.append((f"`{long.arch}`", f"{short.elements:,}", f"{long.elements:,}", f"{long.params:,}", ratio))
    head = ("architecture", "state after 64 tokens", "after 1,024", "parameters of the mixers", "weight-state FLOPs")
    return "\n" + table(head, rows) + "\n"


def run_models() -> str:
    """Return the fields of a result and its parts."""
    return model_sections(RUN_MODELS)


def spec_models() -> str:
    """Return the fields of a specification and its parts."""
    return model_sections(SPEC_MODELS)


def study_models() -> str:
    """Return the fields of a study file and its parts."""
    return model_sections((Study, MatchSpec, Published, LossPoint))


def manifest_model() -> str:
    """Return the fields of a manifest."""
    return model_sections((record.Manifest,))


def columns() -> str:
    """Return the columns of runs, cells and curves as tables."""
    heads = (("a run", RUN_COLUMNS), ("a cell", CELL_COLUMNS), ("a validation of a cell", CURVE_COLUMNS))
    rows = [(what, ", ".join(f"`{name}`" for name in names)) for what, names in heads]
    return "\n" + table(("columns of", "names"), rows) + "\n"


def metric_model() -> str:
    """Return the fields of a line of metrics."""
    return model_sections((record.MetricPoint,))


def model_sections(models: Iterable[type[Frozen]]) -> str:
    """Return a heading and a table of fields for each model."""
    sections = [f"### {model.__name__}\n\n{prose(model.__doc__)}\n{fields(model)}" for model in models]
    return "\n" + "\n".join(sections) + "\n"


def fields(model: type[Frozen]) -> str:
    """Return a table of the fields of a record."""
    rows, meanings = [], field_descriptions(model)
    for name, field in model.model_fields.items():
        value = None if field.is_required() else field.get_default(call_default_factory=True)
        plain_value = value.model_dump(mode="json") if isinstance(value, Frozen) else value
        default = "" if field.is_required() else f"`{canonical_json(plain_value)}`"
        rows.append((f"`{name}`", f"`{type_name(field.annotation)}`", default, meanings.get(name, "")))
    return table(("field", "type", "default", "meaning"), rows)


def type_name(annotation: object) -> str:
    """Return the name of a type as a reader of JSON needs it."""
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    text = re.sub(r"\b(?:typing|collections\.abc|icl_bench(?:\.\w+)+)\.", "", text)
    text = re.sub(r"Annotated\[(.+?), FieldInfo\(.*?\)\]\)\]", r"\1", text)
    return text.replace("bool | int | float | str | None | tuple[bool | int | float | str | None, ...]", "Value")


def layers() -> str:
    """Return the order of imports, from the contract of layers in `pyproject.toml`."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    return "\n" + block("\n".join(next(own["layers"] for own in contracts if own["type"] == "layers"))) + "\n"


def tree() -> str:
    """Return the folders and modules of the package, one line each."""
    lines = ["icl_bench/", *(f"  {line}" for line in package_lines())]
    lines += [f"{folder + '/':<20}{text}" for folder, text in FOLDERS.items()]
    return "\n" + block("\n".join(lines)) + "\n"


def package_lines() -> Iterator[str]:
    """Iterate over modules, then folders, of the package with the first sentence of their docstrings."""
    package = ROOT / "icl_bench"
    modules = [path for path in sorted(package.glob("*.py")) if not path.stem.startswith("__")]
    for path in [*modules, *sorted(package.glob("*/__init__.py"))]:
        name = path.name if path.parent == package else f"{path.parent.name}/"
        sentence = first_line(ast.get_docstring(ast.parse(path.read_text())))
        yield f"{name:<18}{sentence.split('. ')[0].rstrip('.')}"
