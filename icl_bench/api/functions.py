"""Functions that train, load and draw, with the names and the defaults of the commands.

An architecture is a spec, as on the command line, or a class of `torch.nn.Module` or a function that makes one from the
model width, both at the top of a module; `functools.partial(Class, heads=4)` gives it parameters.
"""

import functools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from icl_bench.api.results import Runs, TaskExamples
from icl_bench.errors import SpecError
from icl_bench.reports.context import NO_STUDY, StudyContext
from icl_bench.runs.kept import lacking_lines, parse_keep
from icl_bench.runs.outline import FinishedRuns
from icl_bench.runs.record import RunRecord
from icl_bench.runs.store import Store
from icl_bench.runs.store.kept_records import probes_if_kept
from icl_bench.schema import Scalar, Spec, format_value

if TYPE_CHECKING:  # all of them load torch
    from icl_bench.harness.engines.executor import Executor
    from icl_bench.harness.session import Session
    from icl_bench.harness.study.file import Study

LOG = logging.getLogger("icl_bench")
Arch = str | Callable[..., Any]
"""A spec, a class or a function that makes a layer, or a `functools.partial` of one."""


def task(text: str) -> TaskExamples:
    """Return the task of a spec, such as `assoc-recall:pairs=8`; raise IclBenchError if there is none."""
    from icl_bench.harness.resolve import make_task, task_component

    _load_plugins()
    return TaskExamples(make_task(task_component(text)))


def load(store: str | Path = "icl-runs") -> Runs:
    """Return every finished run of a store, in the order of ids; raise StoreError if there is no such store."""
    from icl_bench.commands.runs import open_store
    from icl_bench.runs.store.index import Index

    opened = open_store(Path(store))
    finished, problems = Index(opened).runs()
    ordered = sorted(finished.outlines, key=lambda outline: outline.id)
    return Runs(opened, finished._replace(outlines=ordered), problems)


def run(
    task: str,
    arch: Arch | Sequence[Arch],
    *,
    seeds: int | str | Iterable[int] = 0,
    lr: float | str | Iterable[float] | None = None,
    preset: str = "default",
    settings: Mapping[str, Scalar] | None = None,
    precision: str = "float32",
    store: str | Path = "icl-runs",
    keep: Iterable[str] = ("model", "samples"),
    session: "Session | None" = None,
) -> Runs:
    """Train and evaluate architectures on a task; runs that the store holds already are not trained again.

    Args:
        task: A task, as on the command line.
        arch: An architecture or several: specs, classes, functions, partials.
        seeds: A seed, several, or text such as `"0..4"`.
        lr: A learning rate, several, or a grid such as `"1e-4..3e-2/7"`; by default that of the preset.
        preset: `quick`, `default` or `zoology`.
        settings: Any other field, such as `{"train.steps": 1000}`.
        precision: `float32`, `bfloat16` or `float16`.
        store: Folder of finished runs.
        keep: Files that runs keep: `model`, `samples`, `probes`.
        session: Device, engine and loggers.

    Raises:
        IclBenchError: if a name or a value is wrong, or the store cannot be used; the message says what to change.
    """
    from icl_bench.harness.resolve import Request
    from icl_bench.harness.session import finish_requests

    _load_plugins()
    kept = tuple(keep)
    archs = tuple(spec_of(one) for one in ([arch] if isinstance(arch, str) or callable(arch) else arch))
    rates = () if lr is None else _rates(lr)
    request = Request(task, archs, preset, rates, _seeds(seeds), precision, _assignments(settings))
    records = finish_requests([request], _executor(store, session, kept))
    return _runs_of(records, Store(Path(store)), kept)


def compare(
    task: str,
    archs: Sequence[Arch],
    state: int | str,
    *,
    lr: str | Iterable[float] = "1e-4..1e-1/7",
    tune_seeds: str | Iterable[int] = "1000..1002",
    seeds: str | Iterable[int] = "0..4",
    preset: str = "default",
    settings: Mapping[str, Scalar] | None = None,
    store: str | Path = "icl-runs",
    session: "Session | None" = None,
) -> Runs:
    """Compare architectures at equal state: match them, tune learning rates, measure with fresh seeds.

    `state` counts elements, or is text such as `"64KiB"`. Returns the measuring runs, then the tuning runs. To match
    parameters or operations, to vary other factors or to keep models, describe the study to `sweep`.

    Raises:
        IclBenchError: as `run`; StateBudgetError if no architecture can be matched.
    """
    fields = {
        "name": "compare",
        "question": f"which architecture recalls more at {state} of state?",
        "tasks": (task,),
        "archs": tuple(spec_of(one) for one in archs),
        "sizes": (str(state),),
        "lr": _rates(lr),
        "tune_seeds": _seeds(tune_seeds),
        "seeds": _seeds(seeds),
        "preset": preset,
        "settings": _assignments(settings),
    }
    return sweep(fields, store=store, session=session)


def sweep(
    study: str | Path | Mapping[str, Any],
    *,
    store: str | Path = "icl-runs",
    keep: Iterable[str] = (),
    session: "Session | None" = None,
) -> Runs:
    """Run a study: a packaged one by its name, a YAML file, or a mapping with the keys of a study file.

    Returns the measuring runs, then the tuning runs; `left_out` names what did not run.

    Raises:
        IclBenchError: as `run`; StateBudgetError if no architecture can be matched.
    """
    from icl_bench.commands.session import context_of
    from icl_bench.harness.session import finish_study

    _load_plugins()
    kept, loaded = tuple(keep), _study_of(study)
    records, left_out = finish_study(loaded, _executor(store, session, kept))
    return _runs_of(records, Store(Path(store)), kept, context_of(loaded, left_out))


def spec_of(arch: Arch) -> str:
    """Return the spec of an architecture; raise SpecError for an object that other processes could not find again.

    >>> import collections
    >>> spec_of(functools.partial(collections.Counter, heads=4))
    'collections:Counter:heads=4'
    """
    if isinstance(arch, str):
        return arch
    bound = arch if isinstance(arch, functools.partial) else functools.partial(arch)
    if bound.args:
        raise SpecError(f"a partial architecture has keywords alone; got {bound.args!r}; name these parameters")
    arch = bound.func
    name, module = getattr(arch, "__qualname__", ""), getattr(arch, "__module__", "")
    if not name.isidentifier():
        kind = name or f"an object of {type(arch).__name__}"
        raise SpecError(
            f"an architecture is a class or a function at the top of a module, which a run can name; got {kind}; "
            "define it there, and give it parameters by functools.partial"
        )
    return str(Spec(f"{module}:{name}", bound.keywords))


def _study_of(study: str | Path | Mapping[str, Any]) -> "Study":
    """Return the study of a name, a file or a mapping."""
    from icl_bench.harness.study.file import Study, load_study
    from icl_bench.schema import build

    if isinstance(study, Mapping):
        return build(Study, {"name": "study", "question": "", **study}, "study")
    return load_study(str(study))


def _executor(store: str | Path, session: "Session | None", keep: tuple[str, ...]) -> "Executor":
    """Open a session."""
    from icl_bench.commands.session import open_with_progress
    from icl_bench.harness.session import Session

    return open_with_progress(Path(store), session or Session(), parse_keep(",".join(keep)) if keep else ())


def _runs_of(
    records: Sequence[RunRecord], store: Store, keep: tuple[str, ...], context: StudyContext = NO_STUDY
) -> Runs:
    """Return the runs of records; log a warning for runs that ended well earlier, without what is to be kept."""
    for line in lacking_lines((record.result for record in records), keep):
        LOG.warning("%s", line)
    return Runs(store, FinishedRuns.of(records, functools.partial(probes_if_kept, store)), context=context)


def _seeds(seeds: int | str | Iterable[int]) -> tuple[int, ...]:
    """Return seeds, checked as those of the command line are."""
    from icl_bench.harness.resolve import parse_seeds

    return parse_seeds(seeds if isinstance(seeds, str) else _joined(seeds))


def _rates(lr: float | str | Iterable[float]) -> tuple[float, ...]:
    """Return learning rates, checked as those of the command line are."""
    from icl_bench.harness.resolve import parse_lrs

    return parse_lrs(lr if isinstance(lr, str) else _joined(lr))


def _joined(values: float | Iterable[float]) -> str:
    """Write numbers as one text, separated by commas."""
    return ",".join(map(str, values if isinstance(values, Iterable) else [values]))


def _assignments(settings: Mapping[str, Scalar] | None) -> tuple[str, ...]:
    """Return settings as assignments of --set."""
    return tuple(f"{field}={format_value(value)}" for field, value in (settings or {}).items())


def _load_plugins() -> None:
    """Load the installed plug-ins; log a warning for each that fails."""
    from icl_bench.registry import load_plugins

    for plugin in load_plugins():
        if plugin.error:
            LOG.warning("plug-in %s did not load: %s", plugin.name, plugin.error)
