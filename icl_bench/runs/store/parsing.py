"""Records read from JSON that others may have written: strictly, in one spelling, or refused with a line."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json, to_json

from icl_bench.errors import RecordError
from icl_bench.runs.record import SCHEMA
from icl_bench.runs.store.files import Handle, unreadable
from icl_bench.schema import Frozen, FrozenT, canonical_json

LENGTH_BYTES = 8
"""Bytes of a safetensors file before its header, which state the length of the header."""
LARGEST_HEADER = 1 << 24
"""Largest length of the header of a safetensors file, in bytes."""


def text_of(record: Frozen) -> bytes:
    """Return a record as a line of canonical JSON."""
    return (canonical_json(record.model_dump(mode="json")) + "\n").encode()


def parse_model(model: type[FrozenT], data: bytes, path: Path, canonical: bool = True) -> FrozenT:
    """Parse a record from its JSON text; raise RecordError if that fails, or if the text is not `canonical`."""
    try:
        record = model.model_validate_json(data, strict=True)
    except ValidationError as error:
        plain = parse_object(data, path)
        check_version(plain.get("schema_version", SCHEMA), path)
        raise wrong_field(error, model.__name__, path) from None
    check_version(getattr(record, "schema_version", SCHEMA), path)
    if canonical:
        check_canonical(data, path)
    return record


def parse_lines(model: type[FrozenT], data: bytes, path: Path) -> tuple[FrozenT, ...]:
    """Parse a file with a record in each line; raise RecordError if one is wrong or not canonical."""
    array = b"[" + data.removesuffix(b"\n").replace(b"\n", b",") + b"]\n"
    try:
        records = adapter(model).validate_json(array, strict=True)
    except ValidationError as error:
        raise wrong_field(error, model.__name__, path) from None
    check_canonical(array, path)
    lines = data.count(b"\n")
    if len(records) != lines:
        raise RecordError(
            f"a line holds one record; {path} has {len(records)} in {lines} lines; restore it or delete {path.parent}"
        )
    return records


@cache
def adapter(model: type[FrozenT]) -> TypeAdapter[tuple[FrozenT, ...]]:
    """Return the parser of an array of records."""
    return TypeAdapter(tuple[model, ...])  # type: ignore[valid-type]


def check_canonical(data: bytes, path: Path) -> None:
    """Raise RecordError unless a JSON text has each key once and each number in its shortest form, without spaces.

    The fast check writes other exponents and no escapes, so that a text which fails it is checked again.
    """
    if to_json(from_json(data)) + b"\n" == data:
        return
    try:
        own = (canonical_json(json.loads(data)) + "\n").encode()
    except ValueError:
        own = b""
    if own != data:
        raise RecordError(
            f"a record is canonical JSON, each key once; {path} is spelled otherwise; restore it or delete "
            f"{path.parent}"
        )


def check_version(version: object, path: Path) -> None:
    """Raise RecordError for a record of another version."""
    if version != SCHEMA or isinstance(version, bool):
        raise RecordError(
            f"records are read in version {SCHEMA}; {path} has version {version!r:.40}; use the icl-bench that wrote it"
        )


def wrong_field(error: ValidationError, name: str, path: Path) -> RecordError:
    """Return the error for a record with a wrong field, on one line."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return RecordError(
        f"a record must have the fields of {name}; {path}: {one_line(where)}: {one_line(first['msg'])}; "
        f"delete {path.parent}"
    )


def parse_object(data: bytes, path: Path) -> dict[str, Any]:
    """Parse a JSON object; raise RecordError for anything else."""
    try:
        plain = json.loads(data)
        if b"\\ud" in data.lower():
            json.dumps(plain, ensure_ascii=False).encode()  # half a surrogate pair cannot be written as text
    except (ValueError, RecursionError) as error:
        raise RecordError(
            f"a record must be JSON; {path}: {one_line(str(error))}; restore it or delete {path.parent}"
        ) from None
    if not isinstance(plain, dict):
        raise RecordError(f"a record must be a JSON object; {path} is not; restore it or delete {path.parent}")
    return plain


def tensors_length(folder: Handle, name: str, most: int) -> int:
    """Return the length in bytes that the header of a safetensors file gives it, at most `most`.

    A file that is longer is not read to its end to find out. Raises RecordError for a file without such a header.
    """
    start, header_end = b"", LENGTH_BYTES
    for block in folder.blocks(name, most):
        start += block
        header_end = LENGTH_BYTES + int.from_bytes(start[:LENGTH_BYTES], "little")
        if header_end > LARGEST_HEADER or len(start) >= header_end:
            break
    try:
        tensors = [part for key, part in json.loads(start[LENGTH_BYTES:header_end]).items() if key != "__metadata__"]
        return min(header_end + max((int(part["data_offsets"][1]) for part in tensors), default=0), most)
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError):
        raise unreadable(folder.path / name, "it has no header of a safetensors file") from None


def one_line(text: str) -> str:
    """Return untrusted text as one line of at most 200 ASCII characters, for an error message."""
    return ascii(text)[1:-1][:200]
