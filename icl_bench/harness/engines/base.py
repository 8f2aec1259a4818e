"""The interface of engines, the agenda that they take fleets from, their registry, and the functions that start one."""

import heapq
import importlib.util
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol

from icl_bench.errors import EngineError, SpecError
from icl_bench.outside import guarding
from icl_bench.registry import Registry
from icl_bench.runs.events import Reporter
from icl_bench.runs.record import RunResult
from icl_bench.runs.spec import RunSpec
from icl_bench.runs.store import Store
from icl_bench.schema import Frozen, build, parse_spec

if TYPE_CHECKING:
    import torch

    from icl_bench.harness.training.trainer import Machine

FLEET_SIZE = {"cpu": 1, "cuda": 32}
"""Members trained together by device type: one tiny model leaves a GPU idle, but not a processor."""


OUTSIDE_EXAMPLES = 5e4
"""Examples that a layer from outside is taken to train on in a second."""


class Agenda:
    """Fleets that wait for an engine: lower ranks first, then those that take longer, then in the order they came in.

    The time of a fleet includes that of the runs that wait for it, so that long chains do not end alone.
    Whoever takes the results of an engine may add fleets in between.
    """

    def __init__(self, fleets: Iterable[Sequence[RunSpec]] = ()) -> None:
        self.waiting: list[tuple[int, float, int, float, Sequence[RunSpec]]] = []
        self.added = 0
        self.seconds = 0.0  # of the fleets that wait, estimated
        self.seconds_later = 0.0  # of the runs that will be asked for after those known now, estimated; or no bound
        self.add(fleets)

    def __len__(self) -> int:
        return len(self.waiting)

    def add(self, fleets: Iterable[Sequence[RunSpec]], rank: int = 0, after: float = 0.0) -> None:
        """Add fleets of a rank, for which runs of `after` seconds wait."""
        for fleet in fleets:
            seconds = seconds_of(fleet)
            heapq.heappush(self.waiting, (rank, -(seconds + after), self.added, seconds, fleet))
            self.added += 1
            self.seconds += seconds

    def take(self) -> Sequence[RunSpec]:
        """Remove and return the next fleet; raise IndexError if there is none."""
        *_, seconds, fleet = heapq.heappop(self.waiting)
        self.seconds -= seconds
        return fleet

    def fleets(self) -> list[Sequence[RunSpec]]:
        """Return the fleets in order."""
        return [each[-1] for each in sorted(self.waiting)]

    def take_all(self) -> list[Sequence[RunSpec]]:
        """Remove and return all fleets, in order."""
        return [self.take() for _ in range(len(self))]


def seconds_of(fleet: Sequence[RunSpec]) -> float:
    """Estimate the seconds of a fleet on a GPU by the rule; layers from outside, which it would call, by examples."""
    from icl_bench.harness.estimate import rough_seconds

    spec = fleet[0]
    if spec.from_outside or any(":" in part.name for part in spec.arch):
        return len(fleet) * spec.train.steps * spec.train.batch / OUTSIDE_EXAMPLES
    return len(fleet) * rough_seconds(spec, "cuda")


class Engine(Protocol):
    """A running engine, which carries fleets to their results."""

    def submit(self, agenda: Agenda, store: Store, reporter: Reporter) -> Iterator[RunResult]:
        """Run the fleets until the agenda is empty; yield each result once, after its commit, as the fleets end.

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
    with guarding(engine, f"--engine {spec.name}"):
        return build(engine, spec.params, f"--engine {spec.name}")


def make_engine(text: str, machine: "Machine") -> Engine:
    """Start the engine that `text` describes; raise IclBenchError if there is none, or if it lacks something."""
    config = engine_config(text)
    name = parse_spec(text).name
    if missing := missing_package(name):
        raise EngineError(f"--engine {name} needs {missing}, which is not installed; {install_command(name)}")
    with guarding(type(config), f"--engine {name}"):
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
