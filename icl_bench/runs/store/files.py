"""Files that are written completely or not at all, and that are read back without trusting their content."""

import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from icl_bench.errors import RecordError, StoreError
from icl_bench.runs.record import SCHEMA
from icl_bench.runs.store.faults import reach
from icl_bench.schema import FrozenT

LARGEST_RECORD = 1 << 26
"""Largest size of a record that is read, in bytes."""
NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
"""Flags for writing a file that does not exist yet."""
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""Flags for reading: a symbolic link is refused, and a pipe does not block."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an operating system error on writing `path` into a StoreError with a message of one line."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"the store needs disk space and permission to write; {path}: {error.strerror or error}; correct that and "
            "run the same command again: finished runs are kept"
        ) from None


def write_file(path: Path, data: bytes) -> None:
    """Write a new file and wait until it is on the disk; delete it if that fails."""
    handle = os.open(path, NEW, 0o644)
    try:
        write_all(handle, data)
        os.fsync(handle)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)


def write_all(handle: int, data: bytes) -> None:
    """Write all of the data, since one system call may write only a part."""
    while data:
        data = data[os.write(handle, data) :]


def replace_file(path: Path, data: bytes) -> None:
    """Replace the content of a file, completely or not at all."""
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    write_file(temporary, data)
    reach("file-written")
    try:
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_folder(path: Path) -> None:
    """Delete a folder, which another process may be deleting or may have deleted."""
    shutil.rmtree(path, ignore_errors=True)


def move_folder(source: Path, target: Path) -> bool:
    """Rename a folder to a path that is free or an empty folder; return whether this process moved it there.

    A network file system may carry out a rename and still report a failure, so the result on the disk decides.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        source.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT) or not target.is_dir():
            raise
        return False
    sync_folder(target.parent)
    return True


def sha256(data: bytes) -> str:
    """Return the SHA-256 of the data in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def read_bytes(path: Path, most: int | None = LARGEST_RECORD) -> bytes:
    """Read a regular file (no link) of at most `most` bytes, None for any size; raise RecordError if it is none."""
    try:
        handle = os.open(path, READ)
    except OSError as error:
        raise unreadable(path, "it is a link" if error.errno == errno.ELOOP else str(error.strerror)) from None
    with os.fdopen(handle, "rb") as file:
        about = os.fstat(handle)
        if not stat.S_ISREG(about.st_mode) or (most is not None and about.st_size > most):
            raise unreadable(path, f"it is no file of at most {most} bytes" if most else "it is no file")
        try:
            return file.read()
        except OSError as error:
            raise unreadable(path, str(error.strerror)) from None


def unreadable(path: Path, reason: str) -> RecordError:
    """Return the error for a file that cannot be read."""
    return RecordError(f"a record must be readable; {path}: {reason}; restore it or delete {path.parent}")


def parse_model(model: type[FrozenT], data: bytes, path: Path) -> FrozenT:
    """Parse a record from its JSON text; raise RecordError if that fails."""
    try:
        record = model.model_validate_json(data)
    except ValidationError:
        plain = parse_object(data, path)
        check_version(plain.get("schema_version", SCHEMA), path)
        return validate(model, plain, path)
    check_version(getattr(record, "schema_version", SCHEMA), path)
    return record


def check_version(version: object, path: Path) -> None:
    """Raise RecordError for a record of another version."""
    if version != SCHEMA:
        raise RecordError(
            f"records are read in version {SCHEMA}; {path} has version {version!r:.40}; use the icl-bench that wrote it"
        )


def validate(model: type[FrozenT], plain: dict[str, Any], path: Path) -> FrozenT:
    """Build a record from parsed JSON; raise RecordError if a field is wrong."""
    try:
        return model.model_validate(plain)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RecordError(
            f"a record must have the fields of {model.__name__}; {path}: {one_line(where)}: {one_line(first['msg'])}; "
            f"delete {path.parent}"
        ) from None


def parse_object(data: bytes, path: Path) -> dict[str, Any]:
    """Parse a JSON object; raise RecordError for anything else."""
    try:
        plain = json.loads(data)
        if b"\\ud" in data.lower():
            json.dumps(plain, ensure_ascii=False).encode()  # half a surrogate pair cannot be written as text
    except (ValueError, RecursionError) as error:
        raise RecordError(f"a record must be JSON; {path}: {error}; restore it or delete {path.parent}") from None
    if not isinstance(plain, dict):
        raise RecordError(f"a record must be a JSON object; {path} is not; restore it or delete {path.parent}")
    return plain


def one_line(text: str) -> str:
    """Return untrusted text as one line of at most 200 ASCII characters, for an error message."""
    return ascii(text)[1:-1][:200]
