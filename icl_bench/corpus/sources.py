"""Readers of sources: from folders, shards and tables to documents of tokens."""

import hashlib
import importlib.metadata
import importlib.util
import platform
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from icl_bench.corpus.arrays import read_parquet, read_zarr
from icl_bench.corpus.example import example_documents
from icl_bench.corpus.gpt_2 import encode_documents
from icl_bench.corpus.tokens import Tokens, one_line_errors
from icl_bench.errors import CorpusError

Reader = Literal["installed", "example", "text", "bin", "parquet", "zarr"]
Tokenizer = Literal["bytes", "gpt-2"]
BYTES = 256
"""Vocabulary of bytes."""
GPT_2_VOCABULARY, GPT_2_SEPARATOR = 50_257, 50_256
HEADER_NUMBERS = 256
"""Numbers of 4 bytes in the header of a shard of llm.c."""
SHARDS: Mapping[int, tuple[int, str, int, int]] = {
    20_240_520: (1, "<u2", GPT_2_VOCABULARY, GPT_2_SEPARATOR),
    20_240_801: (7, "<u4", 128_256, 128_000),
}
"""Version, type, vocabulary and first token of a document of the shards of llm.c, by their magic number."""
INSTALLED = ("torch", "sympy", "scipy", "numpy", "matplotlib", "networkx")
"""Packages whose Python sources are read beside those of the standard library."""
BUILT_IN: tuple[Reader, ...] = ("installed", "example")
"""Corpora that need no file."""


class TextSource(NamedTuple):
    """Documents of tokens and their vocabulary."""

    vocabulary: int
    tokenizer: str
    description: str
    documents: Iterator[Tokens]


class SourceOptions(NamedTuple):
    """Options of readers; None where the source decides."""

    vocabulary: int | None = None
    """Number of token ids of shards and arrays, 50,257 by default."""
    separator: int | None = None
    """Token with which each document of a shard begins, 50,256 by default."""
    column: str = "text"
    """Column of a parquet file that has the texts."""
    tokenizer: Tokenizer = "bytes"
    """Tokens of texts."""
    vocabulary_file: Path | None = None
    """File of the vocabulary of `gpt-2`; by default that of an installed package."""


BY_SOURCE = SourceOptions()


def read_source(name: str, reader: Reader | None = None, options: SourceOptions = BY_SOURCE) -> TextSource:
    """Open a source, by default with the reader that fits its name; raise CorpusError if none does."""
    chosen = reader or guess_reader(name)
    found = READERS[chosen](Path(name), options)
    if options.tokenizer == "bytes":
        return found
    if found.tokenizer != "bytes":
        raise CorpusError(f"--tokenizer is for texts; {name} has tokens of {found.tokenizer} already; leave it out")
    documents = encode_documents(found.documents, options.vocabulary_file)
    return TextSource(GPT_2_VOCABULARY, options.tokenizer, found.description, documents)


def guess_reader(name: str) -> Reader:
    """Return the reader of a source: that of its name, or of what lies at its path."""
    path = Path(name)
    if name in BUILT_IN:
        return BUILT_IN[BUILT_IN.index(name)]
    if not path.exists():
        raise CorpusError(
            f"a source is a file, a folder, {' or '.join(BUILT_IN)}; {name} is not there; give another source"
        )
    if (path / ".zarray").exists():
        return "zarr"
    by_suffix: Mapping[str, Reader] = {".bin": "bin", ".parquet": "parquet"}
    suffixes = {own.suffix for own in source_files(path)}
    return by_suffix.get(suffixes.pop(), "text") if len(suffixes) == 1 else "text"


def source_files(path: Path, pattern: str = "*") -> list[Path]:
    """Return a file, or the files below a folder whose names fit a pattern, by their relative paths."""
    if path.is_file():
        return [path]
    with one_line_errors(path):
        found = [own for own in path.rglob(pattern) if own.is_file() and "__pycache__" not in own.parts]
    if not found:
        raise CorpusError(f"a source has at least one file; {path} has none; give another source")
    return sorted(found, key=lambda own: own.relative_to(path).as_posix())


def read_bytes(path: Path) -> bytes:
    """Read a file; raise CorpusError if it cannot be read."""
    with one_line_errors(path):
        return path.read_bytes()


def read_installed(path: Path, options: SourceOptions) -> TextSource:
    """Read the Python sources of the standard library and of the packages that icl-bench needs."""

    def documents() -> Iterator[Tokens]:
        standard = Path(sysconfig.get_path("stdlib"))
        outside = {"site-packages", "dist-packages"}
        for file in source_files(standard, "*.py"):
            if not outside & set(file.relative_to(standard).parts):
                yield np.frombuffer(read_bytes(file), np.uint8)
        for name in INSTALLED:
            spec = importlib.util.find_spec(name)
            for folder in (spec.submodule_search_locations or []) if spec else []:
                for file in source_files(Path(folder), "*.py"):
                    yield np.frombuffer(read_bytes(file), np.uint8)

    return TextSource(BYTES, "bytes", f"Python sources of {installed_versions()}", documents())


def installed_versions() -> str:
    """Return the names and versions of what `installed` reads."""
    found = [name for name in INSTALLED if importlib.util.find_spec(name)]
    versions = [f"{name} {importlib.metadata.version(name)}" for name in found]
    return ", ".join([f"Python {platform.python_version()}", *versions])


def version_of(name: str) -> str:
    """Return a short text that changes with the content of a corpus that needs no file."""
    return hashlib.sha256(installed_versions().encode()).hexdigest()[:12] if name == "installed" else "1"


def read_example(path: Path, options: SourceOptions) -> TextSource:
    """Read the small made-up corpus, which is the same on every machine."""
    documents = (np.frombuffer(text, np.uint8) for text in example_documents())
    return TextSource(BYTES, "bytes", "made-up sentences, for tests and pictures", documents)


def read_text(path: Path, options: SourceOptions) -> TextSource:
    """Read a folder of texts, a document each, as bytes; refuse a file with a zero byte."""

    def documents() -> Iterator[Tokens]:
        for file in source_files(path):
            data = read_bytes(file)
            if b"\0" in data:
                raise CorpusError(f"a text has no zero byte; {file} has one; move it elsewhere, or choose a --reader")
            yield np.frombuffer(data, np.uint8)

    return TextSource(BYTES, "bytes", f"texts of {path.name}", documents())


def read_shards(path: Path, options: SourceOptions) -> TextSource:
    """Read shards of uint16 or uint32 tokens, with a header as llm.c writes it or, as nanoGPT, without.

    A document begins at each separator. Shards of one source must have one vocabulary.
    """
    files = source_files(path, "*.bin")
    layouts = [shard_layout(file) for file in files]
    if len(set(layouts)) > 1:
        other = files[next(i for i, own in enumerate(layouts) if own != layouts[0])]
        raise CorpusError(f"shards have one layout; {other} differs from {files[0]}; build one corpus of each")
    skipped, kind, vocabulary, separator = layouts[0]
    chosen = separator if options.separator is None else options.separator

    def documents() -> Iterator[Tokens]:
        for file in files:
            with one_line_errors(file):
                tokens = np.memmap(file, kind, "r", offset=skipped)
            starts = np.flatnonzero(tokens == chosen)
            for begin, end in zip([0, *starts], [*starts, tokens.size], strict=True):
                yield tokens[begin:end]

    name = "gpt-2" if vocabulary == GPT_2_VOCABULARY else "llama-3"
    return TextSource(options.vocabulary or vocabulary, name, f"shards of {path.name}", documents())


def shard_layout(file: Path) -> tuple[int, str, int, int]:
    """Return bytes before the tokens, type, vocabulary and separator of a shard; raise CorpusError if it is cut short.

    A raw shard cannot begin like a header: the lower half of the magic number, 55,432, is no token of GPT-2.
    """
    with one_line_errors(file), file.open("rb") as opened:
        head = np.frombuffer(opened.read(12), "<i4") if file.stat().st_size >= 12 else np.zeros(3, "<i4")
        size = file.stat().st_size
    if int(head[0]) not in SHARDS:
        if size % 2 or not size:
            raise CorpusError(f"a shard of uint16 has an even number of bytes; {file} has {size}; it may be cut short")
        return 0, "<u2", GPT_2_VOCABULARY, GPT_2_SEPARATOR
    version, kind, vocabulary, separator = SHARDS[int(head[0])]
    expected = 4 * HEADER_NUMBERS + int(head[2]) * np.dtype(kind).itemsize
    if int(head[1]) != version or size != expected:
        raise CorpusError(
            f"a shard has the version {version} and the size that its header tells; {file} has version {head[1]} and "
            f"{size:,} bytes of {expected:,}; it may be cut short: copy it again"
        )
    return 4 * HEADER_NUMBERS, kind, vocabulary, separator


def read_table(path: Path, options: SourceOptions) -> TextSource:
    """Read the texts of a column of parquet files, a document each, as bytes."""
    texts = (text for file in source_files(path, "*.parquet") for text in read_parquet(file, options.column))
    documents = (np.frombuffer(text.encode(), np.uint8) for text in texts)
    return TextSource(BYTES, "bytes", f"column {options.column} of {path.name}", documents)


def read_array(path: Path, options: SourceOptions) -> TextSource:
    """Read the rows of a zarr array of format 2, a document each; refuse an array with missing chunks."""
    return TextSource(options.vocabulary or GPT_2_VOCABULARY, "gpt-2", f"rows of {path.name}", read_zarr(path))


READERS: Mapping[Reader, Callable[[Path, SourceOptions], TextSource]] = {
    "installed": read_installed,
    "example": read_example,
    "text": read_text,
    "bin": read_shards,
    "parquet": read_table,
    "zarr": read_array,
}
"""Readers by name."""
