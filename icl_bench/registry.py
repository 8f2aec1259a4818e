"""Names for tasks and architectures, and the loading of plug-ins."""

import importlib
import importlib.metadata
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from icl_bench.errors import DuplicateNameError, SpecError, UnknownNameError
from icl_bench.schema import NAME, nearest

T = TypeVar("T", bound=type)

PLUGIN_GROUP = "icl_bench"
PLUGIN_ALLOW_LIST = "ICL_BENCH_PLUGINS"


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
    """Import every entry point of the group `icl_bench`; importing registers what it brings.

    The environment variable ICL_BENCH_PLUGINS, a comma-separated list of entry point names, restricts what is loaded.
    A plug-in that fails is reported, not raised: it must not stop the runs that do not need it.
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
    return plugins


def import_object(path: str) -> object:
    """The object named `package.module:attribute`; the current folder is searched last.

    Raises:
        UnknownNameError: where the module or the attribute does not exist.
    """
    module_name, _, attribute = path.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # last, so that it shadows nothing
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UnknownNameError(
            f"module {module_name!r} cannot be imported: {error}; is it on the Python path?"
        ) from None
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise UnknownNameError(f"module {module_name!r} has no {attribute!r}; check the class name") from None
