"""Known corpora: by name, path and id; one line where an id leads nowhere or to other content."""

import json

import numpy as np
import pytest

from icl_bench.corpus import library
from icl_bench.corpus.library import corpora_folder, find_corpus
from icl_bench.corpus.tokens import write_corpus
from icl_bench.errors import CorpusError
from tests.corpus.test_arrays import make_array


@pytest.fixture(autouse=True)
def own_folder(monkeypatch, tmp_path):
    monkeypatch.setenv(library.FOLDER_VARIABLE, str(tmp_path / "corpora"))
    monkeypatch.setattr(library, "OPENED", {})


def write(path, text=b"a document"):
    return write_corpus(path, [np.frombuffer(text, np.uint8)], 256, "bytes", "a test")


def test_a_path_is_known_by_its_id_from_then_on(tmp_path):
    write(tmp_path / "own.tokens")
    corpus_id = find_corpus(str(tmp_path / "own.tokens")).id
    library.OPENED.clear()  # as in another process
    assert find_corpus(corpus_id).tokens.tobytes() == b"a document"


def test_an_id_that_nobody_knows():
    with pytest.raises(CorpusError, match=r"known by its id; sha-0{32} is not in .*; show its token file once"):
        find_corpus("sha-" + 32 * "0")


def test_a_file_that_has_other_content_by_now(tmp_path):
    write(tmp_path / "own.tokens")
    corpus_id = find_corpus(str(tmp_path / "own.tokens")).id
    library.OPENED.clear()
    write(tmp_path / "own.tokens", b"another document")
    with pytest.raises(CorpusError, match=rf"must have the hash .* and was {corpus_id}; build the former one again"):
        find_corpus(corpus_id)


def test_the_example_is_equal_everywhere():
    assert find_corpus("example").id == "sha-b9c447a52ca14b55182eb0505aaff1b0"
    assert len([*corpora_folder().glob("example-*.tokens")]) == 1


def test_the_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv(library.FOLDER_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert corpora_folder() == tmp_path / "icl-bench" / "corpora"


def test_the_commands_build_and_show(command, tmp_path):
    (tmp_path / "texts").mkdir()
    for i in range(50):
        (tmp_path / "texts" / f"{i}.txt").write_text(f"document {i} " * 200)
    built = json.loads(command("corpus", "build", "texts", "-o", "own.tokens", "--json").out)["corpus"]
    assert built["documents"] == 50 and built["vocabulary"] == 256 and built["source"] == "texts of texts"
    assert built["lengths"][1] == {"from": 1024, "documents": 50, "tokens": built["tokens"]}
    assert sum(row["tokens"] for row in built["splits"]) == built["tokens"]
    shown = command("corpus", "show", built["id"])
    assert shown.status == 0 and built["id"] in shown.out and "train" in shown.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("build", "nowhere", "-o", "x"), "a source is a file, a folder, installed or example"),
        (("build", "example", "-o", "x", "--reader", "txt"), "no reader is named 'txt'; did you mean 'text'?"),
        (("show", "nowhere"), "No such file or directory"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(command, arguments, message):
    ended = command("corpus", *arguments)
    assert ended.status == 2 and message in ended.err and len(ended.err.strip().splitlines()) == 1


def test_bad_input_ends_commands_in_one_line(command, tmp_path):
    """The five cases of a corpus that cannot be trained on: exit status 2, and a line that names what is wrong."""
    (make_array(tmp_path / "own.zarr") / "1.2").unlink()
    write(tmp_path / "own.tokens", b"a document " * 100)
    known = find_corpus(str(tmp_path / "own.tokens")).id
    (tmp_path / "cut.tokens").write_bytes((tmp_path / "own.tokens").read_bytes()[:-5])
    cases = {
        "lacks 1 of 6: 1.2": ("corpus", "build", "own.zarr", "-o", "x"),
        "has 256 token ids": ("run", 'text:corpus="own.tokens",vocab=50257', "-a", "softmax"),
        "rows need 4,096": ("run", 'text:corpus="own.tokens",length=4096,extrapolate=[]', "-a", "softmax"),
        "is cut short": ("corpus", "show", "cut.tokens"),
        f"and was {known}": ("corpus", "show", known),
    }
    for message, arguments in cases.items():
        if message.startswith("and was"):  # the file has other content by now
            library.OPENED.clear()
            write(tmp_path / "own.tokens", b"another document")
        ended = command(*arguments)
        assert (ended.status, ended.out) == (2, "") and message in ended.err, (arguments, ended)
        assert len(ended.err.strip().splitlines()) == 1
