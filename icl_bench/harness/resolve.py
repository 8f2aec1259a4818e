"""From what a user types to run specifications, with every default written out."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from icl_bench.architectures import ARCHITECTURES, Architecture
from icl_bench.architectures.plain import Plain
from icl_bench.errors import SpecError, UnknownNameError
from icl_bench.runs.spec import Component, ModelSpec, RunSpec, label_of
from icl_bench.schema import DOTTED, Spec, Value, build, nearest, parse_scalar, parse_spec
from icl_bench.tasks import TASKS, Task

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "quick": {"train": {"steps": 250}, "evaluation": {"examples": 512, "validation": 128, "points": 5}},
    "zoology": {
        "model": {"d_model": 128, "mlp": 0.0, "embedding_scale": 0.3},
        "train": {
            "steps": 22_624,
            "batch": 256,
            "lr": 1e-3,
            "warmup": 0.0,
            "final_lr": 0.0,
            "beta2": 0.999,
            "clip": None,
            "examples": 180_000,
        },
        "evaluation": {"examples": 1000, "points": 32},
    },
}
"""Settings by name: `quick` for two cores, `zoology` the published protocol (arXiv 2402.18668, figure 2)."""


class Request(NamedTuple):
    """What a user asked for; every combination of architecture, learning rate and seed is a run."""

    task: str
    archs: Sequence[str]
    preset: str = "default"
    lrs: Sequence[float] = ()
    seeds: Sequence[int] = (0,)
    precision: str = "float32"
    settings: Sequence[str] = ()
    """`section.field=value`, as given to --set."""


QUICKSTART = Request(
    task="assoc-recall",
    archs=("softmax", "power:p=2", "linear", "window:w=8"),
    preset="quick",
)
"""What `icl-bench quickstart` runs."""


def expand(request: Request) -> list[RunSpec]:
    """All run specifications of a request, in the order architecture, learning rate, seed.

    Raises:
        IclBenchError: where a name is unknown or a value breaks a rule.
    """
    task = task_component(request.task)
    settings = merged_settings(request)
    d_model = build(ModelSpec, settings.get("model", {}), "model").d_model
    runs = []
    for text in request.archs:
        arch = arch_components(text, d_model)
        for lr in request.lrs or (None,):
            for seed in request.seeds:
                runs.append(one_run(task, arch, settings, lr, seed, request.precision))
    return list({run.id: run for run in runs}.values())


def one_run(
    task: Component,
    arch: tuple[Component, ...],
    settings: Mapping[str, Any],
    lr: float | None,
    seed: int,
    precision: str,
) -> RunSpec:
    """One run specification."""
    sections = {name: dict(settings.get(name, {})) for name in ("model", "train", "evaluation")}
    if lr is not None:
        sections["train"]["lr"] = lr
    plain = {"task": task, "arch": arch, "seed": seed, "data_seed": seed, "precision": precision}
    return build(RunSpec, {**plain, **settings, **sections}, "run")


def merged_settings(request: Request) -> dict[str, Any]:
    """The preset with --set on top."""
    if request.preset not in PRESETS:
        hint = nearest(request.preset, PRESETS)
        raise UnknownNameError(f"no preset is named {request.preset!r}; {hint}known: {', '.join(PRESETS)}")
    merged: dict[str, Any] = {name: dict(section) for name, section in PRESETS[request.preset].items()}
    for setting in request.settings:
        path, equals, text = setting.partition("=")
        parts = path.split(".")
        if not equals or len(parts) > 2 or not all(parts):
            raise SpecError(f"--set takes field=value or section.field=value; got {setting!r}; try train.steps=1000")
        check_setting(parts, path)
        target = merged if len(parts) == 1 else merged.setdefault(parts[0], {})
        target[parts[-1]] = parse_scalar(text, setting)
    return merged


def check_setting(parts: Sequence[str], path: str) -> None:
    """Refuse a setting that names no field of a run; raises SpecError."""
    known = list(settable_fields())
    if path not in known:
        raise SpecError(f"--set has no field {path!r}; {nearest(path, known)}fields: {', '.join(known)}")


def settable_fields() -> Iterable[str]:
    """Fields that --set reaches."""
    for name, field in RunSpec.model_fields.items():
        section = field.annotation
        if name in ("model", "train", "evaluation") and section is not None:
            yield from (f"{name}.{inner}" for inner in section.model_fields)
        elif name == "data_seed":
            yield name


def make_task(component: Component) -> Task:
    """The task that a component describes."""
    return build(TASKS[component.name], component.params, component.name)


def task_component(text: str) -> Component:
    """A task as typed, with every parameter written out."""
    spec = parse_spec(text)
    cls = TASKS[spec.name]
    task = build(cls, spec.params, spec.name)
    return Component(
        name=spec.name,
        version=cls.data_version,
        params=plain_params(task.model_dump()),
        label=str(Spec(spec.name, spec.params)),
    )


def make_arch(component: Component) -> Architecture:
    """The architecture that a component describes."""
    if DOTTED.fullmatch(component.name):
        return Plain(path=component.name, params=component.params)
    return build(ARCHITECTURES[component.name], component.params, component.name)


def arch_components(text: str, d_model: int) -> tuple[Component, ...]:
    """An architecture as typed, `a` or `a+b` for successive layers, with every parameter written out."""
    return tuple(arch_component(part, d_model) for part in split_pattern(text))


def split_pattern(text: str) -> list[str]:
    """The parts of `a+b`; a plus sign inside a number is left alone."""
    parts: list[str] = []
    for piece in text.split("+"):
        if parts and (not piece or not piece[0].isalpha()):
            parts[-1] += "+" + piece
        else:
            parts.append(piece)
    return parts


def arch_component(text: str, d_model: int) -> Component:
    """One architecture as typed, with every parameter written out."""
    spec = parse_spec(text)
    if DOTTED.fullmatch(spec.name):
        Plain(path=spec.name, params=spec.params).make(d_model)
        return Component(name=spec.name, params=spec.params, label=str(spec))
    cls = ARCHITECTURES[spec.name]
    full = build(cls, spec.params, spec.name).resolved(d_model)
    params = plain_params(full.model_dump())
    defaults = build(cls, {name: params[name] for name in cls.shown}, spec.name).resolved(d_model)
    label = label_of(spec, params, plain_params(defaults.model_dump()), tuple(cls.shown))
    return Component(name=spec.name, params=params, label=label)


def plain_params(dumped: Mapping[str, Any]) -> dict[str, Value]:
    """Parameters as the spec grammar can write them."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in dumped.items()}


def parse_lrs(text: str) -> list[float]:
    """Learning rates: `1e-3`, `1e-3,3e-3` or a logarithmic grid `low..high/points`.

    >>> [f"{lr:.1e}" for lr in parse_lrs("1e-4..1e-2/3")]
    ['1.0e-04', '1.0e-03', '1.0e-02']

    Raises:
        SpecError: where the text is none of these.
    """
    try:
        if ".." not in text:
            return [positive(float(part)) for part in text.split(",")]
        ends, _, count = text.partition("/")
        low, high = (positive(float(end)) for end in ends.split("..", 1))
        points = int(count) if count else 7
    except ValueError:
        raise SpecError(
            f"--lr takes positive rates 1e-3, 1e-3,3e-3 or a grid low..high/points; got {text!r}; try 1e-4..3e-2/7"
        ) from None
    if not 2 <= points <= MOST_RATES or high <= low:
        raise SpecError(
            f"a grid of learning rates rises and has 2 to {MOST_RATES} points; got {text!r:.60}; try 1e-4..3e-2/7"
        )
    ratio = math.log(high / low) / (points - 1)
    return [float(f"{low * math.exp(ratio * i):.6g}") for i in range(points)]


def positive(value: float) -> float:
    """The value, where it is finite and above 0; raises ValueError."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(value)
    return value


MOST_SEEDS = 10_000
MOST_RATES = 1_000


def parse_seeds(text: str) -> list[int]:
    """Seeds: `0`, `0,1,5` or a range `0..4`, both ends included.

    >>> parse_seeds("0..3")
    [0, 1, 2, 3]

    Raises:
        SpecError: where the text is none of these.
    """
    try:
        if ".." in text:
            first, last = (int(end) for end in text.split("..", 1))
            seeds = list(range(first, last + 1)) if last - first < MOST_SEEDS else []
        else:
            seeds = [int(part) for part in text.split(",")]
    except ValueError:
        seeds = []
    if not seeds or min(seeds) < 0 or len(seeds) > MOST_SEEDS:
        raise SpecError(
            f"--seeds takes 0, 0,1,5 or a range 0..4, at most {MOST_SEEDS} from 0 up; got {text!r:.60}; try 0..4"
        )
    return seeds
