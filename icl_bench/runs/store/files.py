"""The door to the files of a store: each is reached through a handle of its folder, and no link is followed.

A `Folder` is the root of a store and the names below it. Opening it opens one name after another, without following
links, so that nothing outside the root is read, written or removed, even if somebody exchanges a folder for a link in
between. The root itself, which the user typed, may be a link. Files are written completely or not at all.
"""

import errno
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Literal, NamedTuple

from icl_bench.errors import LinkError, RecordError, StoreError
from icl_bench.runs.store.faults import reach
from icl_bench.runs.store.processes import MARK, SILENT_AFTER, Writer, writer_mark

LARGEST_RECORD = 1 << 26
"""Largest size of a record that is read, in bytes."""
BLOCK = 1 << 20
"""Number of bytes that are read at once."""
SYNC_THREADS = 8
"""Files that wait for the disk together: a journal writes them at once."""
ROOT = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
FOLDER = ROOT | os.O_NOFOLLOW
NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
"""Flags for writing a file that does not exist yet."""
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""Flags for reading: a symbolic link is refused, and a pipe does not block."""
DRAFT = re.compile(rf"\.(.+?)-(?:{MARK}|[0-9a-f]{{8}})")
"""Name of a file or folder that is still being written: the name that it will have, and its writer."""
OLD_PROBE = re.compile(r"\.(probe)-[0-9]+()()()")

Kind = Literal["file", "folder", "link", "other"]


class Handle(NamedTuple):
    """An open folder."""

    number: int
    """File descriptor."""
    place: "Folder"
    """The folder, by name."""

    @property
    def path(self) -> Path:
        """Path for messages, and for libraries that open files by path only."""
        return self.place.path

    def names(self) -> list[str]:
        """Return the names in the folder, sorted."""
        return sorted(os.listdir(self.number))  # noqa: PTH208 - by its handle

    def folders(self) -> list[str]:
        """Return the names of the folders in the folder, sorted, without links."""
        with os.scandir(self.number) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))

    def kind(self, name: str) -> Kind | None:
        """Return the kind of what has this name, None if nothing has."""
        try:
            mode = os.stat(name, dir_fd=self.number, follow_symlinks=False).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return None
        if stat.S_ISLNK(mode):
            return "link"
        return "file" if stat.S_ISREG(mode) else "folder" if stat.S_ISDIR(mode) else "other"

    @contextmanager
    def below(self, name: str, make: bool = False) -> Iterator["Handle"]:
        """Open a folder in this one; `make` makes one that is missing.

        Raises:
            FileNotFoundError: There is none.
            StoreError: A link or a file has this name.
        """
        inner = Handle(self.open_below(name, make), self.place.at(name))
        try:
            yield inner
        finally:
            os.close(inner.number)

    def open_below(self, name: str, make: bool) -> int:
        """Return the descriptor of a folder in this one; raise as `below` does."""
        try:
            try:
                return os.open(name, FOLDER, dir_fd=self.number)
            except FileNotFoundError:
                if not make:
                    raise
            with suppress(FileExistsError):
                os.mkdir(name, dir_fd=self.number)
            return os.open(name, FOLDER, dir_fd=self.number)
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                raise refused(self.path / name, self.kind(name)) from None
            raise

    def create(self, name: str, data: bytes) -> None:
        """Write a new file, without waiting for the disk; delete it if that fails."""
        with self.creating(name) as file:
            file.write(data)

    @contextmanager
    def creating(self, name: str) -> Iterator[IO[bytes]]:
        """Open a new file for writing; delete it if the block fails."""
        handle = os.open(name, NEW, 0o644, dir_fd=self.number)
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
        except BaseException:
            self.remove(name)
            raise

    @contextmanager
    def draft(self, name: str) -> Iterator[str]:
        """Make an empty file, which takes the place of `name` when the block ends: durably, or not at all.

        Yield the name of the draft, by which a later process knows whether its writer still runs.
        """
        draft = f".{name}-{writer_mark()}"
        self.create(draft, b"")
        try:
            yield draft
            self.sync([draft])
            reach("file-written")
            os.replace(draft, name, src_dir_fd=self.number, dst_dir_fd=self.number)
        except BaseException:
            self.remove(draft)
            raise
        self.sync()

    @contextmanager
    def replacing(self, name: str) -> Iterator[IO[bytes]]:
        """Open a file that takes the place of another one when the block ends: completely, durably or not at all."""
        with self.draft(name) as draft:
            handle = os.open(draft, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.number)
            with os.fdopen(handle, "wb") as file:
                yield file

    def replace(self, name: str, data: bytes) -> None:
        """Replace the content of a file: completely, durably or not at all."""
        with self.replacing(name) as file:
            file.write(data)

    def blocks(self, name: str, most: int) -> Iterator[bytes]:
        """Yield the content of a regular file of at most `most` bytes; raise RecordError if it is none."""
        try:
            handle = os.open(name, READ, dir_fd=self.number)
            try:
                about = os.fstat(handle)
                left = most if stat.S_ISREG(about.st_mode) and about.st_size <= most else -1
                while left >= 0 and (block := os.read(handle, BLOCK)):
                    left -= len(block)
                    yield block
            finally:
                os.close(handle)
        except OSError as error:
            reason = "it is a link" if error.errno == errno.ELOOP else str(error.strerror)
            raise unreadable(self.path / name, reason) from None
        if left < 0:
            raise unreadable(self.path / name, f"it is no file of at most {most} bytes")

    def read(self, name: str, most: int = LARGEST_RECORD) -> bytes:
        """Return the content of a regular file of at most `most` bytes; raise RecordError if it is none."""
        return b"".join(self.blocks(name, most))

    def digest(self, name: str, most: int) -> str:
        """Return the SHA-256 of a regular file of at most `most` bytes; raise RecordError if it is none."""
        found = hashlib.sha256()
        for block in self.blocks(name, most):
            found.update(block)
        return found.hexdigest()

    def remove(self, name: str) -> None:
        """Delete a file, or a folder with all that it contains; another process may be deleting it too.

        A folder is renamed first, so that nobody takes what is left of it for the whole.
        """
        try:
            os.unlink(name, dir_fd=self.number)
        except FileNotFoundError:
            return
        except (IsADirectoryError, PermissionError):  # POSIX lets a system refuse a folder either way
            if self.kind(name) != "folder":
                raise
            draft = name if DRAFT.fullmatch(name) else f".{name}-{writer_mark()}"
            with suppress(FileNotFoundError):
                os.rename(name, draft, src_dir_fd=self.number, dst_dir_fd=self.number)
            shutil.rmtree(draft, ignore_errors=True, dir_fd=self.number)  # follows no link

    def move(self, name: str, target: "Handle", new_name: str) -> bool:
        """Rename a folder to a name that is free or an empty folder; return whether this process moved it there.

        A network file system may carry out a rename and still report a failure, so the result on the disk decides.
        """
        try:
            os.rename(name, new_name, src_dir_fd=self.number, dst_dir_fd=target.number)
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.EISDIR) and target.kind(new_name) != "folder":
                raise refused(target.path / new_name, target.kind(new_name)) from None
            moved = error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT)
            if not moved or target.kind(new_name) != "folder":
                raise
            return False
        return True

    def sync(self, files: Sequence[str] = ()) -> None:
        """Wait until these files, and the names in the folder, are on the disk."""
        sync_folders([(self, files)])

    def clear_drafts(self, belongs: Callable[[str], bool]) -> None:
        """Delete what killed processes left half written under a name that `belongs` admits; drafts in work stay."""
        for name in self.names():
            found = DRAFT.fullmatch(name) or OLD_PROBE.fullmatch(name)
            if found and belongs(found[1]) and not self.is_in_work(name, found):
                self.remove(name)

    def is_in_work(self, name: str, found: "re.Match[str]") -> bool:
        """Return whether the writer of a draft still runs."""
        writer = Writer.of(found, 2) if found[2] else Writer("", 0, None)
        return writer.is_alive(self.changed(name))

    def changed(self, name: str) -> float:
        """Return the time of the last change of a file, or of a folder and the files in it, in seconds."""
        try:
            times = [os.stat(name, dir_fd=self.number, follow_symlinks=False).st_mtime]
            if self.kind(name) == "folder":
                with self.below(name) as inner:
                    times += [
                        os.stat(one, dir_fd=inner.number, follow_symlinks=False).st_mtime for one in inner.names()
                    ]
        except FileNotFoundError:
            return -SILENT_AFTER
        return max(times)


class Folder(NamedTuple):
    """A folder of a store: the root, and the names below it."""

    root: Path
    names: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """Path for messages."""
        return self.root.joinpath(*self.names)

    def at(self, *names: str) -> "Folder":
        """Return a folder below this one."""
        return Folder(self.root, (*self.names, *names))

    @contextmanager
    def opened(self, make: bool = False) -> Iterator[Handle]:
        """Open the folder; `make` makes it and its parents if they are missing.

        Raises:
            FileNotFoundError: It does not exist, or nothing has a name that is asked for inside.
            FileExistsError: A name that is to be made inside is taken.
            StoreError: A link or a file is in its place or in that of one of its parents, or the disk fails inside.
        """
        with converted(self.path), ExitStack() as parents:
            if make and not self.root.exists():
                make_root(self.root)
            handle = parents.enter_context(opened_root(self.root))
            for name in self.names:
                handle = parents.enter_context(handle.below(name, make))
            yield handle

    def exists(self) -> bool:
        """Return whether the folder exists; raise StoreError as `opened` does."""
        try:
            with self.opened():
                return True
        except FileNotFoundError:
            return False


@contextmanager
def opened_root(root: Path) -> Iterator[Handle]:
    """Open the root of a store, which may be a link, or another folder that the user named; raise OSError."""
    try:
        handle = Handle(os.open(root, ROOT), Folder(root))
    except NotADirectoryError as error:
        raise FileNotFoundError(*error.args) from None
    try:
        yield handle
    finally:
        os.close(handle.number)


@contextmanager
def converted(path: Path) -> Iterator[None]:
    """Turn an operating system error on `path` into a StoreError, unless it says that a name is missing or taken."""
    try:
        yield
    except (FileNotFoundError, FileExistsError):
        raise
    except OSError as error:
        raise failed(path, error) from None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn every operating system error on `path` into a StoreError with a message of one line."""
    try:
        yield
    except OSError as error:
        raise failed(path, error) from None


def failed(path: Path, error: OSError) -> StoreError:
    """Return the error for a disk that fails, is full or refuses."""
    return StoreError(
        f"the store needs disk space and permission to read and write; {path}: {error.strerror or error}; correct that "
        "and run the same command again: finished runs are kept"
    )


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a file outside of a store that takes the place of another one when the block ends; raise OSError."""
    with opened_root(path.parent) as folder:
        folder.clear_drafts(lambda name: name == path.name)
        with folder.replacing(path.name) as file:
            yield file


def replace_file(path: Path, data: bytes) -> None:
    """Replace the content of a file outside of a store, completely or not at all; raise OSError if that fails."""
    with replacing(path) as file:
        file.write(data)


def make_root(root: Path) -> None:
    """Make the root of a store and its parents, and wait until their names are on the disk."""
    missing = [path for path in (root, *root.parents) if not path.exists()]
    root.mkdir(parents=True, exist_ok=True)
    for path in missing or [root]:
        with suppress(PermissionError), opened_root(path.absolute().parent) as parent:
            parent.sync()


def write_all(handle: int, data: bytes) -> None:
    """Write all of the data, since one system call may write only a part."""
    while data:
        data = data[os.write(handle, data) :]


def sync_folders(folders: Iterable[tuple[Handle, Sequence[str]]]) -> None:
    """Wait until files of folders, and the names in these folders, are on the disk.

    They are waited for together, which takes hardly longer than for one of them.
    """
    waiting: list[int] = []
    opened: list[int] = []
    try:
        for folder, names in folders:
            for name in names:
                opened.append(os.open(name, READ, dir_fd=folder.number))
            waiting.append(folder.number)
        with ThreadPoolExecutor(SYNC_THREADS) as pool:
            for _ in pool.map(os.fsync, [*opened, *waiting]):
                pass
    finally:
        for handle in opened:
            os.close(handle)


def sha256(data: bytes) -> str:
    """Return the SHA-256 of the data in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def refused(path: Path, kind: Kind | None) -> LinkError:
    """Return the error for something that is in the place of a folder of a store."""
    if kind == "link":
        return LinkError(f"the folders of a store are no links; {path} is one; move what it points to here")
    return LinkError(f"the folders of a store are folders; {path} is none; move it elsewhere")


def unreadable(path: Path, reason: str) -> RecordError:
    """Return the error for a file that cannot be read."""
    return RecordError(f"a record must be readable; {path}: {reason}; restore it or delete {path.parent}")
