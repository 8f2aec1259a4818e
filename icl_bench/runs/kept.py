"""Files that a run keeps on request beside its record: its weights, and test examples with its answers.

Neither is part of the identity of a run. A file is written before the run is committed or never: a finished run that
was not asked for it lacks it. Examples are kept as text, so that they are read without the task that made them.
"""

from collections.abc import Iterable, Mapping

from pydantic import Field, model_validator

from icl_bench.errors import SpecError
from icl_bench.runs.record import SCHEMA, RunResult, Share
from icl_bench.schema import Count, Frozen, Real, nearest

KEPT_FILES: Mapping[str, str] = {"model": "model.safetensors", "samples": "samples.json", "probes": "probes.json"}
"""File of a run's folder by the name that --keep takes."""
SAMPLES_PER_CELL = 32
"""Largest number of test examples of a cell that are kept, the first of its test split."""


class AnsweredExample(Frozen):
    """A test example and the answers of the model; the lists after `inputs` have an entry for each scored position."""

    inputs: tuple[str, ...] = Field(min_length=1)
    """Spelling of each input token; of a vector, its first components."""
    positions: tuple[Count, ...] = Field(min_length=1)
    """Scored positions, counted from 0: the model answers after it has read the token there."""
    targets: tuple[str, ...]
    """Right answers."""
    answers: tuple[str, ...]
    """Answers of the model: its likeliest token, or its vector."""
    hits: tuple[Real, ...]
    """1 for a right answer, 0 for a wrong one; for vectors whose variance is explained, the explained share."""
    groups: tuple[str, ...]
    """Groups of the scored positions."""
    answer_probabilities: tuple[Share, ...] | None
    """Probability that the model gave its answer; none for vectors."""
    target_probabilities: tuple[Share, ...] | None
    """Probability that the model gave the right answer; none for vectors."""

    @model_validator(mode="after")
    def check_positions(self) -> "AnsweredExample":
        """Refuse lists of unequal lengths, and positions beyond the inputs."""
        lists = (self.targets, self.answers, self.hits, self.groups, self.answer_probabilities,
                 self.target_probabilities)  # fmt: skip
        if any(len(part) != len(self.positions) for part in lists if part is not None):
            raise ValueError("an example has an entry for each scored position")
        if max(self.positions) >= len(self.inputs):
            raise ValueError("a scored position is that of an input")
        return self


class CellSamples(Frozen):
    """Test examples of one cell."""

    label: str
    """Name of the cell."""
    load: Count
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
    """Parse names of `KEPT_FILES` with commas between them; raise SpecError for another name.

    >>> parse_keep("samples,model")
    ('model', 'samples')
    """
    names = {name.strip() for name in text.split(",")}
    for name in names:
        if name not in KEPT_FILES:
            raise SpecError(
                f"--keep takes {', '.join(KEPT_FILES)}; got {name!r}; {nearest(name, KEPT_FILES)}"
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
