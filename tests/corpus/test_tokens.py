"""Token files: what is written is read, and a file with any fault is refused in one line."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icl_bench.corpus.tokens import id_of, read_corpus, token_type, write_corpus
from icl_bench.errors import CorpusError

DOCUMENTS = [np.frombuffer(f"document {i} ".encode() * (i + 1), np.uint8) for i in range(30)]


def write(path, documents=DOCUMENTS, vocabulary=256):
    return write_corpus(path, documents, vocabulary, "bytes", "a test")


@given(
    st.lists(st.lists(st.integers(0, 70_000), max_size=9), min_size=1, max_size=5),
    st.sampled_from([256, 300, 70_001]),
)
def test_documents_are_read_as_they_were_written(tmp_path_factory, documents, vocabulary):
    path = tmp_path_factory.mktemp("corpus") / "own.tokens"
    arrays = [np.array([token % vocabulary for token in own], np.int64) for own in documents]
    kept = [own for own in arrays if own.size]
    if not kept:
        with pytest.raises(CorpusError, match="a corpus has at least one document; a test has none"):
            write(path, arrays, vocabulary)
        return
    header, corpus = write(path, arrays, vocabulary), read_corpus(path)
    assert corpus.header == header and corpus.tokens.dtype == token_type(vocabulary)
    ends = zip(corpus.offsets[:-1], corpus.offsets[1:], strict=True)
    assert [corpus.tokens[a:b].tolist() for a, b in ends] == [own.tolist() for own in kept]


def test_the_id_is_of_the_content_alone(tmp_path):
    one = write(tmp_path / "one")
    other = write_corpus(tmp_path / "other", DOCUMENTS, 256, "bytes", "another source")
    assert one.digest == other.digest and read_corpus(tmp_path / "one").id == id_of(one.digest)
    moved = [DOCUMENTS[0][:3], DOCUMENTS[0][3:], *DOCUMENTS[1:]]  # the same tokens, cut in another place
    assert write(tmp_path / "cut", moved).digest != one.digest
    assert write_corpus(tmp_path / "named", DOCUMENTS, 256, "other", "").digest != one.digest


def test_the_split_of_a_document_is_its_own(tmp_path):
    write(tmp_path / "all")
    write(tmp_path / "turned", [*DOCUMENTS[::-1], DOCUMENTS[3]])
    both = [read_corpus(tmp_path / name) for name in ("all", "turned")]
    for split in ("train", "val", "test"):
        one, turned = (corpus.in_split(split) for corpus in both)
        assert (one[::-1] == turned[:-1]).all() and turned[-1] == one[3]
    assert sum(both[0].in_split(split).astype(int) for split in ("train", "val", "test")).tolist() == [1] * 30
    digest = int.from_bytes(hashlib.blake2b(DOCUMENTS[0].tobytes(), digest_size=8).digest(), "little")
    assert both[0].in_split("test")[0] == (digest % 20 == 0) and both[0].in_split("val")[0] == (digest % 20 == 1)


@given(st.data())
def test_a_file_with_any_other_byte_is_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("corpus") / "own.tokens"
    write(path)
    good, whole = read_corpus(path), bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(whole)
    try:
        changed = read_corpus(path)
    except CorpusError as error:
        assert "\n" not in str(error) and str(path) in str(error)
    else:  # the zeros between parts, and the origin in words, are no content
        assert changed.id == good.id and (changed.tokens == good.tokens).all()


@given(st.data())
def test_a_file_cut_short_is_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("corpus") / "own.tokens"
    write(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(CorpusError, match=r"a token file must be whole; .* (is no token file|is cut short); "):
        read_corpus(path)


def test_tokens_of_another_vocabulary_are_refused(tmp_path):
    with pytest.raises(CorpusError, match=r"token ids must lie in 0\.\.255; document 1 has 300; .* --vocabulary"):
        write(tmp_path / "own", [DOCUMENTS[0], np.array([5, 300])])
    assert not (tmp_path / "own").exists()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(CorpusError, match="No such file or directory; choose another file"):
        write(tmp_path / "none" / "own")
