"""Versions of the data of a task: the registry keeps the classes that made former ones, so that old data stay."""

from collections.abc import Callable, Mapping
from typing import ClassVar, Protocol, TypeVar

from icl_bench.errors import DuplicateNameError, SpecError, UnknownNameError
from icl_bench.registry import Registry


class Versioned(Protocol):
    """A class whose data have a version."""

    data_version: ClassVar[int]
    """Version of the data, from 1 up."""
    retired: ClassVar[str]
    """Reason why new runs take a later version; empty for the present one."""


VersionedT = TypeVar("VersionedT", bound=type[Versioned])


class VersionedRegistry(Registry[VersionedT]):
    """A registry of classes in their present version, which also finds retired versions, `name@1`."""

    def __init__(self, kind: str, base: type | None = None, other_names: Mapping[str, str] = {}) -> None:
        super().__init__(kind, base, other_names)
        self._retired: dict[tuple[str, int], VersionedT] = {}

    def register_retired(self, name: str) -> Callable[[VersionedT], VersionedT]:
        """Return a decorator that registers the class of a retired version.

        Raise SpecError for a class without a reason or of a version that is not older than the present one,
        DuplicateNameError for a version that is there.
        """

        def add(entry: VersionedT) -> VersionedT:
            version, present = entry.data_version, self[name].data_version
            if not entry.retired:
                raise SpecError(f"a retired version says why; {name}@{version} does not; set `retired`")
            if version > present:
                raise SpecError(f"a retired version is older than version {present} of {name}; got {version}; lower it")
            if version in self._of(name):
                raise DuplicateNameError(f"a version is made by one class; {name} has version {version}; drop one")
            self._retired[name, version] = entry
            return entry

        return add

    def _of(self, name: str) -> dict[int, VersionedT]:
        """Return the classes of all versions of a name, oldest first."""
        present = self[name]
        found = {version: entry for (own, version), entry in self._retired.items() if own == name}
        return dict(sorted({**found, present.data_version: present}.items()))

    def versions(self, name: str) -> list[VersionedT]:
        """Return the classes of all versions, oldest first; the last is the present one."""
        return list(self._of(name).values())

    def version(self, name: str, number: int | None) -> VersionedT:
        """Return the class of a version, None for the present one; raise UnknownNameError if there is none."""
        found = self._of(name)
        if number is None:
            return self[name]
        if number not in found:
            known = ", ".join(f"{one} ({entry.retired})" if entry.retired else str(one) for one, entry in found.items())
            raise UnknownNameError(f"{self.kind} {name} has no version {number}; versions: {known}")
        return found[number]

    def name_of(self, entry: type) -> str:
        """Return the name of a registered class, of a retired version too; raise UnknownNameError for others."""
        for (name, _), retired in self._retired.items():
            if retired is entry:
                return name
        return super().name_of(entry)
