"""Estimate of the time of runs, at once and without training: from finished runs of the same kind, else by a rule.

The rule counts the operations of a run and divides them by what one core, or one GPU with a full fleet, does in a
second. It is usually right within a factor of three. While runs finish, a `Forecast` replaces the rule by their times.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from icl_bench.harness.accounting import Footprint
from icl_bench.harness.resolve import make_arch, make_task
from icl_bench.runs.events import Progress
from icl_bench.runs.spec import RunSpec, TrainSpec
from icl_bench.runs.store import Store
from icl_bench.runs.store.files import Folder
from icl_bench.runs.store.index import Index
from icl_bench.schema import build, canonical_json
from icl_bench.tasks.cells import Cell

OPERATIONS = {"cpu": 2e10, "cuda": 4e13}
"""Floating-point operations in a second: of a core, and of a GPU that trains a full fleet of models up to 128 wide."""
NARROW, MOST_GAIN = 128, 8.0
"""Width up to which a GPU waits for memory, and the most by which wider models, in proportion, do more operations."""
STEP_SECONDS = {"cpu": 8e-3, "cuda": 1e-4}
"""Seconds of an update of a member that do not depend on the number of tokens."""
BACKWARD = 3
"""Operations of a training step, relative to those of the forward pass."""


class Estimate(NamedTuple):
    """The estimated time of runs, one after the other in one process."""

    seconds: float
    measured: int
    """Number of runs whose time is that of finished runs of their kind."""
    runs: int
    device: str
    """Type of the device, `cpu` or `cuda`."""

    @property
    def place(self) -> str:
        """Place of the runs, in words."""
        return "on one GPU" if self.device == "cuda" else "in one process"

    @property
    def source(self) -> str:
        """Origin of the estimate, in words."""
        if self.measured == self.runs:
            return "by finished runs of the same kind"
        rule = "by a rule of thumb, usually right within a factor of three"
        return f"{self.measured} of {self.runs} by finished runs, the others {rule}" if self.measured else rule


def estimate_runs(runs: Sequence[RunSpec], device: str, known: Mapping[str, float] | None = None) -> Estimate:
    """Estimate the time of runs on a type of device, `cpu` or `cuda`; `known` has the seconds of a run by kind."""
    times = RunTimes(device, known or {})
    found = [times.of(spec) for spec in runs]
    return Estimate(sum(own.seconds for own in found), sum(own.measured for own in found), len(runs), device)


class RunTime(NamedTuple):
    """The estimated time of a run."""

    kind: str
    seconds: float
    measured: bool
    """Taken from finished runs of the kind."""


class RunTimes:
    """Estimated times of runs; the rule of thumb is applied once for each kind."""

    def __init__(self, device: str, known: Mapping[str, float]) -> None:
        self.device, self.known = device, known
        self.rough: dict[str, float] = {}

    def of(self, spec: RunSpec) -> RunTime:
        """Return the estimated time of a run."""
        kind = run_kind(spec.model_dump(mode="json"))
        if kind in self.known:
            return RunTime(kind, self.known[kind], measured=True)
        if kind not in self.rough:
            self.rough[kind] = rough_seconds(spec, self.device)
        return RunTime(kind, self.rough[kind], measured=False)


def run_kind(spec: Mapping[str, Any]) -> str:
    """Return a key that is equal for specifications which differ in seeds, rate, weight decay and gain alone."""
    train = {name: value for name, value in spec["train"].items() if name not in ("lr", "weight_decay")}
    model = {name: value for name, value in spec["model"].items() if name != "gain"}
    rest = {name: value for name, value in spec.items() if name not in ("seed", "data_seed")}
    return canonical_json({**rest, "train": train, "model": model})


def measured_seconds(store: Store, device_name: str) -> dict[str, float]:
    """Return the mean seconds of the finished runs of a store on a device, by kind; a fleet's are shared evenly."""
    if not Folder(store.root).exists():
        return {}
    index = Index(store)
    seconds = {row.id: row.seconds for row in index.summaries()[0] if row.status == "ok"}
    found: dict[str, list[float]] = {}
    for outline in index.runs()[0].outlines:
        taken = seconds.get(outline.id)
        if taken is not None and outline.environment.device == device_name:
            kind = run_kind(outline.setting.spec)
            found.setdefault(kind, []).append(taken / outline.environment.fleet_size)
    return {kind: fmean(own) for kind, own in found.items()}


def rough_seconds(spec: RunSpec, device: str) -> float:
    """Estimate the seconds of a run on a type of device by the rule of thumb, as a member of a full fleet."""
    trained, evaluated = token_operations(spec)
    rate = operations_in_a_second(spec.model.d_model, device)
    steps = spec.train.steps * (BACKWARD * spec.train.batch * trained / rate + STEP_SECONDS[device])
    examples = spec.evaluation.points * spec.evaluation.validation + spec.evaluation.examples
    return steps + examples * evaluated / rate


def operations_in_a_second(d_model: int, device: str) -> float:
    """Return the operations in a second, by the rule, of a type of device with models of a width."""
    return OPERATIONS[device] * (min(MOST_GAIN, max(1.0, d_model / NARROW)) if device == "cuda" else 1.0)


def token_operations(spec: RunSpec) -> tuple[float, float]:
    """Return the forward operations of a training example on average, and of one example of every evaluated cell."""
    task, model = make_task(spec.task), spec.model
    layers = [make_arch(component) for component in spec.layer_components]
    mlp, head = 6.0 * model.layers * model.d_model * model.mlp_width, 2.0 * model.d_model * task.vocabulary

    def example(cell: Cell) -> float:
        flops = Footprint(layers, model.d_model, cell.length, model.canon, model.mlp_width).flops
        scores = 2.0 * model.layers * model.d_model * cell.length  # of the quadratic form, causal
        state = scores if flops.state is None else min(flops.state, scores)  # unknown of layers from outside
        return cell.length * (flops.weights + state + mlp) + cell.scored * head

    weights = sum(cell.weight for cell in task.train_cells)
    trained = sum(cell.weight * example(cell) for cell in task.train_cells) / weights
    return trained, sum(map(example, task.eval_cells))


def with_target(spec: RunSpec, flops: float) -> RunSpec:
    """Return a run with as many steps as a number of training operations allows, at least one.

    A step counts three forward passes of weights (the head included, the embedding not) and of the state, in the
    cheaper of its two forms. Raise SpecError for more steps than a run can have.
    """
    step = BACKWARD * spec.train.batch * token_operations(spec)[0]
    train = {**spec.train.model_dump(), "steps": max(1, round(flops / step))}
    return spec.model_copy(update={"train": build(TrainSpec, train, "--target-flops")})


class Forecast:
    """The time that is left, from the work that was done and the time that it took; corrected by every finished run.

    Work is counted in seconds of the rule of thumb, or, for kinds of which a run has finished, in measured seconds.
    Several processes need no count of their own: they do more work in the same time.
    """

    def __init__(self, device: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.times, self.clock = RunTimes(device, {}), clock
        self.began: float | None = None
        self.ended: set[str] = set()
        self.left: dict[str, RunTime] = {}
        self.later: list[RunTime] = []
        self.shares: dict[str, float] = {}
        self.seconds: dict[str, list[float]] = {}
        self.rule = 0.0

    def expect(self, later: Sequence[RunSpec]) -> None:
        """Note the runs that are known to follow those of the next plan."""
        self.later = [self.times.of(spec) for spec in later]

    def plan(self, specs: Sequence[RunSpec], missing: Sequence[RunSpec]) -> None:
        """Note the runs of a plan, and those of them that are left, beside those of earlier plans."""
        self.left |= {spec.id: self.times.of(spec) for spec in missing}
        self.ended |= {spec.id for spec in specs} - self.left.keys()

    def progress(self, specs: Sequence[RunSpec], progress: Progress) -> None:
        """Note the share of a fleet's training that was done since its start here."""
        for spec in specs:
            self.shares[spec.id] = (progress.step - progress.began) / progress.steps

    def start(self) -> None:
        """Start the clock, with the first run."""
        if self.began is None:
            self.began = self.clock()

    def finish(self, run: str, seconds: float) -> None:
        """Note a finished run and its share of the seconds of its fleet."""
        self.shares.pop(run, None)
        if (own := self.left.pop(run, None)) is not None:
            self.seconds.setdefault(own.kind, []).append(seconds)
            self.rule += own.seconds
            self.ended.add(run)

    @property
    def finished(self) -> int:
        """Number of finished runs."""
        return len(self.ended)

    @property
    def under_way(self) -> float:
        """Finished part of the runs that are not finished, as a number of runs."""
        return sum(share for run, share in [*self.shares.items()] if run in self.left)

    @property
    def total(self) -> int:
        """Number of runs, finished and expected."""
        return self.finished + len(self.left) + len(self.later)

    def seconds_left(self) -> float:
        """Return the seconds until the last expected run ends."""
        runs, shares, measured = dict(self.left), dict(self.shares), dict(self.seconds)  # a display has its own thread
        means = {kind: fmean(seconds) for kind, seconds in measured.items()}
        finished = sum(map(sum, measured.values()))
        scale = finished / self.rule if self.rule else 1.0

        def cost(run: RunTime) -> float:
            return means.get(run.kind) or scale * run.seconds

        under_way = sum(share * cost(runs[run]) for run, share in shares.items() if run in runs)
        left = sum(map(cost, (*runs.values(), *self.later))) - under_way
        if self.began is None or not finished + under_way:
            return left
        return left * (self.clock() - self.began) / (finished + under_way)


def in_words(seconds: float) -> str:
    """Return a duration with two digits and its unit.

    >>> [in_words(seconds) for seconds in (7.4, 95, 5400, 400_000, 9e8)]
    ['7 s', '1.6 min', '1.5 h', '4.6 days', '29 years']
    """
    for size, unit in ((365 * 86400, "years"), (86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:,.2g} {unit}" if seconds < 100 * size else f"{seconds / size:,.0f} {unit}"
    return f"{max(1.0, seconds):.0f} s"
