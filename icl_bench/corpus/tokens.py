"""Token files: documents as one flat array of tokens, in a file that is read strictly.

    magic, zeros up to 64 bytes | tokens, zeros up to a multiple of 8 | offsets int64 [D + 1] | digests uint64 [D]
    | header, JSON | length of the header, uint64 | magic

All numbers are little-endian. The end of the file describes its beginning, so that a file is written in one pass, and
a file that was cut short has no end.
"""

import hashlib
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Literal

import numpy as np
from pydantic import Field, ValidationError

from icl_bench.errors import CorpusError
from icl_bench.runs.store.files import replacing
from icl_bench.schema import Count, Frozen, canonical_json

Split = Literal["train", "val", "test"]
"""Part of the data: models train on `train`, choices are made on `val`, and `test` is used once."""
Tokens = np.ndarray[tuple[int], np.dtype[np.unsignedinteger]]

MAGIC = b"ICLTOK1\n"
START = 64
"""Place of the first token in a file, in bytes."""
TAIL = 8 + len(MAGIC)
LARGEST_TEXT = 1 << 16
"""Largest size of the header of a token file, in bytes."""
DOMAIN = b"icl-bench/corpus/v1\0"
"""Prefix of the hashed content, which separates hashes of corpora from other hashes."""
ID = "sha-"
ID_DIGITS = 32
HELD_OUT_SHARE = 20
"""One document in so many is held out for `test`, and one for `val`."""
LARGEST_VOCABULARY = 1 << 31


class CorpusHeader(Frozen):
    """The description of a corpus at the end of its file."""

    vocabulary: int = Field(ge=2, le=LARGEST_VOCABULARY)
    """Number of token ids."""
    tokenizer: str = Field(max_length=200)
    """Name of the tokenizer; `bytes` for none."""
    tokens: Count
    """Number of tokens."""
    documents: Count
    """Number of documents, D."""
    source: str = Field(max_length=2000)
    """Origin of the documents, in words; no part of the identity."""
    digest: str = Field(pattern="[0-9a-f]{64}")
    """SHA-256 of tokens, offsets, digests of documents, vocabulary and tokenizer."""


@dataclass(frozen=True, eq=False)
class Corpus:
    """Documents as one array of tokens."""

    header: CorpusHeader
    tokens: Tokens
    """Tokens of all documents, one after the other."""
    offsets: np.ndarray[tuple[int], np.dtype[np.int64]]
    """Place of the first token of each document, and the number of all tokens, [D + 1]."""
    digests: np.ndarray[tuple[int], np.dtype[np.uint64]]
    """Hash of the tokens of each document, [D]."""

    @property
    def id(self) -> str:
        """Identity of the content: `sha-` and the first 32 digits of its hash."""
        return id_of(self.header.digest)

    @cached_property
    def lengths(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Number of tokens of each document, [D]."""
        return np.diff(self.offsets)

    def in_split(self, split: Split) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Return the mask of the documents of a split, [D]; it depends on the content of each document alone."""
        place = self.digests % np.uint64(HELD_OUT_SHARE)
        return place > 1 if split == "train" else place == ("test", "val").index(split)


def id_of(digest: str) -> str:
    """Return the id of a corpus from its hash."""
    return ID + digest[:ID_DIGITS]


def token_type(vocabulary: int) -> np.dtype[np.unsignedinteger]:
    """Return the smallest unsigned type that holds the ids of a vocabulary, little-endian."""
    return np.dtype("u1" if vocabulary <= 1 << 8 else "<u2" if vocabulary <= 1 << 16 else "<u4")


class TokenWriter:
    """Write documents to a file, one after the other; `finish` writes the description.

    Args:
        file: An empty file, open for writing.
        vocabulary: Number of token ids.
        tokenizer: Name of the tokenizer.
    """

    def __init__(self, file: IO[bytes], vocabulary: int, tokenizer: str) -> None:
        self.file, self.vocabulary, self.tokenizer = file, vocabulary, tokenizer
        self.hash = hashlib.sha256(DOMAIN)
        self.offsets, self.digests = [0], list[int]()
        file.write(MAGIC.ljust(START, b"\0"))

    def add(self, document: Tokens) -> None:
        """Write a document; raise CorpusError for ids outside the vocabulary. An empty document is left out."""
        if not document.size:
            return
        if int(document.max()) >= self.vocabulary:
            raise CorpusError(
                f"token ids must lie in 0..{self.vocabulary - 1}; document {len(self.digests)} has "
                f"{int(document.max())}; these are tokens of another vocabulary: give --vocabulary"
            )
        data = document.astype(token_type(self.vocabulary)).tobytes()
        self.file.write(data)
        self.hash.update(data)
        self.offsets.append(self.offsets[-1] + document.size)
        self.digests.append(int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little"))

    def finish(self, source: str) -> CorpusHeader:
        """Write the description; raise CorpusError if there is no document."""
        if not self.digests:
            raise CorpusError(f"a corpus has at least one document; {source} has none; choose another source")
        tables = np.array(self.offsets, "<i8").tobytes(), np.array(self.digests, "<u8").tobytes()
        header = CorpusHeader(
            vocabulary=self.vocabulary,
            tokenizer=self.tokenizer,
            tokens=self.offsets[-1],
            documents=len(self.digests),
            source=source[:2000],
            digest=content_digest(self.hash, tables, self.vocabulary, self.tokenizer),
        )
        text = canonical_json(header.model_dump()).encode()
        written = self.offsets[-1] * token_type(self.vocabulary).itemsize
        for part in (bytes(-written % 8), *tables, text, struct.pack("<Q", len(text)), MAGIC):
            self.file.write(part)
        return header


def content_digest(tokens: "hashlib._Hash", tables: Iterable[bytes], vocabulary: int, tokenizer: str) -> str:
    """Return the hash of a corpus from the hash of its tokens, its offsets and digests, and its vocabulary."""
    whole = tokens.copy()
    for part in (*tables, canonical_json([vocabulary, tokenizer]).encode()):
        whole.update(part)
    return whole.hexdigest()


def write_corpus(path: Path, documents: Iterable[Tokens], vocabulary: int, tokenizer: str, source: str) -> CorpusHeader:
    """Write a token file, whole or not at all; raise CorpusError if it cannot be written."""
    with one_line_errors(path), replacing(path) as file:
        writer = TokenWriter(file, vocabulary, tokenizer)
        for document in documents:
            writer.add(document)
        return writer.finish(source)


@contextmanager
def one_line_errors(path: Path) -> Iterator[None]:
    """Turn an error of the operating system into a CorpusError."""
    try:
        yield
    except OSError as error:
        raise CorpusError(
            f"a corpus needs files that can be read and a folder that can be written; {error.filename or path}: "
            f"{error.strerror or error}; choose another file, or set ICL_BENCH_CORPORA to another folder"
        ) from None


def read_corpus(path: Path) -> Corpus:
    """Open a token file and check all of it; raise CorpusError, of one line, for a file that is not whole."""
    with one_line_errors(path):
        size = path.stat().st_size
        data = np.memmap(path, np.uint8, "r") if size >= START + TAIL else np.zeros(0, np.uint8)
    if data[: len(MAGIC)].tobytes() != MAGIC:
        raise broken(path, "it is no token file", "make one with `icl-bench corpus build`")
    if data[-len(MAGIC) :].tobytes() != MAGIC:
        raise broken(path, "it is cut short")
    header = read_header(path, data)
    kind = token_type(header.vocabulary)
    end = START + header.tokens * kind.itemsize
    tables = end + -header.tokens * kind.itemsize % 8
    digests = tables + 8 * (header.documents + 1)
    if digests + 8 * header.documents != header_place(data):
        raise broken(path, f"its header describes {header.tokens:,} tokens, which are not there")
    corpus = Corpus(
        header=header,
        tokens=data[START:end].view(kind),
        offsets=data[tables:digests].view("<i8"),
        digests=data[digests : digests + 8 * header.documents].view("<u8"),
    )
    check_content(path, corpus)
    return corpus


def header_place(data: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> int:
    """Return the place of the header in the bytes of a file; negative where its length is impossible."""
    (length,) = struct.unpack("<Q", data[-TAIL : -len(MAGIC)].tobytes())
    return data.size - TAIL - int(length)


def read_header(path: Path, data: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> CorpusHeader:
    """Parse the header."""
    place = header_place(data)
    if not max(START, data.size - TAIL - LARGEST_TEXT) <= place:
        raise broken(path, "its header has an impossible length")
    try:
        return CorpusHeader.model_validate_json(data[place:-TAIL].tobytes())
    except ValidationError as error:
        raise broken(path, f"its header is wrong: {error.errors(include_url=False)[0]['msg'].lower()}") from None


def check_content(path: Path, corpus: Corpus) -> None:
    """Check hash, offsets and range of the ids of a corpus."""
    header = corpus.header
    tables = corpus.offsets.tobytes(), corpus.digests.tobytes()
    hashed = hashlib.sha256(DOMAIN)
    hashed.update(np.ascontiguousarray(corpus.tokens).view(np.uint8).data)
    found = content_digest(hashed, tables, header.vocabulary, header.tokenizer)
    if found != header.digest:
        raise broken(path, f"its content has the hash {found[:12]}, its header says {header.digest[:12]}")
    whole = corpus.offsets[0] == 0 and corpus.offsets[-1] == header.tokens and bool((corpus.lengths > 0).all())
    if not whole or int(corpus.tokens.max()) >= header.vocabulary:
        raise broken(path, "its offsets or its token ids are out of order")


def broken(path: Path, reason: str, way_out: str = "build it again with `icl-bench corpus build`") -> CorpusError:
    """Return the error of a file that cannot be used."""
    return CorpusError(f"a token file must be whole; {path}: {reason}; {way_out}")
