"""Arrays and tables: a missing chunk is refused, rows beyond the shape are left out."""

import importlib.util
import json

import numpy as np
import pytest

from icl_bench.corpus.arrays import needed, read_parquet, read_zarr
from icl_bench.corpus.sources import guess_reader
from icl_bench.errors import CorpusError

ROWS, COLUMNS, CHUNK = 5, 7, 3
WANTED = np.arange(ROWS * COLUMNS, dtype="<u2").reshape(ROWS, COLUMNS) + 1


def make_array(path, **changes):
    """Write an array of 5 x 7 in chunks of 3 x 3, the last ones ragged."""
    path.mkdir()
    layout = {
        "zarr_format": 2, "shape": [ROWS, COLUMNS], "chunks": [CHUNK, CHUNK], "dtype": "<u2", "order": "C",
        "compressor": None, "filters": None, "fill_value": 0,
    }  # fmt: skip
    (path / ".zarray").write_text(json.dumps({**layout, **changes}))
    for i in range(2):
        for j in range(3):
            chunk = np.zeros((CHUNK, CHUNK), "<u2")
            part = WANTED[CHUNK * i : CHUNK * (i + 1), CHUNK * j : CHUNK * (j + 1)]
            chunk[: part.shape[0], : part.shape[1]] = part
            (path / f"{i}.{j}").write_bytes(chunk.tobytes())
    return path


def test_rows_are_documents(tmp_path):
    path = make_array(tmp_path / "own.zarr")
    assert guess_reader(str(path)) == "zarr"
    assert np.array_equal(np.array([*read_zarr(path)]), WANTED)


def test_a_missing_chunk_is_refused_before_the_first_row(tmp_path):
    path = make_array(tmp_path / "own.zarr")
    (path / "1.2").unlink()
    with pytest.raises(CorpusError, match=r"every chunk of an array must be there; .* lacks 1 of 6: 1\.2; copy them"):
        read_zarr(path)


def test_a_chunk_cut_short_is_refused(tmp_path):
    path = make_array(tmp_path / "own.zarr")
    (path / "0.1").write_bytes(b"12345")
    with pytest.raises(CorpusError, match=r"a chunk has 18 bytes; .*0\.1 has 5; copy it again"):
        [*read_zarr(path)]


@pytest.mark.parametrize(
    "change",
    [{"zarr_format": 3}, {"order": "F"}, {"dtype": "<f4"}, {"shape": [5]}, {"chunks": [0, 3]}, {"filters": [{}]}],
)
def test_an_array_of_another_kind_is_refused(tmp_path, change):
    with pytest.raises(CorpusError, match="an array has two axes, unsigned numbers in C order and zarr format 2; "):
        read_zarr(make_array(tmp_path / "own.zarr", **change))


def test_a_package_that_is_not_installed_is_named():
    with pytest.raises(CorpusError, match=r"needs nowhere, which is not installed; pip install 'icl-bench\[zarr\]'"):
        needed("nowhere", "zarr")


@pytest.mark.skipif(importlib.util.find_spec("numcodecs") is None, reason="numcodecs is not installed")
def test_compressed_chunks_are_unpacked(tmp_path):
    import numcodecs

    codec = numcodecs.Blosc("lz4", 5, 1)
    path = make_array(tmp_path / "own.zarr", compressor=codec.get_config())
    for chunk in path.glob("?.?"):
        chunk.write_bytes(codec.encode(chunk.read_bytes()))
    assert np.array_equal(np.array([*read_zarr(path)]), WANTED)
    (path / "0.0").write_bytes(b"no blosc")
    with pytest.raises(CorpusError, match="a chunk must be whole; "):
        [*read_zarr(path)]


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="pyarrow is not installed")
def test_a_column_of_texts_is_read(tmp_path):
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "own.parquet"
    parquet.write_table(pyarrow.table({"text": ["one", None, "two"], "n": [1, 2, 3]}), path)
    assert [*read_parquet(path, "text")] == ["one", "two"]
    with pytest.raises(CorpusError, match=r"named by --column; .* has text, n; got 'words'"):
        [*read_parquet(path, "words")]
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CorpusError, match="a parquet file must be whole"):
        [*read_parquet(path, "text")]
