"""Studies: architectures matched in size, learning rates chosen on validation, fresh seeds measured.

A study is a YAML file. It is expanded in two phases: `tune` runs a grid of learning rates on its own seeds and extends
it until the best rate is interior; `measure` runs fresh seeds at the chosen rate. All runs are ordinary ones, found in
the store by their identity, so that a study grows without redoing what is done.
"""

import math
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import Field, field_validator

from icl_bench.errors import SpecError, StateBudgetError, UnknownNameError
from icl_bench.harness.engines.base import Engine, run_all
from icl_bench.harness.matching import Budget, Cut, Match, Quantity, Shape, match, parse_state
from icl_bench.harness.resolve import Request, expand, make_task, parse_lrs, parse_seeds, split_pattern
from icl_bench.registry import named_plugins
from icl_bench.runs.events import Reporter
from icl_bench.runs.rates import choose_rate, has_score, rate_score, validation_accuracy
from icl_bench.runs.record import RunRecord
from icl_bench.runs.spec import Precision, RunSpec
from icl_bench.runs.store import Store
from icl_bench.schema import DOTTED, Frozen, build, nearest

MOST_EXTENSIONS = 4
"""Points by which a grid of learning rates may grow on either side."""
MOST_BYTES = 1 << 16


class MatchSpec(Frozen):
    """What architectures are matched in."""

    by: Quantity = "state"
    """`state` elements, mixer `params`, or forward `flops` a token."""
    cut: Cut = "width"
    """`width`: widths are free; `degree`: the power alone is."""


class Published(Frozen):
    """A result that others published, drawn beside the measured ones."""

    label: str
    """What was measured."""
    bytes: int = Field(ge=1)
    """State as they count it."""
    accuracy: float = Field(ge=0, le=1)
    """Mean over the evaluated cells."""
    source: str
    """Where it stands."""
    arch: str | None = None
    """The architecture of the study that stands for it, as typed there."""


class Study(Frozen):
    """A study as its file says it."""

    name: str
    """Its name."""
    question: str
    """What it asks, in a sentence."""
    hypotheses: tuple[str, ...] = ()
    """What was expected, written down before it ran."""
    conclusions: tuple[str, ...] = ()
    """What its author concluded when it first ran: where, when, and what was not as expected."""
    tasks: tuple[str, ...] = Field(min_length=1)
    """Tasks, as typed on the command line."""
    archs: tuple[str, ...] = Field(min_length=1)
    """Architectures, as typed on the command line."""
    sizes: tuple[str, ...] = ()
    """Targets to match, as `16384` or `64KiB`; none to take the architectures as they are."""
    match: MatchSpec = MatchSpec()
    """What the sizes count."""
    lr: str = "1e-4..1e-1/7"
    """Grid of learning rates to tune over, as for --lr."""
    tune_seeds: str = "1000"
    """Seeds of the tuning runs."""
    seeds: str = "0..4"
    """Fresh seeds of the measuring runs."""
    preset: str = "default"
    """Settings, as for --preset."""
    settings: tuple[str, ...] = ()
    """Fields on top, as for --set."""
    precision: Precision = "float32"
    """Arithmetic."""
    published: tuple[Published, ...] = ()
    """Results to draw beside those measured."""

    @field_validator("sizes", mode="before")
    @classmethod
    def _sizes_are_text(cls, value: object) -> object:
        return tuple(str(size) for size in value) if isinstance(value, list | tuple) else value


class Contender(NamedTuple):
    """One architecture at one size on one task."""

    task: str
    arch: str
    size: str | None
    matched: Match | None


class Outcome(NamedTuple):
    """What a study found."""

    measured: list[RunRecord]
    """Runs on fresh seeds at the chosen rates."""
    tuning: list[RunRecord]
    """Runs of the grid."""
    left_out: list[str]
    """Contenders that could not be made, and why."""


class UniqueLoader(yaml.SafeLoader):
    """Safe YAML without aliases, in which a repeated key is an error."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuse aliases, which can blow a small file up."""
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
    """A study file, or a packaged study by name.

    Raises:
        SpecError: where the file cannot be read or says something impossible.
        UnknownNameError: where no study has that name.
    """
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
    """Text of each study that comes with the package, by name."""
    folder = resources.files("icl_bench").joinpath("studies")
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".yaml")), key=lambda file: file.name)
    return {file.name.removesuffix(".yaml"): file.read_text() for file in files}


def parse_study(text: str, source: str) -> Study:
    """Read the text of a study.

    Raises:
        SpecError: where it is no YAML mapping with the fields of a study.
    """
    if len(text.encode()) > MOST_BYTES:
        raise SpecError(f"a study file has at most {MOST_BYTES} bytes; {source} has {len(text.encode())}; split it")
    try:
        plain = yaml.load(text, UniqueLoader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        problem = " ".join(str(error).split())
        raise SpecError(f"a study is plain YAML without tags or aliases; {source}: {problem}; mend the file") from None
    if not isinstance(plain, dict) or not all(isinstance(key, str) for key in plain):
        raise SpecError(f"a study is a YAML mapping; {source} is not; write name:, question:, tasks:, archs:")
    study = build(Study, plain, source)
    refuse_code(study, source)
    return study


def refuse_code(study: Study, source: str) -> None:
    """Refuse layers of one's own whose module was not named with --plugin; raises SpecError.

    A layer typed on the command line is the user's own word; a file may come from anyone.
    """
    for text in (*study.tasks, *study.archs):
        for part in split_pattern(text):
            dotted = DOTTED.fullmatch(part)
            module = part.partition(":")[0]
            if dotted and module not in named_plugins():
                raise SpecError(
                    f"a study file runs no code of its own; {source} names {part!r:.80}; allow that module with "
                    f"`icl-bench --plugin {module:.60} sweep ...`"
                )


def contenders(study: Study) -> tuple[list[Contender], list[str]]:
    """Every architecture at every size on every task, and those that cannot be made, with the reason."""
    found, left_out = [], []
    for task in study.tasks:
        shape = shape_of(study, task)
        for size in study.sizes or (None,):
            for arch in study.archs:
                try:
                    found.append(contender(study, task, arch, size, shape))
                except StateBudgetError as error:
                    left_out.append(str(error))
    return found, left_out


def contender(study: Study, task: str, arch: str, size: str | None, shape: Shape) -> Contender:
    """One architecture, matched where there is a size to match; raises StateBudgetError."""
    if size is None:
        return Contender(task, arch, None, None)
    matched = match(arch, Budget(parse_state(size), study.match.by, study.match.cut), shape)
    return Contender(task, matched.arch, size, matched)


def shape_of(study: Study, task: str) -> Shape:
    """Model width, layers and longest evaluated length of a study on a task."""
    request = Request(task, ["gated-conv"], study.preset, settings=study.settings)
    spec = expand(request)[0]
    length = max(cell.length for cell in make_task(spec.task).eval_cells)
    return Shape(spec.model.d_model, spec.model.layers, length)


def label_in(study: Study, arch: str | None) -> str | None:
    """How the records of a study name an architecture of it."""
    return (
        expand(Request(study.tasks[0], [arch], study.preset, settings=study.settings))[0].arch_label if arch else None
    )


def runs_of(study: Study, entrant: Contender, lrs: Sequence[float], seeds: str) -> list[RunSpec]:
    """Runs of one contender."""
    request = Request(
        entrant.task, [entrant.arch], study.preset, lrs, parse_seeds(seeds), study.precision, study.settings
    )
    return expand(request)


def run_study(study: Study, store: Store, engine: Engine, fleet_size: int, reporter: Reporter) -> Outcome:
    """Tune, extend, measure.

    Raises:
        IclBenchError: where the study asks for something impossible.
    """
    entrants, left_out = contenders(study)
    tuning = tune(study, entrants, store, engine, fleet_size, reporter) if len(parse_lrs(study.lr)) > 1 else {}
    chosen = {entrant: best_rate(tuning[entrant]) if tuning else parse_lrs(study.lr)[0] for entrant in entrants}
    measuring = [spec for entrant in entrants for spec in runs_of(study, entrant, [chosen[entrant]], study.seeds)]
    measured = run_all(measuring, store, engine, fleet_size, reporter) if measuring else []
    return Outcome(measured, [record for records in tuning.values() for record in records], left_out)


def tune(
    study: Study, entrants: Sequence[Contender], store: Store, engine: Engine, fleet_size: int, reporter: Reporter
) -> dict[Contender, list[RunRecord]]:
    """Runs of the grid of each contender, extended until its best rate is interior."""
    grids = {entrant: parse_lrs(study.lr) for entrant in entrants}
    tuning: dict[Contender, list[RunRecord]] = {}
    for _ in range(2 * MOST_EXTENSIONS + 1 if entrants else 0):
        wanted = {entrant: runs_of(study, entrant, grids[entrant], study.tune_seeds) for entrant in entrants}
        flat = [spec for specs in wanted.values() for spec in specs]
        by_id = {record.result.id: record for record in run_all(flat, store, engine, fleet_size, reporter)}
        tuning = {entrant: [by_id[spec.id] for spec in specs] for entrant, specs in wanted.items()}
        grown = {entrant: extended(grids[entrant], tuning[entrant], parse_lrs(study.lr)) for entrant in entrants}
        if grown == grids:
            break
        grids = grown
    return tuning


def best_rate(records: Sequence[RunRecord]) -> float:
    """The rate chosen from the tuning runs of one contender."""
    rates: dict[float, list[float]] = {record.result.lr: [] for record in records}
    for record in records:
        if has_score(record):
            rates[record.result.lr].append(validation_accuracy(record))
    return choose_rate({rate: rate_score(accuracies) for rate, accuracies in rates.items()})


def extended(grid: Sequence[float], records: Sequence[RunRecord], first: Sequence[float]) -> list[float]:
    """The grid, with a point more on the side where the best rate is the last, as long as it may grow."""
    ordered = sorted(grid)
    if len(ordered) < 2 or len(ordered) >= len(first) + 2 * MOST_EXTENSIONS:
        return list(grid)
    best = best_rate(records)
    ratio = math.exp(math.log(max(first) / min(first)) / (len(first) - 1))
    if best == ordered[0] and best > min(first) / ratio ** (MOST_EXTENSIONS - 0.5):
        return [float(f"{best / ratio:.6g}"), *ordered]
    if best == ordered[-1] and best < max(first) * ratio ** (MOST_EXTENSIONS - 0.5):
        return [*ordered, float(f"{best * ratio:.6g}")]
    return list(grid)


class Plan(NamedTuple):
    """How much a study is, before extensions."""

    runs: int
    done: int
    left_out: list[str]
    entrants: list[Contender]
    left: list[list[RunSpec]]
    """Runs that are not done: those that tune, and those that measure, at the first rate."""


def plan(study: Study, store: Store) -> Plan:
    """Count the runs of a study, as far as they are known before tuning: a measuring run is counted at any rate."""
    entrants, left_out = contenders(study)
    rates = parse_lrs(study.lr) if len(parse_lrs(study.lr)) > 1 else []
    grid = [spec for entrant in entrants if rates for spec in runs_of(study, entrant, rates, study.tune_seeds)]
    first = parse_lrs(study.lr)[:1]
    measuring = [spec for entrant in entrants for spec in runs_of(study, entrant, first, study.seeds)]
    left = [[spec for spec in runs if not store.has(spec.id)] for runs in (grid, measuring)]
    return Plan(len(grid) + len(measuring), len(grid) - len(left[0]), left_out, entrants, left)
