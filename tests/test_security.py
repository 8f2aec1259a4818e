"""Every promise of the page on security names tests that exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "security.md").read_text()
ROWS = [row for row in re.findall(r"^\| (.*) \|$", PAGE, re.MULTILINE) if "tests/" in row]
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)))


@pytest.mark.parametrize(("path", "name"), NAMED, ids=[name for _, name in NAMED])
def test_a_promise_names_a_test_that_exists(path: str, name: str) -> None:
    tree = ast.parse((ROOT / path).read_text())
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_row_of_promises_names_a_test() -> None:
    sections = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    promises = [line for text in sections if "| promise | test |" in text for line in text.splitlines()]
    rows = [line for line in promises if line.startswith("| ") and not line.startswith(("| promise", "| :--"))]
    assert len(rows) == len(ROWS) > 20
    assert all(re.search(r"\| `tests/.*` \|$", line) for line in rows)


def test_the_page_and_the_way_to_report_name_each_other() -> None:
    assert "](../SECURITY.md)" in PAGE and "](docs/security.md)" in (ROOT / "SECURITY.md").read_text()
