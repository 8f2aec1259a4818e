"""The study file: its fields, and the safe reading of YAML that may come from anyone; see docs/study-files.md.

The text of learning rates, seeds and sizes is parsed here, once; a `Study` holds numbers.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from icl_bench.architectures.base import Cut
from icl_bench.errors import SpecError, UnknownNameError
from icl_bench.harness.matching import Quantity, parse_state
from icl_bench.harness.resolve import merge_settings, parse_lrs, parse_seeds, split_pattern
from icl_bench.registry import plugin_modules
from icl_bench.runs.rates import Choice
from icl_bench.runs.spec import Precision
from icl_bench.schema import DOTTED, Frozen, Scalar, build, format_value, nearest

LARGEST_STUDY = 1 << 16
"""Largest size of a study file, in bytes."""


def parsed_by(parse: Callable[[str], Sequence[Any]]) -> BeforeValidator:
    """Return a validator that parses text and accepts a tuple of parsed values; it refuses everything else."""

    def read(value: object) -> object:
        if isinstance(value, str):
            return parse(value)
        if isinstance(value, tuple):
            return value
        raise PydanticCustomError("string_type", "Input should be a valid string")

    return BeforeValidator(read)


def parse_sizes(value: object) -> object:
    """Parse each size of a list; leave any other value to the next validator, which refuses it."""
    return tuple(parse_state(str(size)) for size in value) if isinstance(value, list | tuple) else value


RateGrid = Annotated[tuple[float, ...], parsed_by(parse_lrs)]
SeedList = Annotated[tuple[int, ...], parsed_by(parse_seeds)]


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


class Study(Frozen):
    """A study, as its file describes it."""

    name: str
    """Name of the study."""
    question: str
    """Question that the study answers, in one sentence."""
    hypotheses: tuple[str, ...] = ()
    """Expectations, written down before the study ran."""
    conclusions: tuple[str, ...] = ()
    """Conclusions of the author after the first run: place, date, and results that were not expected."""
    corrections: tuple[str, ...] = ()
    """Dated statements of what is wrong in the study or its conclusions; its report opens with them."""
    tasks: tuple[str, ...] = Field(min_length=1)
    """Tasks, as typed on the command line."""
    archs: tuple[str, ...] = Field(min_length=1)
    """Architectures, as typed on the command line."""
    sizes: Annotated[tuple[int, ...], BeforeValidator(parse_sizes)] = ()
    """Sizes to match, given as `16384` or `64KiB`; without any, the architectures stay as typed."""
    match: MatchSpec = MatchSpec()
    """Quantity that the sizes count."""
    lr: RateGrid = parse_lrs("1e-4..1e-1/7")
    """Learning rates to tune over, given in the grammar of --lr."""
    tune_seeds: SeedList = parse_seeds("1000..1002")
    """Seeds of the tuning runs, given in the grammar of --seeds."""
    seeds: SeedList = parse_seeds("0..4")
    """Fresh seeds of the measuring runs, given in the grammar of --seeds."""
    bimodal_seeds: int = Field(default=10, ge=0)
    """Number of measuring seeds of an architecture whose seeds turn out bimodal; seeds after the last are added."""
    protocol: Literal[1, 2] = 2
    """Version of tuning: 1 chooses by the median on the grid; 2 by lock-in and the worst seed, refines the grid by half
    its spacing around the best rate, and adds seeds where outcomes are bimodal."""
    primary_test: Literal["rank", "lock-in"] = "rank"
    """Test on which the claims of the report rest: of accuracies by ranks, or of numbers of locked-in seeds."""
    axes: Mapping[str, Annotated[tuple[Scalar, ...], Field(min_length=1)]] = Field(default_factory=dict)
    """Values of fields of --set, such as `model.d_model`; the study repeats itself for every combination of them."""
    ladder: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(1,), min_length=1)
    """Multiples of `train.steps` at which the study repeats itself, rising; every rung chooses learning rates anew."""
    preset: str = "default"
    """Preset of settings, as for --preset."""
    settings: tuple[str, ...] = ()
    """Fields that override the preset, as for --set."""
    precision: Precision = "float32"
    """Arithmetic of the forward and backward pass."""
    published: tuple[Published, ...] = ()
    """Published results to draw beside the measured ones."""

    @model_validator(mode="after")
    def _check_protocol(self) -> Self:
        both = sorted(set(self.seeds) & set(self.tune_seeds))
        if both and self.protocol > 1:
            raise ValueError(
                f"seeds that measure have no part in choosing a rate; got {both[0]} in both; change seeds or tune_seeds"
            )
        if list(self.ladder) != sorted(set(self.ladder)):
            raise ValueError(f"a ladder rises; got {list(self.ladder)}; write it as [1, 4, 16]")
        for combination in self.combinations:
            merge_settings(self.preset, (*self.settings, *combination))
        if taken := sorted({"train.lr", "train.steps" * (len(self.ladder) > 1), "data_seed"} & self.axes.keys()):
            raise ValueError(f"an axis is no field that the study varies itself; got {taken[0]}; use lr: or ladder:")
        return self

    @property
    def choice(self) -> Choice:
        """Rule by which learning rates are chosen."""
        return "median" if self.protocol == 1 else "lock-in"

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


class UniqueKeyLoader(yaml.SafeLoader):
    """A safe YAML loader that refuses aliases and repeated keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuse aliases, which can expand a small file into a huge one."""
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.constructor.ConstructorError(None, None, "aliases are not allowed", self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Refuse repeated keys, of which YAML would silently keep the last."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for i, key in enumerate(keys):
            if key in keys[:i]:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def load_study(source: str) -> Study:
    """Load a study from a YAML file, or a packaged one by its name; raise SpecError or UnknownNameError for others."""
    path = Path(source)
    if path.suffix not in (".yaml", ".yml"):
        packaged = packaged_studies()
        if source not in packaged:
            hint = nearest(source, packaged)
            raise UnknownNameError(f"no study is named {source!r}; {hint}known: {', '.join(packaged)}, or a .yaml file")
        return parse_study(packaged[source], source)
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"a study is a YAML file that can be read; {source}: {error}; check the path") from None
    return parse_study(text, source)


def packaged_studies() -> dict[str, str]:
    """Return the text of each study that the package contains, by name."""
    folder = resources.files("icl_bench").joinpath("studies")
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".yaml")), key=lambda file: file.name)
    return {file.name.removesuffix(".yaml"): file.read_text() for file in files}


def parse_study(text: str, source: str) -> Study:
    """Parse the text of a study file, which messages call `source`; raise SpecError if it does not describe a study."""
    if len(text.encode()) > LARGEST_STUDY:
        raise SpecError(f"a study file has at most {LARGEST_STUDY} bytes; {source} has {len(text.encode())}; split it")
    try:
        plain = yaml.load(text, UniqueKeyLoader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        why = " ".join(str(error).split())
        raise SpecError(f"a study is plain YAML without tags or aliases; {source}: {why}; correct the file") from None
    if not isinstance(plain, dict) or not all(isinstance(key, str) for key in plain):
        raise SpecError(f"a study is a YAML mapping; {source} is not; write name:, question:, tasks:, archs:")
    study = build(Study, plain, source)
    refuse_code(study, source)
    return study


def refuse_code(study: Study, source: str) -> None:
    """Refuse layers from modules that --plugin does not name; raise SpecError.

    A user who types a module on the command line trusts it; a study file may come from anyone.
    """
    published = [point.arch for point in study.published if point.arch]
    for text in (*study.tasks, *study.archs, *published):
        for part in split_pattern(text):
            module = part.partition(":")[0]
            if DOTTED.fullmatch(part) and module not in plugin_modules():
                raise SpecError(
                    f"a study file runs no code of its own; {source} names {part!r:.80}; allow that module with "
                    f"`icl-bench --plugin {module:.60} sweep ...`"
                )
