"""What a run leaves: a frozen, versioned, self-describing record. Nothing here needs torch."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from pydantic import Field

from icl_bench.schema import Frozen

SCHEMA = 2

Status = Literal["ok", "diverged", "oom", "timeout", "crashed", "error"]


class GroupScore(Frozen):
    """Accuracy on the scored positions of one group."""

    accuracy: float
    """Share answered right."""
    count: int
    """Scored positions."""


class CellScore(Frozen):
    """Test results of one cell."""

    label: str
    """Name of the cell."""
    load: int
    """Its load, in the unit of the task."""
    length: int
    """Positions in a sequence."""
    accuracy: float
    """Share of scored positions answered right; for tasks that explain variance, the share of what the oracle does."""
    exact_match: float
    """Share of examples answered right at every scored position, or explained to 99 % of what the oracle does."""
    loss: float
    """Mean cross-entropy of a scored position, in nats; of a continuous task its error."""
    error: float | None = None
    """Mean squared error of a scored position, relative to answering 0; none for tokens."""
    oracle_error: float | None = None
    """The same of the oracle on the same examples."""
    floor: float
    """Accuracy, on the same examples, of the trivial solver that is best on the validation split."""
    floor_solver: str
    """Name of that solver."""
    state_bits: float
    """Bits that the task requires to be carried."""
    scored: int
    """Scored positions of an example."""
    answers: int | None = None
    """Independent answers that a context holds, each as likely to be asked as any other; none where they depend."""
    alphabet: int | None = None
    """Words of which such an answer is one, all equally likely."""
    free_running: float | None = None
    """Share of scored positions right where the model reads its own answers; none for tasks that show none, and for
    layers without a recurrent form."""
    free_running_exact: float | None = None
    """Share of examples right throughout where the model reads its own answers."""
    controls: Mapping[str, float] = Field(default_factory=dict)
    """Accuracy on examples changed so as to tell how answers come about, by control; none for tasks without any."""
    groups: Mapping[str, GroupScore]
    """Accuracy by group of scored positions."""


class StateReport(Frozen):
    """Recurrent state of one sequence, over all layers."""

    elements: int
    """Numbers carried."""
    bytes: int
    """Their size: sums in float32, cached activations in the run's precision."""
    length: int
    """Tokens after which this holds: the longest evaluated cell."""


class WorkReport(Frozen):
    """Forward floating-point operations of a token, over all layers, embedding and head left out."""

    weights: float
    """Activation times parameter."""
    state: float
    """Activation times state."""


class RunResult(Frozen):
    """The outcome of a run; its presence in the store means that the run is finished."""

    schema_version: int = SCHEMA
    """Version of this layout."""
    id: str
    """The run's identity."""
    digest: str
    """SHA-256 of the specification."""
    task: str
    """The task, as reports name it."""
    arch: str
    """The architecture, as reports name it."""
    load_name: str
    """What the load of a cell counts."""
    seed: int
    """Seed of the initial parameters."""
    lr: float
    """Peak learning rate."""
    status: Status
    """`ok`; `diverged`: loss or gradient not finite, or loss exploded; `oom`: out of memory; `timeout`: over its time,
    or silent; `crashed`: it ended its worker three times; `error`: an exception."""
    detail: str | None = None
    """What went wrong, where something did."""
    params: int
    """Parameters of the model."""
    state: StateReport | None
    """Recurrent state; none where a layer of one's own does not count it."""
    work: WorkReport
    """Work of a token."""
    steps: int
    """Updates made before the run ended."""
    seconds: float
    """Wall time of the fleet that the run was a member of, training and evaluation."""
    examples_per_second: float
    """Training examples a second, summed over the fleet."""
    solved_at: int | None = None
    """First validated step with an accuracy of at least 0.99, if any."""
    first_batch: str | None = None
    """SHA-256 of the first training batch; runs of one task, batch size and data seed have the same."""
    cells: tuple[CellScore, ...]
    """Test results by cell; empty where the run did not end well."""
    files: Mapping[str, str]
    """SHA-256 of the other files of the run, by name."""
    check: str = ""
    """SHA-256 of this file as it is with nothing between these quotes."""

    @property
    def accuracy(self) -> float:
        """Mean over the cells of test accuracy; 0 where the run did not end well."""
        return sum(cell.accuracy for cell in self.cells) / len(self.cells) if self.cells else 0.0

    @property
    def exact_match(self) -> float:
        """Mean over the cells of exact match."""
        return sum(cell.exact_match for cell in self.cells) / len(self.cells) if self.cells else 0.0

    @property
    def free_running(self) -> float | None:
        """Mean over the cells of the share right where the model reads its own answers; none where it never does."""
        return mean_known([cell.free_running for cell in self.cells])

    @property
    def free_running_exact(self) -> float | None:
        """Mean over the cells of the share of examples right throughout where the model reads its own answers."""
        return mean_known([cell.free_running_exact for cell in self.cells])

    @property
    def error(self) -> float | None:
        """Mean over the cells of the relative squared error; none for tokens and where the run did not end well."""
        errors = [cell.error for cell in self.cells if cell.error is not None]
        return sum(errors) / len(errors) if errors else None

    @property
    def floor(self) -> float:
        """Mean over the cells of the floor."""
        return sum(cell.floor for cell in self.cells) / len(self.cells) if self.cells else 0.0

    def summary(self) -> dict[str, Any]:
        """The run as `--json` prints it."""
        return {
            "id": self.id,
            "task": self.task,
            "arch": self.arch,
            "seed": self.seed,
            "lr": self.lr,
            "status": self.status,
            "detail": self.detail,
            "params": self.params,
            "state": self.state.model_dump() if self.state else None,
            "steps": self.steps,
            "seconds": self.seconds,
            "examples_per_second": self.examples_per_second,
            "solved_at": self.solved_at,
            "accuracy": self.accuracy,
            "by_cell": {cell.label: cell.accuracy for cell in self.cells},
            "floor": self.floor,
            "exact_match": self.exact_match,
            "error": self.error,
            "free_running": self.free_running,
            "free_running_exact": self.free_running_exact,
        }


def mean_known(values: Sequence[float | None]) -> float | None:
    """Mean of values that are all there; none where one is not, or there are none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


class Account(NamedTuple):
    """What an architecture costs, over all layers; embedding, MLP and head are left out."""

    arch: str
    elements: int
    """Numbers carried after `length` tokens."""
    bytes: int
    """Their size: sums in float32, cached activations in bfloat16."""
    length: int
    params: int
    """Parameters of the mixers."""
    weight_flops: float
    """Forward operations of a token on parameters."""
    state_flops: float
    """Forward operations of a token on the state."""
    ratio: float | None
    """Weight-state FLOP ratio; none where nothing is done on the state."""


class Environment(Frozen):
    """Where and with what runs were made: none of it decides their identity."""

    versions: Mapping[str, str]
    """icl-bench, Python, torch, triton, numpy, CUDA."""
    device: str
    """Name of the processor or GPU."""
    threads: int
    """Threads of torch on the CPU."""
    host: str
    """Operating system and machine type."""
    revision: str | None
    """Git revision of the checkout, `+` appended where it has uncommitted changes; none for an installed package."""
    impl: str
    """Kernel implementation asked for."""
    fleet_size: int
    """Members trained together."""
    command: str
    """The command line that started the run."""


class Manifest(Environment):
    """Where, with what and when a run was made."""

    started: str
    """UTC time, ISO 8601."""


class MetricPoint(Frozen):
    """A line of metrics.jsonl: a validation."""

    step: int
    """Updates made."""
    train_loss: float
    """Mean training loss since the last point, in nats; 0 where there was none."""
    train_accuracy: float
    """Mean training accuracy since the last point."""
    accuracy: float
    """Validation accuracy, mean over cells."""
    by_cell: Mapping[str, float]
    """Validation accuracy by cell."""


class RunRecord(Frozen):
    """A finished run as read back: the plain specification beside the result."""

    spec: Mapping[str, Any]
    """The specification as stored."""
    manifest: Manifest
    """Where it was made."""
    result: RunResult
    """What came out."""
    metrics: tuple[MetricPoint, ...]
    """Validations over training."""
