"""The corpora that are known on this machine: by name, by path, and by the id that specifications of runs hold.

A folder has one small file for each corpus, `<id>.path`, with the path of its token file; processes find a corpus by
it. The folder is ICL_BENCH_CORPORA, by default `icl-bench/corpora` in the cache folder of the user.
"""

import os
import re
from pathlib import Path

from icl_bench.corpus import sources
from icl_bench.corpus.tokens import ID, ID_DIGITS, Corpus, one_line_errors, read_corpus, write_corpus
from icl_bench.errors import CorpusError
from icl_bench.runs.store.files import replace_file

FOLDER_VARIABLE = "ICL_BENCH_CORPORA"
"""Environment variable that names the folder of known corpora."""
CORPUS_ID = re.compile(rf"{ID}[0-9a-f]{{{ID_DIGITS}}}")
OPENED: dict[str, Corpus] = {}
"""Corpora that this process has opened and checked, by id; those that are built here also by path."""


def corpora_folder() -> Path:
    """Return the folder of known corpora, which may not exist yet."""
    chosen = os.environ.get(FOLDER_VARIABLE)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return Path(chosen) if chosen else cache / "icl-bench" / "corpora"


def find_corpus(name: str) -> Corpus:
    """Return the corpus of an id, of a path, or of the names `installed` and `example`, which are built if needed.

    A corpus that was opened by its path is known by its id from then on. Raise CorpusError if there is none.
    """
    if CORPUS_ID.fullmatch(name):
        return OPENED.get(name) or open_known(name)
    if name in sources.BUILT_IN:
        path = corpora_folder() / f"{name}-{sources.version_of(name)}.tokens"
        if str(path) in OPENED:
            return OPENED[str(path)]
        if not path.exists():
            source = sources.read_source(name)
            with one_line_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            write_corpus(path, source.documents, source.vocabulary, source.tokenizer, source.description)
        OPENED[str(path)] = remember(path)
        return OPENED[str(path)]
    return remember(Path(name).absolute())


def remember(path: Path) -> Corpus:
    """Open a token file and note where it is."""
    corpus = read_corpus(path)
    note = corpora_folder() / f"{corpus.id}.path"
    with one_line_errors(note):
        note.parent.mkdir(parents=True, exist_ok=True)
        replace_file(note, f"{path}\n".encode())
    OPENED[corpus.id] = corpus
    return corpus


def open_known(corpus_id: str) -> Corpus:
    """Open the corpus of an id; raise CorpusError if none is known, or if its file has other content by now."""
    note = corpora_folder() / f"{corpus_id}.path"
    if not note.is_file():
        raise CorpusError(
            f"a corpus must be known by its id; {corpus_id} is not in {note.parent}; show its token file once with "
            "`icl-bench corpus show FILE`"
        )
    with one_line_errors(note):
        path = Path(note.read_text().rstrip("\n"))
    corpus = read_corpus(path)
    if corpus.id != corpus_id:
        raise CorpusError(
            f"a corpus must have the hash by which a run names it; {path} is {corpus.id} by now and was {corpus_id}; "
            "build the former one again"
        )
    OPENED[corpus_id] = corpus
    return corpus
