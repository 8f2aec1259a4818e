"""The study file: its fields, and the safe reading of YAML that may come from anyone; see docs/study-files.md.

The text of learning rates, seeds and sizes is parsed here, once; a `Study` holds numbers.
"""

import itertools
import math
from importlib import resources
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator

from icl_bench.architectures import ARCHITECTURES
from icl_bench.architectures.base import Cut
from icl_bench.errors import IclBenchError, SpecError, UnknownNameError
from icl_bench.harness.matching import Quantity
from icl_bench.harness.resolve import MOST_SEEDS, merge_settings, parse_lrs, parse_seeds, split_pattern, task_component
from icl_bench.harness.study.values import Assignments, Axes, Ladder, RateGrid, SeedList, Sizes, Specs, Texts
from icl_bench.harness.study.yaml_text import line_of, parse_yaml, read_study_text
from icl_bench.registry import plugin_modules
from icl_bench.runs.rates import Choice
from icl_bench.runs.spec import Precision
from icl_bench.schema import (
    DOTTED,
    Frozen,
    build,
    describe_error,
    format_value,
    nearest,
    parse_spec,
)

MOST_PARTS = 1_000
"""Largest number of combinations of the values of the axes and of the rungs of the ladder."""


class MatchSpec(Frozen):
    """The quantity in which architectures are matched, and the parameters that matching may change."""

    by: Quantity = "state"
    """Matched quantity: `state` elements, mixer `params`, or forward `flops` per token."""
    cut: Cut = "width"
    """Free parameters: `width` frees the widths of keys and values, `degree` frees the power p alone."""
    padding: bool = False
    """Accept keys wider than the model, part of whose state can hold nothing; studies of 2026-11-24 do."""


class Published(Frozen):
    """A published result, drawn beside the measured ones."""

    label: str
    """Name of the published model."""
    bytes: int = Field(ge=1)
    """State size in bytes, as the source counts it."""
    accuracy: float = Field(ge=0, le=1)
    """Mean accuracy over the evaluated cells."""
    source: str
    """Place of publication."""
    arch: str | None = None
    """Architecture of this study that reproduces the published model, as typed in the study."""


class LossPoint(Frozen):
    """A published loss of a language model, drawn where a study has its tokens and its length of rows."""

    label: str
    """Name of the published model."""
    loss: float = Field(gt=0)
    """Mean loss of a token, in nats."""
    vocabulary: int = Field(ge=2)
    """Number of different tokens."""
    length: int = Field(ge=1)
    """Tokens of a row."""
    tokens: float = Field(gt=0)
    """Tokens that the model was trained on."""
    source: str
    """Place of publication."""
    arch: str | None = None
    """Architecture of this study that corresponds to the published model, as typed in the study."""


class Study(Frozen):
    """A study, as its file describes it."""

    name: str
    """Name of the study."""
    question: str
    """Question that the study answers, in one sentence."""
    hypotheses: Texts = ()
    """Expectations, written down before the study ran."""
    conclusions: Texts = ()
    """Conclusions of the author after the first run: place, date, and results that were not expected."""
    corrections: Texts = ()
    """Dated statements of what is wrong in the study or its conclusions; its report opens with them."""
    tasks: Specs = Field(min_length=1)
    """Tasks, as typed on the command line or as `name: {key: value}`; one alone needs no list."""
    archs: Specs = Field(min_length=1)
    """Architectures, in the same forms as tasks."""
    sizes: Sizes = ()
    """Sizes to match, given as `16384` or `64KiB`; without any, the architectures stay as typed."""
    match: MatchSpec = MatchSpec()
    """Quantity that the sizes count."""
    lr: RateGrid = parse_lrs("1e-4..1e-1/7")
    """Learning rates to tune over: a number, a list, or text in the grammar of --lr."""
    tune_seeds: SeedList = parse_seeds("1000..1002")
    """Seeds of the tuning runs: a number, a list, or text in the grammar of --seeds."""
    seeds: SeedList = parse_seeds("0..4")
    """Fresh seeds of the measuring runs, in the same forms."""
    bimodal_seeds: int = Field(default=10, ge=0, le=MOST_SEEDS)
    """Number of measuring seeds of an architecture whose seeds turn out bimodal; seeds after the last are added."""
    protocol: Literal[1, 2] = 2
    """Version of tuning: 1 chooses by the median on the grid; 2 by lock-in and the worst seed, refines the grid by half
    its spacing around the best rate, and adds seeds where outcomes are bimodal."""
    primary_test: Literal["rank", "lock-in"] = "rank"
    """Test on which the claims of the report rest: of accuracies by ranks, or of numbers of locked-in seeds."""
    axes: Axes = Field(default_factory=dict)
    """Values of fields of --set, such as `model.d_model`; the study repeats itself for every combination of them."""
    ladder: Ladder = Field(default=(1,), min_length=1)
    """Multiples of `train.steps` at which the study repeats itself, rising."""
    tuned_rungs: int | None = Field(default=None, ge=1)
    """Number of rungs, from the lowest, that choose learning rates; those above keep the rate of the rung below."""
    refined_rungs: int | None = Field(default=None, ge=0)
    """Number of rungs, from the lowest, at which the grid is refined around its best rate; all without it."""
    preset: str = "default"
    """Preset of settings, as for --preset."""
    settings: Assignments = ()
    """Fields that override the preset, as for --set or as a mapping `{train: {steps: 100}}`."""
    precision: Precision = "float32"
    """Arithmetic of the forward and backward pass."""
    published: tuple[Published, ...] = ()
    """Published results to draw beside the measured ones."""
    published_losses: tuple[LossPoint, ...] = ()
    """Published losses of language models, likewise."""

    @model_validator(mode="after")
    def _check_protocol(self) -> Self:
        both = sorted(set(self.seeds) & set(self.tune_seeds))
        if both and self.protocol > 1:
            raise ValueError(
                f"seeds that measure have no part in choosing a rate; got {both[0]} in both; change seeds or tune_seeds"
            )
        if list(self.ladder) != sorted(set(self.ladder)):
            raise ValueError(f"a ladder rises; got {list(self.ladder)}; write it as [1, 4, 16]")
        parts = math.prod(len(values) for values in self.axes.values()) * len(self.ladder)
        if parts > MOST_PARTS:
            raise ValueError(
                f"a study repeats itself at most {MOST_PARTS} times; got {parts}; list fewer values in axes"
            )
        for combination in self.combinations:
            merge_settings(self.preset, (*self.settings, *combination))
        if taken := sorted({"train.lr", "train.steps" * (len(self.ladder) > 1), "data_seed"} & self.axes.keys()):
            raise ValueError(f"an axis is no field that the study varies itself; got {taken[0]}; use lr: or ladder:")
        return self

    @property
    def choice(self) -> Choice:
        """Rule by which learning rates are chosen."""
        return "median" if self.protocol == 1 else "lock-in"

    def tunes(self, height: int) -> bool:
        """Return whether a rung, the lowest of which has the height 0, chooses learning rates of its own."""
        return len(self.lr) > 1 and (self.tuned_rungs is None or height < self.tuned_rungs)

    @property
    def combinations(self) -> list[tuple[str, ...]]:
        """Combinations of the values of the axes, as assignments of --set, the last axis varying first."""
        values = [[f"{name}={format_value(value)}" for value in own] for name, own in self.axes.items()]
        return list(itertools.product(*values))

    @property
    def more_seeds(self) -> tuple[int, ...]:
        """Seeds that a bimodal architecture is measured with besides `seeds`."""
        fresh = (seed for seed in itertools.count(max(self.seeds) + 1) if seed not in self.tune_seeds)
        missing = self.bimodal_seeds - len(self.seeds) if self.protocol > 1 else 0
        return tuple(itertools.islice(fresh, max(0, missing)))


def load_study(source: str) -> Study:
    """Load a study from a YAML file, or a packaged one by its name; raise SpecError or UnknownNameError for others."""
    path = Path(source)
    if path.suffix not in (".yaml", ".yml"):
        packaged = packaged_studies()
        if source not in packaged:
            hint = nearest(source, packaged)
            raise UnknownNameError(f"no study is named {source!r}; {hint}known: {', '.join(packaged)}, or a .yaml file")
        return parse_study(packaged[source], source)
    return parse_study(read_study_text(path), source)


def packaged_studies() -> dict[str, str]:
    """Return the text of each study that the package contains, by name."""
    folder = resources.files("icl_bench").joinpath("studies")
    files = [file for file in folder.iterdir() if file.name.endswith(".yaml")]
    texts = {file.name.removesuffix(".yaml"): file.read_text() for file in files}
    return dict(sorted(texts.items()))


def parse_study(text: str, source: str) -> Study:
    """Parse the text of a study file, which messages call `source`; raise SpecError if it does not describe a study."""
    plain = parse_yaml(text, source)
    try:
        study = Study.model_validate(plain)
    except ValidationError as error:
        place = f"{source}, line {line_of(text, error.errors()[0]['loc'])}"
        raise SpecError(describe_error(error, Study, place)) from None
    except IclBenchError as error:
        raise SpecError(f"{source}: {error}") from None
    refuse_code(study, source)
    check_specs(study, text, source)
    return study


def check_specs(study: Study, text: str, source: str) -> None:
    """Refuse tasks and architectures that cannot be built, before a run of another starts; raise SpecError."""
    for field, specs in (("tasks", study.tasks), ("archs", study.archs)):
        for number, spec in enumerate(specs):
            try:
                if field == "tasks":
                    task_component(spec)
                else:
                    check_arch_spec(spec)
            except IclBenchError as error:
                raise SpecError(f"{source}, line {line_of(text, (field, number))}: {error}") from None


def check_arch_spec(text: str) -> None:
    """Refuse an architecture that cannot be built; a layer from outside the package is not looked at."""
    for part in split_pattern(text):
        if not DOTTED.fullmatch(part):
            spec = parse_spec(part)
            build(ARCHITECTURES[spec.name], spec.params, spec.name)


def refuse_code(study: Study, source: str) -> None:
    """Refuse layers from modules that --plugin does not name; raise SpecError.

    A user who types a module on the command line trusts it; a study file may come from anyone.
    """
    arches = [*(point.arch for point in study.published), *(point.arch for point in study.published_losses)]
    for text in (*study.tasks, *study.archs, *filter(None, arches)):
        for part in split_pattern(text):
            module = part.partition(":")[0]
            if DOTTED.fullmatch(part) and module not in plugin_modules():
                raise SpecError(
                    f"a study file runs no code of its own; {source} names {part!r:.80}; allow that module with "
                    f"`icl-bench --plugin {module:.60} sweep ...`"
                )
