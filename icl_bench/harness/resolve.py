"""Resolve the text that a user types into run specifications with every default written out."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from icl_bench.architectures import ARCHITECTURES, Architecture
from icl_bench.architectures.fla_layer import outside_layer
from icl_bench.errors import SpecError, UnknownNameError
from icl_bench.outside import guarding, is_outside, source_digest
from icl_bench.runs.spec import NEWEST_RECIPE, Component, EvalSpec, ModelSpec, RunSpec, TrainSpec, label_of
from icl_bench.schema import DOTTED, Frozen, Spec, Value, build, nearest, parse_scalar, parse_spec
from icl_bench.tasks import TASKS, Task

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "quick": {"train": {"steps": 250}, "evaluation": {"examples": 512, "validation": 128, "points": 5}},
    "zoology": {
        "model": {"d_model": 128, "mlp": 0.0, "embedding_scale": 0.3},
        "train": {
            "steps": 22_624, "batch": 256, "examples": 180_000,
            "recipe": 1, "lr": 1e-3, "warmup": 0.0, "final_lr": 0.0, "beta2": 0.999, "clip": None,
        },
        "evaluation": {"examples": 1000, "points": 32},
    },
}  # fmt: skip
"""Settings by name: `quick` for two CPU cores, `zoology` for the published protocol (arXiv 2402.18668, figure 2), which
decays every parameter."""
SECTIONS: Mapping[str, type[Frozen]] = {"model": ModelSpec, "train": TrainSpec, "evaluation": EvalSpec}
"""Sections of a run specification, each with fields of its own."""
SET_BY_OPTIONS = {"seed": "--seeds 0..4", "seeds": "--seeds 0..4", "precision": "--precision bfloat16"}
"""Fields of a run that options set, with an example."""
MOST_SEEDS = 10_000
MOST_RATES = 1_000


class Request(NamedTuple):
    """The runs that a user asks for: one for every combination of architecture, learning rate and seed."""

    task: str
    archs: Sequence[str]
    preset: str = "default"
    lrs: Sequence[float] = ()
    seeds: Sequence[int] = (0,)
    precision: str = "float32"
    settings: Sequence[str] = ()
    """Assignments `section.field=value`, as given to --set."""
    target_flops: float | None = None
    """Operations of each training, from which its steps follow; None for the steps of the settings."""


QUICKSTART = Request(task="assoc-recall", archs=("softmax", "power:p=2", "linear", "window:w=8"), preset="quick")
"""Request of `icl-bench quickstart`."""


def expand_request(request: Request) -> list[RunSpec]:
    """Return the run specifications of a request, ordered by architecture, learning rate and seed."""
    task = task_component(request.task)
    settings = merge_settings(request.preset, request.settings)
    model = model_of(request.preset, request.settings)
    archs = [arch_components(text, model.d_model) for text in request.archs]
    if "b" in model.canon:
        for component in itertools.chain.from_iterable(archs):
            make_arch(component).canon_width(model.d_model)  # refuses a mixer that cannot have this layer
    sections = {name: settings.get(name, {}) for name in SECTIONS}
    if sections["train"].get("curriculum"):
        check_rising(archs)
    sections["train"] = {**sections["train"], **steps_of_task(task, sections["train"], request.settings)}
    runs = {}
    for arch, lr in itertools.product(archs, request.lrs or (None,)):
        train = sections["train"] if lr is None else {**sections["train"], "lr": lr}
        fields = {"task": task, "arch": arch, "precision": request.precision, **sections, "train": train}
        for seed in request.seeds:
            run = build(RunSpec, {"seed": seed, "data_seed": seed, **settings, **fields}, "run")
            fields = {name: getattr(run, name) for name in fields}  # validated, for the other seeds
            runs[run.id] = run
    return list(runs.values())


def check_rising(archs: Sequence[Sequence[Component]]) -> None:
    """Raise SpecError for an architecture without a layer whose degree can rise in training."""
    for components in archs:
        if not any(make_arch(component).rises for component in components):
            raise SpecError(
                "train.curriculum raises the degree of power attention with p >= 3 and an rms or raw normalizer; got "
                f"{'+'.join(component.label for component in components)}; use power:p=3, or leave it at 0"
            )


def steps_of_task(task: Component, train: Mapping[str, Any], settings: Sequence[str]) -> dict[str, int]:
    """Return the steps that show the training examples that a task asks for; nothing if it asks for no number."""
    wanted = make_task(task).training_examples
    if wanted is None:
        return {}
    steps = -(-wanted // build(TrainSpec, train, "train").batch)
    if set_steps := [setting for setting in settings if setting.startswith("train.steps=")]:
        raise SpecError(f"train.steps follows from {task.label}, {steps} steps; got {set_steps[0]}; leave it out")
    return {"steps": steps}


def model_of(preset: str, settings: Sequence[str]) -> ModelSpec:
    """Return the model around the mixers under a preset and the assignments of --set."""
    return build(ModelSpec, merge_settings(preset, settings).get("model", {}), "model")


def merge_settings(preset: str, settings: Sequence[str]) -> dict[str, Any]:
    """Apply the assignments of --set to a preset."""
    if preset not in PRESETS:
        hint = nearest(preset, PRESETS)
        raise UnknownNameError(f"no preset is named {preset!r}; {hint}known: {', '.join(PRESETS)}")
    merged: dict[str, Any] = {name: dict(section) for name, section in PRESETS[preset].items()}
    merged["train"] = {"recipe": NEWEST_RECIPE, **merged.get("train", {})}
    known = [f"{name}.{field}" for name, section in SECTIONS.items() for field in section.model_fields] + ["data_seed"]
    for setting in settings:
        path, equals, text = setting.partition("=")
        parts = path.split(".")
        if not equals or len(parts) > 2 or not all(parts):
            raise SpecError(f"--set takes field=value or section.field=value; got {setting!r}; try train.steps=1000")
        if own := SET_BY_OPTIONS.get(path):
            raise SpecError(f"--set has no field {path!r}, which an option sets; got {setting!r}; write {own}")
        if path not in known:
            raise SpecError(f"--set has no field {path!r}; {nearest(path, known)}fields: {', '.join(known)}")
        if path == "train.lr" and ("," in text or ".." in text):
            raise SpecError(f"--set takes one value a field; got {setting!r}; several rates are given by --lr {text}")
        target = merged if len(parts) == 1 else merged.setdefault(parts[0], {})
        target[parts[-1]] = parse_scalar(text, setting)
    return merged


def make_task(component: Component) -> Task:
    """Build the task that a component describes; raise UnknownNameError for a version of its data that nobody makes."""
    cls = TASKS.version(component.name, component.version)
    with guarding(cls, component.name):
        return build(cls, component.params, component.name)


def task_component(text: str) -> Component:
    """Return the component of a task as typed, with every parameter written out.

    The label names the version of the data where that is a retired one.
    """
    spec = parse_spec(text, versioned=True)
    cls = TASKS.version(spec.name, spec.version)
    with guarding(cls, spec.name):
        typed = build(cls, spec.params, spec.name)
        task = typed.resolved()
        params, version = plain_params(task.model_dump()), cls.data_version
        for part in ("eval_cells", "interface", "load_name"):  # errors of a task from outside show before training
            getattr(task, part)
    named = {
        key: value if getattr(task, key) == getattr(typed, key) else params[key]
        for key, value in spec.params.items()
        if key in params  # a later parameter at its default is left out
    }
    label = str(Spec(spec.name, named, version if cls.retired else None))
    return Component(name=spec.name, version=version, params=params, source=outside_source(cls), label=label)


def outside_source(cls: type) -> str | None:
    """Return the digest of the source of a registered class from outside the package, None for a built-in class."""
    return source_digest(cls.__module__, cls) if is_outside(cls) else None


def current_source(component: Component) -> str | None:
    """Return the digest of the source that an architecture has in this process, which imports it."""
    if DOTTED.fullmatch(component.name):
        return outside_layer(component.name, component.params).source()
    return outside_source(ARCHITECTURES[component.name])


def make_arch(component: Component) -> Architecture:
    """Build the architecture that a component describes."""
    if DOTTED.fullmatch(component.name):
        return outside_layer(component.name, component.params)
    return build(ARCHITECTURES[component.name], component.params, component.name)


def arch_components(text: str, d_model: int) -> tuple[Component, ...]:
    """Return the components of an architecture as typed, `a` or `a+b` for successive layers."""
    return tuple(arch_component(part, d_model) for part in split_pattern(text))


def label_of_arch(text: str, d_model: int) -> str:
    """Return the label by which records name an architecture as typed, in a model of this width."""
    return "+".join(component.label for component in arch_components(text, d_model))


def split_pattern(text: str) -> list[str]:
    """Split `a+b` into its parts; a plus sign inside a number separates nothing."""
    parts: list[str] = []
    for piece in text.split("+"):
        if parts and (not piece or not piece[0].isalpha()):
            parts[-1] += "+" + piece
        else:
            parts.append(piece)
    return parts


def arch_component(text: str, d_model: int) -> Component:
    """Return the component of one architecture as typed, with every parameter written out."""
    spec = parse_spec(text)
    if DOTTED.fullmatch(spec.name):
        source = outside_layer(spec.name, spec.params).facts(d_model, 1).source
        return Component(name=spec.name, params=spec.params, source=source, label=str(spec))
    cls = ARCHITECTURES[spec.name]
    with guarding(cls, spec.name):
        full = build(cls, spec.params, spec.name).resolved(d_model)
        params = plain_params(full.model_dump())
        defaults = build(cls, {name: params[name] for name in cls.shown}, spec.name).resolved(d_model)
        label = label_of(spec, params, plain_params(defaults.model_dump()), tuple(cls.shown))
        version = full.version
    return Component(name=spec.name, version=version, params=params, source=outside_source(cls), label=label)


def plain_params(dumped: Mapping[str, Any]) -> dict[str, Value]:
    """Turn lists into tuples, so that the spec grammar can write every parameter."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in dumped.items()}


def parse_lrs(text: str) -> tuple[float, ...]:
    """Parse learning rates `1e-3`, `1e-3,3e-3`, or a logarithmic grid `low..high/points`; raise SpecError for others.

    >>> [f"{lr:.1e}" for lr in parse_lrs("1e-4..1e-2/3")]
    ['1.0e-04', '1.0e-03', '1.0e-02']
    """
    try:
        if ".." not in text:
            return tuple(positive(float(part)) for part in text.split(","))
        ends, _, count = text.partition("/")
        low, high = (positive(float(end)) for end in re.split(r"(?<!\.)\.\.(?!\.)", ends, maxsplit=1))
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
    return tuple(float(f"{low * math.exp(ratio * i):.6g}") for i in range(points))


def positive(value: float) -> float:
    """Return a finite number above 0 unchanged; raise ValueError for any other."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(value)
    return value


def parse_seeds(text: str) -> tuple[int, ...]:
    """Parse seeds `0`, `0,1,5`, or a range `0..4` with both ends included; raise SpecError for other text.

    >>> parse_seeds("0..3")
    (0, 1, 2, 3)
    """
    try:
        if ".." in text:
            first, last = (int(end) for end in text.split("..", 1))
            seeds = tuple(range(first, last + 1)) if last - first < MOST_SEEDS else ()
        else:
            seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        seeds = ()
    if not seeds or min(seeds) < 0 or len(seeds) > MOST_SEEDS:
        raise SpecError(
            f"--seeds takes 0, 0,1,5 or a range 0..4, at most {MOST_SEEDS} from 0 up; got {text!r:.60}; try 0..4"
        )
    return seeds
