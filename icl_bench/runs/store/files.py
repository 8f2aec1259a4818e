"""Files that are there whole or not at all, and reading them back without trust. Nothing here needs torch."""

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
from typing import Any, TypeVar

from pydantic import ValidationError

from icl_bench.errors import RecordError, StoreError
from icl_bench.runs.record import SCHEMA
from icl_bench.runs.store.faults import reach
from icl_bench.schema import Frozen

MOST_BYTES = 1 << 26
"""Larger records are refused."""
NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""A link is refused, and a pipe does not block."""

FrozenT = TypeVar("FrozenT", bound=Frozen)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system says on writing into one line.

    Raises:
        StoreError: where a file cannot be written: no room, no permission, a fault of the disk.
    """
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"the store needs room and permission to write; {path}: {error.strerror or error}; mend that and run the "
            "same command again: what is finished is kept"
        ) from None


def write_file(path: Path, data: bytes) -> None:
    """Write a new file and make it durable; nothing of it stays where that fails."""
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
    """Write all of it: one call may write a part."""
    while data:
        data = data[os.write(handle, data) :]


def replace_file(path: Path, data: bytes) -> None:
    """Write a file over an older one, whole or not at all."""
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    write_file(temporary, data)
    reach("file-written")
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_folder(path: Path) -> None:
    """Remove a folder that another process may be removing too, or may already have removed."""
    shutil.rmtree(path, ignore_errors=True)


def move_folder(source: Path, target: Path) -> bool:
    """Rename a folder to a place that is free or empty; whether this process was the one to fill it.

    A rename over the network may be carried out and yet reported as failed: what counts is what is there.
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
    """SHA-256 in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def read_bytes(path: Path, most: int | None = MOST_BYTES) -> bytes:
    """The content of a stored file, which is no link.

    Args:
        path: The file.
        most: The most bytes it may have; None for any number.

    Raises:
        RecordError: where it cannot be read, is a link or no file, or is too large.
    """
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
    """What is said of a file that cannot be read."""
    return RecordError(f"a record must be readable; {path}: {reason}; restore it or delete {path.parent}")


def parse_model(model: type[FrozenT], data: bytes, path: Path) -> FrozenT:
    """Read a record from its text; raises RecordError."""
    try:
        record = model.model_validate_json(data)
    except ValidationError:
        plain = parse_object(data, path)
        check_version(plain.get("schema_version", SCHEMA), path)
        return validate(model, plain, path)
    check_version(getattr(record, "schema_version", SCHEMA), path)
    return record


def check_version(version: object, path: Path) -> None:
    """Refuse a record of another version; raises RecordError."""
    if version != SCHEMA:
        raise RecordError(
            f"records are read in version {SCHEMA}; {path} has version {version!r:.40}; use the icl-bench that wrote it"
        )


def validate(model: type[FrozenT], plain: dict[str, Any], path: Path) -> FrozenT:
    """A record from plain data; raises RecordError."""
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
    """Read a JSON object; raises RecordError."""
    try:
        plain = json.loads(data)
        if b"\\ud" in data.lower():
            json.dumps(plain, ensure_ascii=False).encode()  # half a surrogate pair is no text, and cannot be written
    except (ValueError, RecursionError) as error:
        raise RecordError(f"a record must be JSON; {path}: {error}; restore it or delete {path.parent}") from None
    if not isinstance(plain, dict):
        raise RecordError(f"a record must be a JSON object; {path} is not; restore it or delete {path.parent}")
    return plain


def one_line(text: str) -> str:
    """Text of a stranger as a message shows it: on one line, of bounded length."""
    return ascii(text)[1:-1][:200]
