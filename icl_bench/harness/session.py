"""Sessions: a store, a device, an engine and loggers, opened alike for a command and for a Python program."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from icl_bench.errors import SpecError, StateBudgetError
from icl_bench.harness.engines.base import FLEET_SIZE, device_for, make_engine, runs_elsewhere
from icl_bench.harness.engines.executor import Executor
from icl_bench.harness.engines.ranks import ENGINES_OF_RANKS, FirstRank, train_along
from icl_bench.harness.estimate import with_target
from icl_bench.harness.resolve import Request, expand_request
from icl_bench.harness.study.file import Study
from icl_bench.harness.study.protocol import finished_study, run_study
from icl_bench.runs.events import Reporter
from icl_bench.runs.record import RunRecord
from icl_bench.runs.spec import RunSpec
from icl_bench.runs.store import Store
from icl_bench.runs.store.floors import read_floors, renewed_run


class Session(NamedTuple):
    """The device, the engine and the loggers of runs; nothing here changes a run's numbers beyond rounding."""

    device: str = "auto"
    """`auto`, `cpu` or `cuda`."""
    impl: str = "auto"
    """Kernel implementation."""
    graphs: bool = True
    """Capture training steps on a GPU in graphs."""
    fleet: int | None = None
    """Runs trained together; None for 1 on a CPU and 32 on a GPU."""
    engine: str = "inline"
    """`inline`, `auto`, or `local`, `ray` or `slurm` with options, such as `local:workers=4`; workers import the layers
    of a program from its file, so that `inline` is the engine of programs and notebooks."""
    log: Sequence[str] = ()
    """Loggers by name: `tensorboard`, `trackio`, `wandb`."""
    quiet: bool = False
    """Print no progress."""
    again: bool = False
    """Repeat finished runs that ended in an error."""
    accumulate: int = 1
    """Parts of a training batch that go through the model one after the other, where it does not fit as a whole."""
    recompute: bool = False
    """Compute the activations of a training step twice instead of keeping them."""


def open_session(store: Path, session: Session, reporter: Reporter, keep: tuple[str, ...] = ()) -> Executor:
    """Make the executor of a session, whose engine the caller closes; raise IclBenchError if a part is not there.

    `keep` names the files that runs keep, as `KEPT_FILES` does. In a process that torchrun started as a later rank,
    train along with the first rank until it is done, then raise SystemExit.
    """
    from icl_bench.harness.environment import check_impl
    from icl_bench.harness.loggers import LoggingReporter, make_loggers
    from icl_bench.harness.training.ranks import RANKS, joined_ranks, rank_variable
    from icl_bench.harness.training.trainer import Machine

    check_impl(session.impl)
    if rank_variable(RANKS, "1") > 1 and session.engine not in ENGINES_OF_RANKS:
        raise SpecError(
            f"torchrun started the processes of this command; got --engine {session.engine} besides; leave one out"
        )
    device = device_for(session.engine, session.device)
    ranks = joined_ranks(device)
    device = ranks.device if ranks else device
    machine = Machine(device, session.impl, session.graphs, keep, session.accumulate, session.recompute, ranks)
    if ranks and ranks.rank:
        train_along(machine, ranks)
        raise SystemExit
    engine = FirstRank(machine, ranks) if ranks else make_engine(session.engine, machine)
    opened = Store(store)
    loggers = make_loggers(session.log, opened)
    told = LoggingReporter(reporter, opened, loggers) if loggers else reporter
    here = None if runs_elsewhere(session.engine) else machine
    return Executor(opened, engine, session.fleet or FLEET_SIZE[device.type], told, here, session.again)


def requested_runs(request: Request) -> list[RunSpec]:
    """Return the runs of a request, with the steps that its number of operations allows, if it gives one."""
    runs, flops = expand_request(request), request.target_flops
    if flops is None:
        return runs
    if steps := [setting for setting in request.settings if setting.startswith("train.steps=")]:
        raise SpecError(f"--target-flops sets train.steps; got --set {steps[0]} too; leave one of them out")
    return [with_target(run, flops) for run in runs]


def finish_requests(requests: Sequence[Request], executor: Executor) -> list[RunRecord]:
    """Train the runs of requests that the store lacks; return the records of all their runs, with renewed floors.

    The engine is closed at the end.
    """
    with closing(executor.engine):
        specs = {spec.id: spec for request in requests for spec in requested_runs(request)}
        floors = read_floors(executor.store.root)
        return [renewed_run(record, floors) for record in executor.finish(list(specs.values()))]


def finish_study(
    study: Study, executor: Executor, parts: Sequence[int] = (), finished: bool = False
) -> tuple[list[RunRecord], list[str]]:
    """Run a study, or parts of it; return each record once, measuring runs first, and a line for what is left out.

    With `finished`, train nothing, and return what the store holds of finished architectures. The engine is closed at
    the end. Raise StateBudgetError if no architecture can be matched, or none is finished.
    """
    floors = read_floors(executor.store.root)
    with closing(executor.engine):
        outcome = finished_study(study, executor.store, parts) if finished else run_study(study, executor, parts)
    if not outcome.measured:
        need = "that is finished" if finished else "that can be matched"
        raise StateBudgetError(f"a study needs an architecture {need}; {outcome.left_out[0]}")
    once = {record.result.id: record for record in [*outcome.measured, *outcome.tuning]}  # a seed may do both
    return [renewed_run(record, floors) for record in once.values()], outcome.left_out
