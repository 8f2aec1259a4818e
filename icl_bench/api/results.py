"""Finished runs and examples of tasks, as Python programs use them."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

from icl_bench.errors import SpecError
from icl_bench.reports.context import NO_STUDY, StudyContext
from icl_bench.runs.columns import Row, curve_rows, score_rows
from icl_bench.runs.kept import Samples
from icl_bench.runs.outline import FinishedRuns, MeasuredRun
from icl_bench.runs.record import RunRecord
from icl_bench.runs.store import Store
from icl_bench.runs.store.kept_records import kept_file, kept_samples

if TYPE_CHECKING:  # pandas may be missing, and torch loads slowly
    import pandas

    from icl_bench.harness.training.keep import TrainedModel
    from icl_bench.tasks import Batch, Task


class Run:
    """A finished run: its numbers and, where they were kept, its samples and its model."""

    def __init__(self, store: Store, measured: MeasuredRun) -> None:
        self.store, self.measured, self.result = store, measured, measured.result

    def __repr__(self) -> str:
        return f"<Run {self.id} {self.result.task} {self.result.arch} seed {self.result.seed}: {self.outcome}>"

    @property
    def id(self) -> str:
        """Id of the run, 16 hexadecimal digits."""
        return self.result.id

    @property
    def outcome(self) -> str:
        """The test accuracy as text, or the status of a run that failed."""
        return f"accuracy {self.accuracy:.3f}" if self.result.status == "ok" else self.result.status

    @property
    def accuracy(self) -> float:
        """Test accuracy, mean over cells; 0 for a run that failed."""
        return self.result.accuracy

    @property
    def record(self) -> RunRecord:
        """The whole record, read from the store: specification, manifest, result, validations."""
        return self.store.load(self.id)

    def rows(self) -> list[Row]:
        """Return a row for each cell, with the columns of `icl-bench runs export`."""
        return list(score_rows(self.measured))

    def samples(self) -> Samples:
        """Return the first test examples of each cell, at most 32, with the model's answers; raise SpecError if none.

        `icl-bench samples ID` prints them.
        """
        return kept_samples(self.store, self.result)

    def model(self) -> "TrainedModel":
        """Return the trained model, on the CPU; raise SpecError if the run keeps none."""
        from icl_bench.harness.reproduction import spec_of_record
        from icl_bench.harness.training.keep import TrainedModel

        return TrainedModel(spec_of_record(self.record), kept_file(self.store, self.result, "model"))


class Runs(Sequence[Run]):
    """Finished runs of a store, in the order in which they were asked for, or of their ids.

    `problems` are the errors of runs that could not be read, `left_out` what a study could not run, a line each.
    """

    def __init__(
        self,
        store: Store,
        finished: FinishedRuns,
        problems: Sequence[Exception] = (),
        context: StudyContext = NO_STUDY,
    ) -> None:
        self.store, self.finished, self.problems, self.context = store, finished, problems, context

    def __len__(self) -> int:
        return len(self.finished.outlines)

    @overload
    def __getitem__(self, index: int) -> Run: ...
    @overload
    def __getitem__(self, index: slice) -> "Runs": ...
    def __getitem__(self, index: int | slice) -> "Run | Runs":
        if isinstance(index, slice):
            part = self.finished._replace(outlines=self.finished.outlines[index])
            return Runs(self.store, part, self.problems, self.context)
        return Run(self.store, self.finished.load(self.finished.outlines[index].id))

    def __repr__(self) -> str:
        shown = [f"  {run!r}" for run in self[:20]]
        more = [f"  and {len(self) - 20} more"] if len(self) > 20 else []
        return "\n".join([f"<{len(self)} runs in {self.store.root}>", *shown, *more])

    @property
    def left_out(self) -> Sequence[str]:
        """Architectures and parts that a study left out, with the reason."""
        return self.context.left_out

    def rows(self, curves: bool = False) -> Iterator[Row]:
        """Yield a row for each run and cell or, with `curves`, for each run, validation and cell."""
        for run in self:
            yield from curve_rows(run.record) if curves else score_rows(run.measured)

    def frame(self, curves: bool = False) -> "pandas.DataFrame":
        """Return the rows as a data frame; raise SpecError if pandas is not installed."""
        try:
            import pandas
        except ImportError:
            raise SpecError(
                "a data frame needs the package pandas, which is not installed; run `pip install 'icl-bench[pandas]'`, "
                "or use rows()"
            ) from None
        return pandas.DataFrame(list(self.rows(curves)))

    def report(self, path: str | Path) -> Path:
        """Write a report, a Markdown file with figures or an HTML page by its ending, and return its path."""
        from icl_bench.commands.output import check_report, write_files

        check_report(Path(path))
        return write_files(self.finished, [], Path(path), self.context)


class TaskExamples(NamedTuple):
    """A task, and the examples that runs see of it."""

    task: "Task"

    @property
    def cells(self) -> tuple[str, ...]:
        """Labels of the cells that are evaluated."""
        return tuple(cell.label for cell in self.task.eval_cells)

    def batch(
        self,
        examples: int = 32,
        cell: str | None = None,
        seed: int = 0,
        split: Literal["train", "val", "test"] = "train",
    ) -> "Batch":
        """Return the first examples of a cell, by default the first cell, as runs of this data seed see them.

        Inputs are [N, T] token ids (vectors [N, T, I]), positions, targets and groups [N, S] (targets [N, S, O]).
        Raise UnknownNameError if the task has no such cell.
        """
        import torch

        from icl_bench.harness.training.batches import ExampleStream
        from icl_bench.tasks import Batch

        chosen = self.task.eval_cells[0] if cell is None else self.task.cell(cell)
        made = ExampleStream(self.task, chosen, split, [seed], torch.device("cpu")).first(examples)
        return Batch(*(part[0] for part in made))

    def spell(self, inputs: Iterable[Any]) -> list[str]:
        """Return a short text for each token id or vector of one example."""
        return [self.task.spell(getattr(entry, "tolist", lambda own=entry: own)()) for entry in inputs]
