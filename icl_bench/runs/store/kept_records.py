"""The files that runs keep on request, read from a store and held against the results that they belong to."""

from typing import TypeVar

from pydantic import ValidationError

from icl_bench.errors import RecordError, SpecError
from icl_bench.runs.kept import KEPT_FILES, Samples, lacking
from icl_bench.runs.probes import Probes
from icl_bench.runs.record import RunResult
from icl_bench.runs.store.store import Store

KeptRecord = TypeVar("KeptRecord", Samples, Probes)


def kept_file(store: Store, result: RunResult, name: str) -> bytes:
    """Return a file that a run keeps, `model` or `samples`; raise SpecError if it was trained without asking for it."""
    if lacking(result.files, (name,)):
        raise SpecError(
            f"a run has what it was asked to keep; {result.id} has no {name}; remove it with `icl-bench runs rm "
            f"{result.id}`, and run it again with --keep {name}"
        )
    return store.read_kept(result.id, KEPT_FILES[name])


def kept_samples(store: Store, result: RunResult) -> Samples:
    """Return the answered examples that a run keeps; raise SpecError without any, RecordError for forged ones."""
    return kept_record(store, result, "samples", Samples)


def kept_probes(store: Store, result: RunResult) -> Probes:
    """Return the probes that a run keeps; raise SpecError without any, RecordError for forged ones."""
    return kept_record(store, result, "probes", Probes)


def probes_if_kept(store: Store, result: RunResult) -> Probes | None:
    """Return the probes that a run keeps, None without any; raise RecordError for forged ones."""
    return None if lacking(result.files, ("probes",)) else kept_probes(store, result)


def kept_record(store: Store, result: RunResult, name: str, model: type[KeptRecord]) -> KeptRecord:
    """Return the record of a kept file by its name; raises as `kept_samples` does."""
    path = store.path(result.id) / KEPT_FILES[name]
    try:
        found = model.model_validate_json(kept_file(store, result, name), strict=True)
    except ValidationError as error:
        reason = error.errors(include_url=False, include_context=False, include_input=False)[0]["msg"]
        raise RecordError(f"{name} have the fields of a record; {path}: {reason}; delete {path.parent}") from None
    if (found.id, found.task, found.arch) != (result.id, result.task, result.arch):
        raise RecordError(f"the files of a run agree with each other; {path} is of another run; delete {path.parent}")
    return found
