"""Readers: documents as they lie in folders and shards, and one line for what cannot be read."""

import numpy as np
import pytest

from icl_bench.corpus import sources
from icl_bench.corpus.sources import SourceOptions, guess_reader, read_source
from icl_bench.errors import CorpusError


def shard(path, tokens, magic=20_240_520, version=1, count=None, kind="<u2"):
    head = np.zeros(256, "<i4")
    head[:3] = magic, version, len(tokens) if count is None else count
    path.write_bytes(head.tobytes() + np.array(tokens, kind).tobytes())


def documents(name, options=sources.BY_SOURCE, reader=None):
    return [own.tolist() for own in read_source(str(name), reader, options).documents]


def test_a_folder_of_texts_has_a_document_for_each_file(tmp_path):
    (tmp_path / "b").mkdir()
    for name, text in (("b/one.txt", "zwei"), ("a.md", "eins"), ("c", "drei")):
        (tmp_path / name).write_text(text)
    assert [bytes(own).decode() for own in documents(tmp_path)] == ["eins", "zwei", "drei"]
    (tmp_path / "d").write_bytes(b"a\0b")
    with pytest.raises(CorpusError, match=r"a text has no zero byte; .*/d has one"):
        documents(tmp_path)


@pytest.mark.parametrize(
    ("magic", "version", "kind", "separator"), [(20_240_520, 1, "<u2", 50_256), (20_240_801, 7, "<u4", 128_000)]
)
def test_shards_with_a_header_are_cut_at_their_separators(tmp_path, magic, version, kind, separator):
    shard(tmp_path / "x_000001.bin", [separator, 5, 6, separator, 7], magic, version, kind=kind)
    shard(tmp_path / "x_000002.bin", [8, separator, 9], magic, version, kind=kind)
    assert guess_reader(str(tmp_path)) == "bin"
    found = [own for own in documents(tmp_path) if own]
    assert found == [[separator, 5, 6], [separator, 7], [8], [separator, 9]]
    assert read_source(str(tmp_path)).vocabulary == separator + (1 if separator == 50_256 else 256)


def test_raw_shards_have_no_header(tmp_path):
    np.array([4, 50_256, 3, 2], "<u2").tofile(tmp_path / "train.bin")
    assert documents(tmp_path / "train.bin") == [[4], [50_256, 3, 2]]
    assert documents(tmp_path / "train.bin", SourceOptions(separator=3)) == [[4, 50_256], [3, 2]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: shard(path, [1, 2, 3], count=4), "version 1 and 1,030 bytes of 1,032; it may be cut short"),
        (lambda path: shard(path, [1], version=2), "a shard has the version 1 .* has version 2"),
        (lambda path: path.write_bytes(b"abc"), "an even number of bytes; .* has 3; it may be cut short"),
    ],
)
def test_a_shard_cut_short_or_of_another_version_is_refused(tmp_path, change, message):
    change(tmp_path / "x.bin")
    with pytest.raises(CorpusError, match=message):
        documents(tmp_path / "x.bin")


def test_shards_of_two_layouts_are_refused(tmp_path):
    shard(tmp_path / "a.bin", [1])
    np.array([1, 2], "<u2").tofile(tmp_path / "b.bin")
    with pytest.raises(CorpusError, match=r"shards have one layout; .*b\.bin differs"):
        documents(tmp_path)


def test_a_source_that_is_not_there(tmp_path):
    with pytest.raises(CorpusError, match="a source is a file, a folder, installed or example; nowhere is not there"):
        read_source("nowhere")
    with pytest.raises(CorpusError, match="a source has at least one file"):
        documents(tmp_path)


def test_installed_reads_the_sources_of_this_python():
    found = read_source("installed")
    first = bytes(next(found.documents))
    assert found.vocabulary == 256 and b"\n" in first and "Python 3." in found.description
