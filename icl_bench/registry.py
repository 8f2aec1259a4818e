"""Names for tasks and architectures, and the loading of plug-ins."""

import importlib
import importlib.metadata
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Generic, NamedTuple, TypeVar

from icl_bench.errors import DuplicateNameError, SpecError, UnknownNameError
from icl_bench.schema import NAME, nearest

T = TypeVar("T", bound=type)

PLUGIN_GROUP = "icl_bench"
PLUGIN_ALLOW_LIST = "ICL_BENCH_PLUGINS"
PLUGIN_MODULES = "ICL_BENCH_PLUGIN_MODULES"


class Registry(Generic[T]):
    """Classes by name. A class registers itself with `@REGISTRY.register("name")` and must have a docstring."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Register a class under a name and return it unchanged.

        Raises:
            DuplicateNameError: where the name is taken.
            SpecError: where the name breaks the grammar or the class has no docstring of its own.
        """

        def add(entry: T) -> T:
            if not NAME.fullmatch(name):
                raise SpecError(
                    f"a name is lower-case letters, digits and hyphens; got {name!r}; rename the {self.kind}"
                )
            if name in self._entries:
                owner = self._entries[name].__module__
                raise DuplicateNameError(f"a {self.kind} name is used once; {owner} has {name!r}; choose another")
            if not entry.__dict__.get("__doc__"):
                raise SpecError(f"a {self.kind} has a docstring; {entry.__qualname__} has none; say its rule in a line")
            self._entries[name] = entry
            return entry

        return add

    def __getitem__(self, name: str) -> T:
        try:
            return self._entries[name]
        except KeyError:
            known = ", ".join(sorted(self._entries))
            hint = nearest(name, self._entries)
            raise UnknownNameError(f"no {self.kind} is named {name!r}; {hint}known: {known}") from None

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def name_of(self, entry: type) -> str:
        """The name under which a class is registered.

        Raises:
            UnknownNameError: where it is not.
        """
        for name, registered in self._entries.items():
            if registered is entry:
                return name
        raise UnknownNameError(f"{entry.__qualname__} is not a registered {self.kind}; register it first")

    def summary(self, name: str) -> str:
        """The first line of the docstring."""
        return str(self[name].__doc__).strip().splitlines()[0]


class Plugin(NamedTuple):
    """An installed plug-in: its entry point, the distribution that brings it, and what went wrong, if anything."""

    name: str
    target: str
    distribution: str
    error: str | None


def load_plugins() -> list[Plugin]:
    """Import every entry point of the group `icl_bench`, and the modules of --plugin; importing registers.

    The environment variable ICL_BENCH_PLUGINS, a comma-separated list of entry point names, restricts what is loaded.
    An installed plug-in that fails is reported, not raised: it must not stop the runs that do not need it.

    Raises:
        UnknownNameError: where a module of --plugin cannot be imported.
    """
    allowed = os.environ.get(PLUGIN_ALLOW_LIST)
    names = None if allowed is None else {name.strip() for name in allowed.split(",")}
    plugins = []
    for point in importlib.metadata.entry_points(group=PLUGIN_GROUP):
        if names is not None and point.name not in names:
            continue
        error = None
        try:
            point.load()
        except Exception as failure:  # a stranger's module may raise anything
            error = f"{type(failure).__name__}: {failure}"
        plugins.append(Plugin(point.name, point.value, point.dist.name if point.dist else "", error))
    for name in named_plugins():
        import_module(name)
        plugins.append(Plugin(name, name, "--plugin", None))
    return plugins


def name_plugins(modules: Iterable[str]) -> None:
    """Have these modules imported by `load_plugins`, in this process and in those that it starts."""
    os.environ[PLUGIN_MODULES] = ",".join([*named_plugins(), *modules])


def named_plugins() -> list[str]:
    """Modules that were named with --plugin."""
    return [name for name in os.environ.get(PLUGIN_MODULES, "").split(",") if name]


def import_module(name: str) -> ModuleType:
    """Import a module; the current folder is searched last.

    Raises:
        UnknownNameError: where there is none of that name, or one that it needs is missing.
    """
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # last, so that it shadows nothing
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UnknownNameError(f"module {name!r} cannot be imported: {error}; is it on the Python path?") from None


def import_object(path: str) -> object:
    """The object named `package.module:attribute`; the current folder is searched last.

    Raises:
        UnknownNameError: where the module or the attribute does not exist.
    """
    module_name, _, attribute = path.partition(":")
    module = import_module(module_name)
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise UnknownNameError(f"module {module_name!r} has no {attribute!r}; check the class name") from None
