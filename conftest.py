"""Settings that must hold before anything is imported, and the examples of the pages.

Without a GPU, Triton's kernels run in its interpreter. The corpus `installed` is the small made-up one in tests, which
is the same on every machine. A machine with a GPU may hold torch and pytest alone: there, without Sybil, the pages are
not tested.
"""

import atexit
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from icl_bench.corpus import library, sources
from icl_bench.corpus.tokens import write_corpus

FOLDER = Path(tempfile.mkdtemp(prefix="icl-bench-corpora-"))
os.environ[library.FOLDER_VARIABLE] = str(FOLDER)
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)
made_up = sources.read_source("example")
write_corpus(
    FOLDER / f"installed-{sources.version_of('installed')}.tokens",
    made_up.documents,
    made_up.vocabulary,
    made_up.tokenizer,
    made_up.description,
)

if importlib.util.find_spec("sybil") is not None:
    from docs.examples import pytest_collect_file as pytest_collect_file
