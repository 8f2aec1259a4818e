"""Registries, which map names to classes, and the loading of plug-ins, which register classes of their own."""

import importlib
import importlib.metadata
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Generic, NamedTuple, TypeVar

from icl_bench.errors import DuplicateNameError, IclBenchError, SpecError, UnknownNameError
from icl_bench.outside import exits_refused, first_line, guarded, place_of
from icl_bench.schema import NAME, nearest

T = TypeVar("T", bound=type)

PLUGIN_GROUP = "icl_bench"
"""Group of the entry points of plug-ins."""
PLUGIN_ALLOW_LIST = "ICL_BENCH_PLUGINS"
"""Environment variable that names the entry points to load, separated by commas; without it, all are loaded."""
PLUGIN_MODULES = "ICL_BENCH_PLUGIN_MODULES"
"""Environment variable that names the modules of --plugin, separated by commas; worker processes inherit it."""


class Registry(Generic[T]):
    """A mapping from names to classes; `@REGISTRY.register("name")` adds a class, which must have a docstring."""

    def __init__(self, kind: str, base: type | None = None, other_names: Mapping[str, str] = {}) -> None:
        self.kind, self.base = kind, base
        self.other_names = {name: (own,) for name, own in other_names.items()}  # of other packages, for hints
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers a class; raise IclBenchError if the name is taken or invalid."""

        def add(entry: T) -> T:
            if not NAME.fullmatch(name):
                raise SpecError(f"a name is lower-case letters, digits and hyphens; got {name!r}; rename it")
            if self.base is not None and not (isinstance(entry, type) and issubclass(entry, self.base)):
                raise SpecError(
                    f"every {self.kind} is a class of {self.base.__name__}; {name} is {entry!r:.80}; derive it from "
                    "that"
                )
            if name in self._entries:
                owner = self._entries[name].__module__
                raise DuplicateNameError(f"every {self.kind} has its own name; {owner} has {name!r}; choose another")
            if not entry.__dict__.get("__doc__") and sys.flags.optimize < 2:  # python -OO drops docstrings
                raise SpecError(f"every {self.kind} has a docstring; {entry.__qualname__} has none; describe it")
            self._entries[name] = entry
            return entry

        return add

    def __getitem__(self, name: str) -> T:
        try:
            return self._entries[name]
        except KeyError:
            known = ", ".join(sorted(self._entries))
            hint = nearest(name, self._entries, self.other_names)
            raise UnknownNameError(f"no {self.kind} is named {name!r}; {hint}known: {known}") from None

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def name_of(self, entry: type) -> str:
        """Return the name of a registered class; raise UnknownNameError if the class is not registered."""
        for name, registered in self._entries.items():
            if registered is entry:
                return name
        raise UnknownNameError(f"{entry.__qualname__} is not a registered {self.kind}; register it first")

    def summary(self, name: str) -> str:
        """Return the first line of the docstring of a class; empty text under `python -OO`."""
        return (self[name].__doc__ or "").strip().partition("\n")[0]


class Plugin(NamedTuple):
    """A plug-in: its entry point, the distribution that contains it, and the error that loading it raised, if any."""

    name: str
    target: str
    distribution: str
    error: str | None


def load_plugins() -> list[Plugin]:
    """Import every entry point of the group `icl_bench` and every module of --plugin, which register their classes.

    The failure of an installed plug-in is returned, not raised: it must not stop runs that do not need the plug-in. A
    module of --plugin that cannot be imported raises UnknownNameError.
    """
    allowed = os.environ.get(PLUGIN_ALLOW_LIST)
    names = None if allowed is None else {name.strip() for name in allowed.split(",")}
    plugins = []
    for point in importlib.metadata.entry_points(group=PLUGIN_GROUP):
        if names is not None and point.name not in names:
            continue
        error = None
        try:
            with exits_refused(), guarded(point.name):
                point.load()
        except IclBenchError as failure:
            cause = failure.__cause__ or failure
            error = first_line(cause) + place_of(cause)
        plugins.append(Plugin(point.name, point.value, point.dist.name if point.dist else "", error))
    for name in plugin_modules():
        import_module(name)
        plugins.append(Plugin(name, name, "--plugin", None))
    return plugins


def add_plugin_modules(modules: Iterable[str]) -> None:
    """Add modules that `load_plugins` imports, in this process and, through the environment, in its child processes."""
    os.environ[PLUGIN_MODULES] = ",".join([*plugin_modules(), *modules])


def plugin_modules() -> list[str]:
    """Return the modules named with --plugin, in this process or in the process that started it."""
    return [name for name in os.environ.get(PLUGIN_MODULES, "").split(",") if name]


def import_module(name: str) -> ModuleType:
    """Import a module, searching the current folder last.

    Raise UnknownNameError if it is missing, OutsideCodeError if it raises an error, and SpecError for no name of one.
    """
    if not all(part.isidentifier() for part in name.split(".")):
        raise SpecError(
            f"a module is named as in an import, package.module; got {name!r:.80}; leave out folder and .py"
        )
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # last, so that its files hide no other module
    with exits_refused(), guarded(f"module {name!r} cannot be imported"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise UnknownNameError(f"module {name!r} cannot be imported: {error}; is it on the Python path?") from None


def import_object(path: str) -> object:
    """Return the object `package.module:attribute`; raise UnknownNameError if it does not exist."""
    module_name, _, attribute = path.partition(":")
    module = import_module(module_name)
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise UnknownNameError(f"module {module_name!r} has no {attribute!r}; check the class name") from None
