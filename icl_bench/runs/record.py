"""The record that a run leaves: frozen, versioned, self-describing."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from icl_bench.runs.declarations import ArchitectureDeclaration, declaration_by_name
from icl_bench.schema import LARGEST_COUNT, LARGEST_REAL, Count, Frozen, Real

SCHEMA = 2
"""Version of the layout of records."""
SOLVED = 0.99
"""Accuracy from which a run counts as having solved its task."""

LARGEST_SHARE = 1 + 1e-6
"""Largest share that rounding may give."""
Share = Annotated[float, Field(ge=0, le=LARGEST_SHARE)]
"""A number from 0 to 1."""
Size = Annotated[float, Field(ge=0, le=LARGEST_REAL)]
"""A number that is not negative."""
Answers = Annotated[int, Field(ge=1, lt=LARGEST_COUNT)]
Alphabet = Annotated[int, Field(ge=2, lt=LARGEST_COUNT)]

Status = Literal["ok", "diverged", "oom", "timeout", "crashed", "error"]


class GroupScore(Frozen):
    """Accuracy on the scored positions of one group."""

    accuracy: Share
    """Share of these positions answered correctly."""
    count: Count
    """Number of scored positions in the group."""
    floor: Share | None = None
    """Accuracy of the best trivial solver on these positions; in older results of the cell's best, or none."""
    references: Mapping[str, Share] = Field(default_factory=dict)
    """Accuracy on these positions of solvers that learn nothing but keep the whole context, by name."""
    loss: Real | None = Field(default=None, exclude_if=lambda value: value is None)
    """Mean cross-entropy of these positions, in nats; none unless accuracy is the share of bits saved."""


class CellScore(Frozen):
    """Test results of one cell, that is, one setting of load and length."""

    label: str
    """Name of the cell."""
    load: Count
    """Load of the cell, in the unit that `load_name` of the run names."""
    length: Count
    """Number of positions in a sequence."""
    accuracy: Share
    """Share of scored positions answered correctly; for continuous tasks, the share of variance explained, relative to
    the share that the oracle explains; for `text`, the share of bits saved, 1 - loss / log(vocabulary)."""
    exact_match: Share
    """Share of examples with a correct answer at every scored position; for continuous tasks, of examples explained to
    at least 99 % of what the oracle explains."""
    loss: Real
    """Mean cross-entropy of a scored position, in nats; for continuous tasks, the error."""
    error: Size | None = None
    """Mean squared error of a scored position, relative to the error of the answer 0; none for tasks of tokens."""
    oracle_error: Size | None = None
    """Relative squared error of the oracle on the same examples; none for tasks of tokens."""
    divergence: Size | None = None
    """Mean Kullback-Leibler divergence of the model's distribution from the exact one, in nats, where a task has exact
    distributions."""
    possible_mass: Share | None = None
    """Mean mass of the model's distribution on tokens that are possible, where a task has exact distributions."""
    floor: Share
    """Accuracy of the best trivial solver on the same examples; before 2026-11-29, of the one best on validation."""
    floor_solver: str
    """Name of that trivial solver."""
    references: Mapping[str, Share] = Field(default_factory=dict)
    """Accuracy on the same examples of solvers that learn nothing but keep the whole context, such as induction by the
    latest equal letters, by name; no floor for a state."""
    repeated: Share | None = None
    """Share of these examples whose content was trained on; none for tasks of so many examples that none is."""
    state_bits: Size
    """Number of bits that a model must carry to solve the cell."""
    scored: Count
    """Number of scored positions in an example."""
    answers: Answers | None = None
    """Number of independent answers in a context, each equally likely to be asked; none if the answers depend on each
    other."""
    alphabet: Alphabet | None = None
    """Number of equally likely values that each of these answers can take."""
    free_running: Share | None = None
    """Share of scored positions answered correctly when the model reads its own answers; none for tasks that show no
    answers and for layers without a recurrent form."""
    free_running_exact: Share | None = None
    """Share of examples with a correct answer at every scored position when the model reads its own answers."""
    controls: Mapping[str, Share] = Field(default_factory=dict)
    """Accuracy on changed examples that show how the model finds its answers, by name of the control."""
    groups: Mapping[str, GroupScore]
    """Accuracy by group of scored positions."""
    example_losses: tuple[Real, ...] | None = None
    """Mean loss of each test example, in nats, in their order, for tasks that are graded by bits; since 2026-11-30."""


class StateReport(Frozen):
    """Recurrent state of one sequence, summed over all layers."""

    elements: Count
    """Number of state elements."""
    bytes: Count
    """Size of the state in bytes: sums in float32, cached activations in the precision of the run."""
    length: Count
    """Number of tokens after which the state is counted: the length of the longest evaluated cell."""


class TokenWork(Frozen):
    """Floating-point operations of the whole model for a token of a training row; an embedding has none.

    They are those of the forward pass, but for the executed ones.
    """

    length: Count
    """Number of tokens in the row, over which operations are averaged."""
    weights: Size
    """Operations of all matrix products with parameters: mixers, MLPs and head."""
    recurrent: Size | None
    """Operations on the state in the form whose state the result counts; none if a layer does not tell them."""
    quadratic: Size | None
    """Operations of scores and sums of values over all earlier tokens; none unless every layer has this form."""
    executed: Size | None = Field(default=None, exclude_if=lambda value: value is None)
    """Operations of matrix products that the kernels of the run executed for a token, forward and backward, with what
    they computed twice; none where they are not counted, and in results of older versions."""


class WorkReport(Frozen):
    """Forward floating-point operations of the mixers per token, summed over all layers."""

    weights: Size
    """Operations between an activation and a parameter."""
    state: Size | None
    """Operations between an activation and the state; none if a layer from outside does not tell them."""
    training: TokenWork | None = Field(default=None, exclude_if=lambda value: value is None)
    """Operations of the whole model for a token in training; kept where accuracy is the share of bits saved."""

    @property
    def total(self) -> float | None:
        """All operations; None where those on the state are unknown."""
        return None if self.state is None else self.weights + self.state


class RunResult(Frozen):
    """The outcome of a run; a run with a result in the store is finished."""

    schema_version: int = SCHEMA
    """Version of this layout."""
    id: str
    """Id of the run: the first 16 digits of the digest."""
    digest: str
    """SHA-256 of the specification."""
    task: str
    """Label of the task in reports."""
    arch: str
    """Label of the architecture in reports."""
    load_name: str
    """Unit of the load of a cell, such as `pairs`."""
    seed: Count
    """Seed of the initial parameters."""
    lr: Real
    """Peak learning rate."""
    status: Status
    """`ok`; `diverged`: a loss or gradient was not finite, or the loss exploded; `oom`: out of memory; `timeout`: over
    the time limit, or no sign of life; `crashed`: the run ended its worker three times; `error`: an exception."""
    detail: str | None = None
    """Description of the failure, if there was one."""
    params: Count
    """Number of parameters of the model."""
    state: StateReport | None
    """Size of the recurrent state; none if a layer from outside the package does not declare it."""
    work: WorkReport
    """Work of the mixers per token."""
    steps: Count
    """Number of updates before the run ended."""
    seconds: Real
    """Wall time in seconds of the fleet that trained the run, training and evaluation."""
    examples_per_second: Real
    """Training examples per second, summed over the fleet."""
    solved_at: Count | None = None
    """First validated step with an accuracy of at least 0.99; none if there is no such step."""
    first_batch: str | None = None
    """SHA-256 of the first training batch; runs with equal task, batch size and data seed have equal values."""
    declarations: tuple[ArchitectureDeclaration, ...] = ()
    """Declarations of the architectures of the pattern, in order; empty in results of older versions."""
    cells: tuple[CellScore, ...]
    """Test results by cell; empty unless the status is `ok`."""
    files: Mapping[str, str]
    """SHA-256 of the three other files of the run, by file name."""
    check: str = ""
    """SHA-256 of this file, computed with an empty string in this field."""

    @property
    def accuracy(self) -> float:
        """Test accuracy, mean over cells; 0 without cells."""
        return mean_known([cell.accuracy for cell in self.cells]) or 0.0

    @property
    def exact_match(self) -> float:
        """Exact match, mean over cells; 0 without cells."""
        return mean_known([cell.exact_match for cell in self.cells]) or 0.0

    @property
    def free_running(self) -> float | None:
        """Accuracy when the model reads its own answers, mean over cells; none if a cell lacks it."""
        return mean_known([cell.free_running for cell in self.cells])

    @property
    def free_running_exact(self) -> float | None:
        """Exact match when the model reads its own answers, mean over cells; none if a cell lacks it."""
        return mean_known([cell.free_running_exact for cell in self.cells])

    @property
    def error(self) -> float | None:
        """Relative squared error, mean over the cells that have one; none if no cell has one."""
        return mean_known([cell.error for cell in self.cells if cell.error is not None])

    @property
    def divergence(self) -> float | None:
        """Divergence from exact distributions, mean over cells; none if a cell has none."""
        return mean_known([cell.divergence for cell in self.cells])

    @property
    def floor(self) -> float:
        """Accuracy of the best trivial solver, mean over cells; 0 without cells."""
        return mean_known([cell.floor for cell in self.cells]) or 0.0

    @property
    def by_cell(self) -> dict[str, float]:
        """Test accuracy by cell."""
        return {cell.label: cell.accuracy for cell in self.cells}

    def summary(self) -> dict[str, Any]:
        """Return the fields of the run that `--json` prints."""
        fields = {name: getattr(self, name) for name in SUMMARY_FIELDS}
        return {**fields, "state": self.state.model_dump() if self.state else None}


SUMMARY_FIELDS = (
    *("id", "task", "arch", "seed", "lr", "status", "detail", "params", "state", "steps", "seconds"),
    *("examples_per_second", "solved_at", "accuracy", "by_cell", "floor", "exact_match", "error"),
    *("free_running", "free_running_exact", "divergence"),
)
"""Fields that `--json` prints of a run, in order."""


def mean_known(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values; None if one of them is None or there are none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


class Environment(Frozen):
    """The machine and the software that made a run; no part of the identity of the run."""

    versions: Mapping[str, str]
    """Versions of icl-bench, Python, torch, triton, numpy and CUDA."""
    device: str
    """Name of the processor or GPU."""
    threads: Count
    """Number of CPU threads that torch used."""
    host: str
    """Operating system and machine type."""
    revision: str | None
    """Git revision of the checkout, with `+` appended if it has uncommitted changes; none for an installed package."""
    impl: str
    """Requested kernel implementation."""
    fleet_size: Count
    """Number of runs trained together."""
    command: str
    """Command line that started the run."""


class Manifest(Environment):
    """The machine, the software and the start time of a run."""

    started: str
    """Start time in UTC, ISO 8601."""


def command_line() -> str:
    """Return the command that was typed, quoted for a shell."""
    return shlex.join(["icl-bench", *sys.argv[1:]])


class MetricPoint(Frozen):
    """A validation during training: one line of metrics.jsonl."""

    step: Count
    """Number of updates done."""
    train_loss: Real
    """Mean training loss since the last validation, in nats; 0 if no update was made since."""
    train_accuracy: Real
    """Mean training accuracy since the last validation."""
    accuracy: Share
    """Validation accuracy, mean over cells."""
    by_cell: Mapping[str, Share]
    """Validation accuracy by cell."""


class RunRecord(Frozen):
    """A finished run, read back from the four files of its folder."""

    spec: Mapping[str, Any]
    """Specification, as stored."""
    manifest: Manifest
    """Machine, software and start time."""
    result: RunResult
    """Outcome."""
    metrics: tuple[MetricPoint, ...]
    """Validations in the order of training."""

    @property
    def declarations(self) -> tuple[ArchitectureDeclaration, ...]:
        """Declarations of the components of the pattern, in order; those of older results follow from names."""
        return self.result.declarations or tuple(declaration_by_name(part) for part in self.spec["arch"])
