"""A disk that loses power: file operations recorded by `intercept.c`, and what is left of them after each one.

Content of a file is kept by an fsync of the file. Names are kept at once in one model; in the other one, as POSIX has
it, the names in a folder are kept by an fsync of that folder alone.
"""

import hashlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

HEAD = struct.Struct("<6q")
CURRENT = -100
"""Handle that stands for the current folder, AT_FDCWD."""


class Operation(NamedTuple):
    """A file operation that succeeded; the letters are those of `intercept.c`."""

    letter: str
    first: int
    second: int
    third: int
    one: bytes
    two: bytes


class File:
    """A file: its bytes, and those that an fsync has kept."""

    def __init__(self, data: bytes = b"") -> None:
        self.data, self.kept = bytearray(data), bytes(data)

    def sync(self) -> None:
        """Keep the content."""
        self.kept = bytes(self.data)


class Folder:
    """A folder: its names, and those that an fsync has kept."""

    def __init__(self) -> None:
        self.names: dict[str, File | Folder] = {}
        self.kept: dict[str, File | Folder] = {}

    def sync(self) -> None:
        """Keep the names."""
        self.kept = dict(self.names)


def read_record(path: Path) -> Iterator[Operation]:
    """Yield the operations of a record."""
    data, place = path.read_bytes(), 0
    while place < len(data):
        letter, first, second, third, one, two = HEAD.unpack_from(data, place)
        place += HEAD.size
        texts = data[place : place + one], data[place + one : place + one + two]
        place += one + two
        yield Operation(chr(letter), first, second, third, *texts)


class Disk:
    """What a folder holds while operations are carried out, and what of it would outlive a loss of power."""

    def __init__(self, folder: Path) -> None:
        self.place = os.fsencode(folder.resolve())
        self.root = read_folder(folder)
        self.handles: dict[int, File | Folder] = {CURRENT: self.root}

    def carry_out(self, done: Operation) -> None:
        """Carry out an operation."""
        if done.letter in "SWTC":
            self.on_handle(done)
            return
        parent, name = self.find(done.second if done.letter == "O" else done.first, done.one)
        if done.letter == "O":
            self.open(done, parent, name)
        elif done.letter == "M":
            parent.names[name] = Folder()
        elif done.letter in "UD":
            del parent.names[name]
        else:
            target, new = self.find(done.second, done.two)
            target.names[new] = parent.names[name] if done.letter == "H" else parent.names.pop(name)

    def on_handle(self, done: Operation) -> None:
        """Carry out an operation on an open file or folder."""
        node = self.handles[done.first]
        if done.letter == "C":
            del self.handles[done.first]
        elif done.letter == "S":
            node.sync()
        else:
            assert isinstance(node, File)
            missing = done.second - len(node.data)
            node.data.extend(bytes(max(missing, 0)))
            if done.letter == "W":
                node.data[done.second : done.second + done.third] = done.one
            else:
                del node.data[done.second :]

    def open(self, done: Operation, parent: Folder, name: str) -> None:
        """Open a file or folder; make a file that is not there, cut one that is to be replaced."""
        node = parent.names.setdefault(name, File()) if name else parent
        if isinstance(node, File) and done.third & os.O_TRUNC:
            node.data.clear()
        self.handles[done.first] = node

    def find(self, handle: int, path: bytes) -> tuple[Folder, str]:
        """Return the folder that holds a path, and the last name of the path; no name for the folder itself."""
        absolute = path.startswith(b"/")
        parts = [os.fsdecode(part) for part in path.removeprefix(self.place).split(b"/") if part not in (b"", b".")]
        node = self.root if absolute else self.handles[handle]
        for part in parts[:-1]:
            assert isinstance(node, Folder)
            node = node.names[part]
        assert isinstance(node, Folder)
        return node, parts[-1] if parts else ""

    def digest(self, lose_names: bool) -> str:
        """Return a hash of what is left after a loss of power."""
        content = hashlib.sha256()
        for name, node in left(self.root, lose_names):
            content.update(f"{len(name)} {name} ".encode())
            content.update(f"{len(node.kept)} ".encode() + node.kept if isinstance(node, File) else b"folder ")
        return content.hexdigest()

    def write(self, folder: Path, lose_names: bool) -> None:
        """Write what is left after a loss of power into an empty folder."""
        for name, node in left(self.root, lose_names):
            if isinstance(node, File):
                (folder / name).write_bytes(node.kept)
            else:
                (folder / name).mkdir()


def read_folder(folder: Path) -> Folder:
    """Return the content of a folder, all of it kept."""
    made = Folder()
    for path in folder.iterdir():
        made.names[path.name] = read_folder(path) if path.is_dir() else File(path.read_bytes())
    made.sync()
    return made


def left(folder: Folder, lose_names: bool, before: str = "") -> Iterator[tuple[str, File | Folder]]:
    """Yield what is left below a folder, with relative paths, every folder before its content."""
    for name, node in sorted((folder.kept if lose_names else folder.names).items()):
        yield before + name, node
        if isinstance(node, Folder):
            yield from left(node, lose_names, f"{before}{name}/")
