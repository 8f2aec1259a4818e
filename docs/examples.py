"""The examples of README.md and docs/*.md, as tests.

Python blocks of the pages run, and so do console blocks of `icl-bench` commands. A command runs in this process, in an
empty folder. What it prints is compared with the block, `...` standing for anything. Commands that train run at a tiny
size, so of their tables all numbers are ignored. A Python block that begins with `# name.py` is a module that the
commands of its page can import.
"""

import contextlib
import doctest
import io
import re
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

from sybil import Document, Example, Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser
from sybil.typing import Evaluator

TINY = (
    "--set train.steps=6 --set train.batch=4 --set model.d_model=16 --set evaluation.examples=8 "
    "--set evaluation.validation=4 --set evaluation.points=2 --device cpu"
)
TRAINING = {"run": TINY, "compare": f"{TINY} --lr 1e-3..1e-2/2 --seeds 0 --state 4096"}
PREPARATION = "icl_bench.cli.prepare_process"
"""Opening of the standard streams and of signals, which belong to the process of the tests here."""
MODULE = re.compile(r"^```python\n# (\w+)\.py\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\$ ((?:.*\\\n)*.*)\n?((?:^(?!\$ ).*\n?)*)", re.MULTILINE)


def enter_empty_folder(namespace: dict[str, Any]) -> None:
    """Give a page a folder of its own, from which modules can be imported."""
    stack = contextlib.ExitStack()
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    stack.enter_context(contextlib.chdir(folder))
    sys.path.insert(0, folder)
    stack.callback(sys.path.remove, folder)
    namespace["stack"] = stack


def leave_folder(namespace: dict[str, Any]) -> None:
    """Undo `enter_empty_folder`."""
    namespace["stack"].close()


def in_order(evaluate: Evaluator) -> Evaluator:
    """Evaluate an example behind all before it on its page, also those that another process of the tests has."""

    def evaluate_behind_others(example: Example) -> str | None:
        seen = example.namespace.setdefault("seen", set())
        for former in example.document:
            if former.start < example.start and former.start not in seen:
                former.evaluate()
        seen.add(example.start)
        return evaluate(example)

    return evaluate_behind_others


def run_commands(example: Example) -> str | None:
    """Run the commands of a block and return the difference from the block, or None."""
    write_modules(example.document)
    for command, expected in COMMAND.findall(example.parsed):
        words = shlex.split(command.replace("\\\n", ""), comments=True)
        assert words[0] == "icl-bench", f"a console block runs icl-bench; got {command}"
        tiny = TRAINING.get(words[1])
        printed = run_command([*words, *shlex.split(tiny or "")])
        problem = compare(mask(expected), mask(printed)) if tiny else compare(expected, printed)
        if problem and expected:
            return f"{command}\n{problem}"
    return None


def write_modules(document: Document) -> None:
    """Write the modules that a page shows into its folder."""
    for name, source in MODULE.findall(document.text):
        Path(f"{name}.py").write_text(source)


def run_command(words: list[str]) -> str:
    """Return the standard output of a command that must succeed, with tables as wide as in a pipe."""
    from icl_bench.cli import main

    out, err, typed = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = words
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), mock.patch(PREPARATION):
            main()
    except SystemExit as exit_:
        assert exit_.code == 0, err.getvalue()
    finally:
        sys.argv = typed
    return out.getvalue()


def compare(expected: str, printed: str) -> str:
    """Return the difference between two outputs, empty if there is none; trailing spaces do not count."""
    wanted, got = (re.sub(r"[ \t]+$", "", text.rstrip() + "\n", flags=re.MULTILINE) for text in (expected, printed))
    if doctest.OutputChecker().check_output(wanted, got, doctest.ELLIPSIS):
        return ""
    return f"expected:\n{wanted}\nprinted:\n{got}"


def mask(text: str) -> str:
    """Return a text without its numbers and the widths of its columns."""
    return re.sub(r" +", " ", re.sub(r"\d[\d.,]*", "#", text))


pytest_collect_file = Sybil(
    path=str(Path(__file__).resolve().parents[1]),
    parsers=[
        CodeBlockParser(language="python", evaluator=in_order(PythonEvaluator())),
        CodeBlockParser(language="console", evaluator=in_order(run_commands)),
    ],
    patterns=["README.md", "docs/*.md"],
    setup=enter_empty_folder,
    teardown=leave_folder,
).pytest()
