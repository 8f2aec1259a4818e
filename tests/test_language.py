"""Docstrings say what a thing is or does, in plain words; each public name belongs to one thing."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "icl_bench"
SOURCES = sorted(PACKAGE.rglob("*.py"))
FACE = PACKAGE / "api" / "functions.py"
"""The functions of the Python face have the names of the commands."""
QUESTION = re.compile(r"(What|How|Where|Whether|Who|Whom|Whose|Which|When|Why)\b")
FIRST_WORDS = re.compile(r"[^\n]{0,60}")


def docstrings(tree: ast.AST) -> Iterator[str]:
    """Iterate over the docstrings of modules, classes, functions, and of attributes, which stand below them."""
    for node in ast.walk(tree):
        for inner in getattr(node, "body", []) if isinstance(getattr(node, "body", []), list) else []:
            if isinstance(inner, ast.Expr) and isinstance(inner.value, ast.Constant) and type(inner.value.value) is str:
                yield inner.value.value


def test_no_docstring_begins_with_a_question() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}: {FIRST_WORDS.match(text.strip())[0]}"
        for path in SOURCES
        for text in docstrings(ast.parse(path.read_text()))
        if QUESTION.match(text.strip())
    ]
    assert found == []


def test_a_public_name_is_defined_in_one_module() -> None:
    modules = defaultdict(set)
    for path in (path for path in SOURCES if path != FACE):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                modules[node.name].add(path.relative_to(PACKAGE).as_posix())
    assert {name: sorted(found) for name, found in modules.items() if len(found) > 1} == {}
