"""Files that a run keeps on request beside its record: its weights, and test examples with its answers.

Neither is part of the identity of a run. A file is written before the run is committed or never: a finished run that
was not asked for it lacks it. Examples are kept as text, so that they are read without the task that made them.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from icl_bench.errors import SpecError
from icl_bench.runs.record import SCHEMA, RunResult
from icl_bench.schema import Frozen, nearest

if TYPE_CHECKING:  # the store takes the names of the files from here
    from icl_bench.runs.store import Store

KEPT_FILES: Mapping[str, str] = {"model": "model.safetensors", "samples": "samples.json"}
"""File of a run's folder by the name that --keep takes."""
SAMPLES_PER_CELL = 32
"""Largest number of test examples of a cell that are kept, the first of its test split."""


class AnsweredExample(Frozen):
    """A test example and the answers of the model; the lists after `inputs` have an entry for each scored position."""

    inputs: tuple[str, ...]
    """Spelling of each input token; of a vector, its first components."""
    positions: tuple[int, ...]
    """Scored positions, counted from 0: the model answers after it has read the token there."""
    targets: tuple[str, ...]
    """Right answers."""
    answers: tuple[str, ...]
    """Answers of the model: its likeliest token, or its vector."""
    hits: tuple[float, ...]
    """1 for a right answer, 0 for a wrong one; for vectors whose variance is explained, the explained share."""
    groups: tuple[str, ...]
    """Groups of the scored positions."""
    answer_probabilities: tuple[float, ...] | None
    """Probability that the model gave its answer; none for vectors."""
    target_probabilities: tuple[float, ...] | None
    """Probability that the model gave the right answer; none for vectors."""


class CellSamples(Frozen):
    """Test examples of one cell."""

    label: str
    """Name of the cell."""
    load: int
    """Load of the cell."""
    examples: tuple[AnsweredExample, ...]
    """The first test examples, at most 32."""


class Samples(Frozen):
    """The file samples.json of a run."""

    schema_version: int = SCHEMA
    """Version of this layout."""
    id: str
    """Id of the run."""
    task: str
    """Label of the task."""
    arch: str
    """Label of the architecture."""
    cells: tuple[CellSamples, ...]
    """Examples by cell, in the order of the result."""


def parse_keep(text: str) -> tuple[str, ...]:
    """Parse `model`, `samples` or `model,samples`; raise SpecError for another name.

    >>> parse_keep("samples,model")
    ('model', 'samples')
    """
    names = {name.strip() for name in text.split(",")}
    for name in names:
        if name not in KEPT_FILES:
            raise SpecError(
                f"--keep takes {' or '.join(KEPT_FILES)}; got {name!r}; {nearest(name, KEPT_FILES)}"
                f"write --keep {','.join(KEPT_FILES)}"
            )
    return tuple(name for name in KEPT_FILES if name in names)


def lacking(files: Mapping[str, str], keep: tuple[str, ...]) -> list[str]:
    """Return the names in `keep` whose file is not among the files of a result."""
    return [name for name in keep if KEPT_FILES[name] not in files]


def lacking_lines(results: Iterable[RunResult], keep: tuple[str, ...]) -> list[str]:
    """Return a line for each run that ended well and lacks something in `keep`, because it was finished before."""
    return [
        f"{result.id} was finished before without its {' and '.join(missing)}; to keep them, run `icl-bench runs rm "
        f"{result.id}`, then this again"
        for result in results
        if result.status == "ok" and (missing := lacking(result.files, keep))
    ]


def kept_file(store: "Store", result: RunResult, name: str) -> bytes:
    """Return a file that a run keeps, `model` or `samples`; raise SpecError if it was trained without asking for it."""
    if lacking(result.files, (name,)):
        raise SpecError(
            f"a run has what it was asked to keep; {result.id} has no {name}; remove it with `icl-bench runs rm "
            f"{result.id}`, and run it again with --keep {name}"
        )
    return store.read_kept(result.id, KEPT_FILES[name])


def kept_samples(store: "Store", result: RunResult) -> Samples:
    """Return the answered examples that a run keeps; raise SpecError if it keeps none."""
    return Samples.model_validate_json(kept_file(store, result, "samples"))
