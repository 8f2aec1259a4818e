"""The interface of engines, their registry, the functions that start one, and the executor that fills a store."""

import importlib.util
import logging
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol

from icl_bench.errors import EngineError, SpecError
from icl_bench.registry import Registry
from icl_bench.runs.events import Reporter
from icl_bench.runs.record import RunResult
from icl_bench.runs.spec import RunSpec
from icl_bench.runs.store import Store
from icl_bench.schema import Frozen, build, parse_spec

if TYPE_CHECKING:
    import torch

    from icl_bench.harness.training.trainer import Machine
from dataclasses import dataclass, field

from icl_bench.runs.record import RunRecord

LOG = logging.getLogger("icl_bench")
FLEET_SIZE = {"cpu": 1, "cuda": 32}
"""Members trained together by device type: one tiny model leaves a GPU idle, but not a processor."""


class Engine(Protocol):
    """A running engine, which carries fleets to their results."""

    def submit(self, fleets: Sequence[Sequence[RunSpec]], store: Store, reporter: Reporter) -> Iterator[RunResult]:
        """Run the fleets; yield each result once, after its commit, in the order in which the fleets end.

        The engine replaces a lost worker and runs its fleet again. A fault of a run itself is the result of that run.

        Raises:
            IclBenchError: if no worker can be started, or if a run asks for something that the user must change.
            OSError: if the store can no longer be written.
        """

    def close(self) -> None:
        """End the workers, if the engine has any; the next call of `submit` starts new ones."""
        return


class EngineConfig(Frozen):
    """Base of all engines. The fields are the options of the engine, as in `local:workers=4,timeout=600`."""

    package: ClassVar[str | None] = None
    """Package that the engine needs; the extra with the name of the engine installs it."""
    program: ClassVar[str | None] = None
    """Program that the engine needs on the path."""
    elsewhere: ClassVar[bool] = False
    """Run fleets on other machines, so that a device which this machine lacks can be asked for."""

    @abstractmethod
    def start(self, machine: "Machine") -> Engine:
        """Return an engine that runs fleets on `machine`; raise EngineError if something that it needs is missing."""


ENGINES: Registry[type[EngineConfig]] = Registry("engine", EngineConfig)


def engine_config(text: str) -> EngineConfig:
    """Return the engine that `name:key=value,...` describes; raise UnknownNameError or SpecError if there is none."""
    spec = parse_spec(text)
    engine = ENGINES[spec.name]
    for key in spec.params:
        owners = [name for name in ENGINES if key in ENGINES[name].model_fields]
        if owners and key not in engine.model_fields:
            raise SpecError(
                f"--engine {spec.name} has no option {key!r}; got {text!r}; leave it out, or choose an engine that has "
                f"it: {', '.join(owners)}"
            )
    return build(engine, spec.params, f"--engine {spec.name}")


def make_engine(text: str, machine: "Machine") -> Engine:
    """Start the engine that `text` describes; raise IclBenchError if there is none, or if it lacks something."""
    config = engine_config(text)
    name = parse_spec(text).name
    if missing := missing_package(name):
        raise EngineError(f"--engine {name} needs {missing}, which is not installed; {install_command(name)}")
    return config.start(machine)


def device_for(text: str, device: str) -> "torch.device":
    """Return the device that `--device` names, checked here unless the engine runs elsewhere; raise IclBenchError."""
    import torch

    from icl_bench.harness.environment import pick_device

    return torch.device("cuda") if runs_elsewhere(text) and device == "cuda" else pick_device(device)


def runs_elsewhere(text: str) -> bool:
    """Return whether the engine that `text` describes runs fleets on other machines; raise IclBenchError for none."""
    return engine_config(text).elsewhere


def missing_package(name: str) -> str | None:
    """Return the package that the engine of this name needs and that is not installed, or None."""
    package = ENGINES[name].package
    return package if package and importlib.util.find_spec(package) is None else None


def install_command(name: str) -> str:
    """Return the command that installs the package of an engine."""
    return f"pip install 'icl-bench[{name}]'"


@dataclass(frozen=True)
class Executor:
    """A store, an engine that fills it, and a reporter that receives the progress."""

    store: Store
    engine: Engine
    fleet_size: int
    """Number of runs trained together."""
    reporter: Reporter
    device: "torch.device | None" = None
    """Device of this machine that the runs must fit on; None where they run elsewhere."""
    again: bool = False
    """Repeat finished runs that ended in an error, once."""
    seen: set[str] = field(default_factory=set)
    """Ids of the runs that were asked for, and names of the layers whose edit was told."""

    def finish(self, specs: Sequence[RunSpec]) -> list[RunRecord]:
        """Finish the runs that the store lacks; return all records, in order; raise StoreError if the store fails."""
        from icl_bench.harness.finished import edited_parts, set_failed_aside
        from icl_bench.harness.training.fleet import pack
        from icl_bench.harness.training.memory import check_memory

        self.store.check_writable()
        if self.again:
            set_failed_aside(self.store, [spec for spec in specs if spec.id not in self.seen])
        missing = [spec for spec in specs if not self.store.has(spec.id)]
        for name, count in edited_parts(self.store, missing).items():
            if name not in self.seen:
                LOG.warning("%s has another source than in %d finished runs here: these are new runs", name, count)
            self.seen.add(name)
        self.seen.update(spec.id for spec in specs)
        if self.device is not None:
            check_memory(missing, self.device)
        self.reporter.planned(specs, missing)
        try:
            for _ in self.engine.submit(pack(missing, self.fleet_size), self.store, self.reporter):
                pass
            self.store.clear_up()  # a lost worker leaves the checkpoints of a fleet whose members then run alone
        finally:
            self.reporter.closed()
        return [self.store.load(spec.id) for spec in specs]
