"""Documents from tables and arrays: parquet, and zarr of format 2, whose missing chunks are refused."""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from icl_bench.corpus.tokens import Tokens, one_line_errors
from icl_bench.errors import CorpusError

TEXTS_AT_ONCE = 256
"""Rows of a parquet file that are read at once."""
NAMED = 3
"""Missing chunks that a message names."""


def needed(package: str, extra: str) -> ModuleType:
    """Import a package of an extra; raise CorpusError if it is not installed."""
    try:
        return importlib.import_module(package)
    except ImportError:
        raise CorpusError(
            f"this source needs {package}, which is not installed; pip install 'icl-bench[{extra}]'"
        ) from None


def read_parquet(path: Path, column: str) -> Iterator[str]:
    """Yield the texts of a column; raise CorpusError for a file that has no such column or cannot be read."""
    pyarrow, parquet = needed("pyarrow", "parquet"), needed("pyarrow.parquet", "parquet")
    try:
        with parquet.ParquetFile(path) as table:
            if column not in table.schema_arrow.names:
                names = ", ".join(table.schema_arrow.names)
                raise CorpusError(f"a column of texts is named by --column; {path} has {names}; got {column!r}")
            for batch in table.iter_batches(TEXTS_AT_ONCE, columns=[column]):
                yield from (text for text in batch.column(0).to_pylist() if text)
    except (pyarrow.ArrowException, OSError) as error:
        raise CorpusError(f"a parquet file must be whole; {path}: {' '.join(str(error).split())[:200]}") from None


class ZarrLayout(NamedTuple):
    """The layout of a two-dimensional zarr array of format 2."""

    rows: int
    columns: int
    chunk_rows: int
    chunk_columns: int
    dtype: np.dtype[np.unsignedinteger]
    compressor: dict[str, Any] | None
    separator: str

    @property
    def grid(self) -> tuple[int, int]:
        """Number of chunks along rows and columns."""
        return -(-self.rows // self.chunk_rows), -(-self.columns // self.chunk_columns)

    def chunk(self, row: int, column: int) -> str:
        """Return the name of the file of a chunk."""
        return f"{row}{self.separator}{column}"


def read_zarr(path: Path) -> Iterator[Tokens]:
    """Yield the rows of an array; raise CorpusError before the first one if the file of a chunk is missing.

    Libraries read a missing chunk as fill, without a word: zeros, which are tokens. The files are listed instead.
    """
    layout = zarr_layout(path)
    names = [layout.chunk(i, j) for i in range(layout.grid[0]) for j in range(layout.grid[1])]
    missing = [name for name in names if not (path / name).is_file()]
    if missing:
        shown = ", ".join(missing[:NAMED])
        raise CorpusError(
            f"every chunk of an array must be there; {path} lacks {len(missing)} of {len(names)}: {shown}"
            f"{', ...' if len(missing) > NAMED else ''}; copy them, or an array with fewer rows"
        )
    return rows_of(path, layout)


def rows_of(path: Path, layout: ZarrLayout) -> Iterator[Tokens]:
    """Yield the rows of an array whose chunks are all there; rows beyond the shape are fill and left out."""
    for i in range(layout.grid[0]):
        chunks = [read_chunk(path / layout.chunk(i, j), layout) for j in range(layout.grid[1])]
        block = np.concatenate(chunks, axis=1)[:, : layout.columns]
        yield from block[: layout.rows - i * layout.chunk_rows]


def zarr_layout(path: Path) -> ZarrLayout:
    """Parse the file `.zarray`; raise CorpusError for an array of another kind."""
    with one_line_errors(path):
        text = (path / ".zarray").read_text()
    try:
        found = json.loads(text)
        (rows, columns), (chunk_rows, chunk_columns) = found["shape"], found["chunks"]
        kind, plain = np.dtype(found["dtype"]), found["order"] == "C" and not found.get("filters")
        known = plain and found["zarr_format"] == 2 and kind.kind == "u"
        sizes = rows, columns, chunk_rows, chunk_columns
        known = known and all(isinstance(size, int) and size > 0 for size in sizes)
        separator = found.get("dimension_separator", ".")
    except (ValueError, KeyError, TypeError):
        known = False
    if not known or separator not in (".", "/"):
        raise CorpusError(
            "an array has two axes, unsigned numbers in C order and zarr format 2; "
            f"{path / '.zarray'} differs; convert it"
        )
    return ZarrLayout(rows, columns, chunk_rows, chunk_columns, kind, found.get("compressor"), separator)


def read_chunk(path: Path, layout: ZarrLayout) -> np.ndarray[tuple[int, int], np.dtype[np.unsignedinteger]]:
    """Read one chunk, [chunk rows, chunk columns]; raise CorpusError if it is cut short or cannot be unpacked."""
    with one_line_errors(path):
        data = path.read_bytes()
    if layout.compressor is not None:
        codecs = needed("numcodecs", "zarr")
        try:
            data = codecs.get_codec(layout.compressor).decode(data)
        except (ValueError, RuntimeError) as error:
            raise CorpusError(f"a chunk must be whole; {path}: {error}; copy it again") from None
    size = layout.chunk_rows * layout.chunk_columns
    tokens = np.frombuffer(data, np.uint8)
    if tokens.size != size * layout.dtype.itemsize:
        raise CorpusError(
            f"a chunk has {size * layout.dtype.itemsize:,} bytes; {path} has {tokens.size:,}; copy it again"
        )
    return tokens.view(layout.dtype).reshape(layout.chunk_rows, layout.chunk_columns)
