"""Hostile text in each medium is read back, by a parser of that medium, as text and nothing else."""

import csv
import html.parser
import io
import re
import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from icl_bench import escapes

ALPHABET = st.sampled_from([*"\\`*_[]()#|<>&~$!@:=+-.'\"/ \t1ax", *"\n\r\x1b\x9b\u202e\u200b\u2028"])
TEXTS = st.lists(ALPHABET | st.characters(), max_size=30).map("".join)
HOSTILE = [
    "<script>alert(1)</script>", "![x](http://e/x.png)", "[a](javascript:x)", "# heading", "a\n# heading", "a\n\n---",
    "- x", "1. x", "| a | b |\n|--|--|", "a | b", "www.example.org", "x@example.org", "http://e", "`", "``a", "a`b",
    "&amp;", "\\", "<!--", "***", "- - -", "+ x", "12) x", "a\\|b", "[x]: http://e", "<http://e>", "~~x~~", "$x$",
    ":smile:", "* x", "    code", "\t", "", "`|@", "a\\|b@c",
]  # fmt: skip
LONG = ["`" * 60_000, ":a" * 30_000, "\x00a" * 30_000, "a@ " * 20_000, "<" * 60_000, "- " * 30_000]
GITHUB_CELL = re.compile(r"(?:\\[!-/:-@\[-`{-~]|[^|])+")
"""A cell of a row as cmark-gfm, the parser of GitHub, finds it."""
PARSER = MarkdownIt("gfm-like", {"linkify": False})


def shown(token) -> str:
    """Return the text that an inline token shows; check that nothing but text and code is in it."""
    assert {child.type for child in token.children} <= {"text", "code_inline", "text_special"}, token.content
    return "".join(child.content for child in token.children)


def squeezed(text: str) -> str:
    """Return text with each run of white space as one space, as Markdown and HTML show it."""
    return " ".join(text.split())


def assert_is_a_paragraph(text: str) -> None:
    tokens = PARSER.parse(escapes.markdown_text(text))
    if not escapes.plain(text):
        assert tokens == []
        return
    assert [token.type for token in tokens] == ["paragraph_open", "inline", "paragraph_close"], text
    assert squeezed(shown(tokens[1])) == squeezed(escapes.plain(text))


def assert_is_a_cell(written: str, text: str) -> None:
    tokens = PARSER.parse(f"| a | b |\n| :-- | --: |\n| {written} | end |\n")
    cells = [token for token in tokens if token.type == "inline"]
    assert [cell.content for cell in cells[:2]] == ["a", "b"] and len(cells) == 4, text
    assert squeezed(shown(cells[2])).replace("\\ |", "\\|") == squeezed(escapes.plain(text)).replace("\\ |", "\\|")
    assert shown(cells[3]) == "end" and len(GITHUB_CELL.findall(f" {written} | end ")) == 2
    assert tokens[-1].type == "table_close"


@given(TEXTS)
def test_plain_text_is_one_visible_line(text: str) -> None:
    one = escapes.plain(text)
    assert not [c for c in one if unicodedata.category(c) in escapes.INVISIBLE]
    assert escapes.plain(one) == one == one.strip()


def test_ordinary_text_stays_as_it_is() -> None:
    for text in ("power:p=2,gate=true", "Zürich 北京 a, b", "e\u0301", "x y"):
        assert escapes.visible_text(text) == escapes.csv_text(text) == text == escapes.html_text(text)


@given(TEXTS)
def test_markdown_shows_text_as_a_paragraph(text: str) -> None:
    assert_is_a_paragraph(text)


@given(TEXTS)
def test_markdown_shows_text_as_a_cell(text: str) -> None:
    assert_is_a_cell(escapes.markdown_text(text, in_table=True), text)
    assert_is_a_cell(escapes.markdown_code(text, in_table=True), text)


@pytest.mark.parametrize("text", HOSTILE)
def test_markup_is_text(text: str) -> None:
    assert_is_a_paragraph(text)
    assert_is_a_cell(escapes.markdown_text(text, in_table=True), text)


@pytest.mark.parametrize("text", ["see http://e/x now", "WWW.e.org", "a@b.c", "mailto://x", "a :smile: b"])
def test_words_of_which_github_makes_links_are_code(text: str) -> None:
    (inline,) = (token for token in PARSER.parse(escapes.markdown_text(text)) if token.type == "inline")
    loose = [child.content for child in inline.children if child.type == "text"]
    assert not escapes.LINK.search("".join(loose))


@given(TEXTS)
def test_html_shows_text(text: str) -> None:
    found: list[str] = []
    tags: list[tuple[str, list]] = []
    reader = html.parser.HTMLParser()
    reader.handle_data = found.append
    reader.handle_starttag = lambda tag, attributes: tags.append((tag, attributes))
    reader.feed(f'<p title="{escapes.html_text(text)}">{escapes.html_text(text)}</p>')
    reader.close()
    assert tags == [("p", [("title", escapes.plain(text))])] and "".join(found) == escapes.plain(text)


@given(st.lists(st.lists(TEXTS, min_size=3, max_size=3), min_size=1, max_size=4))
def test_a_row_is_one_line_of_inert_cells(rows: list[list[str]]) -> None:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([escapes.csv_text(cell) for cell in row] for row in rows)
    assert len(file.getvalue().split("\n")) == len(rows) + 1 and "\r" not in file.getvalue()
    for row, given_row in zip(csv.reader(io.StringIO(file.getvalue())), rows, strict=True):
        assert len(row) == 3
        for cell, text in zip(row, given_row, strict=True):
            assert not unicodedata.normalize("NFKC", cell.strip()).startswith(("=", "+", "-", "@"))
            assert cell.removeprefix("'") == escapes.plain(text).removeprefix("'")


@pytest.mark.parametrize("first", ["", " ", "\n", "\r", "\t", "\u00a0", "\u3000", "\u200b", "\ufeff", "\x00"])
@pytest.mark.parametrize("sign", ["=", "+", "-", "@", "＝", "＋", "－", "＠", "\ufe66"])  # noqa: RUF001
def test_a_formula_is_quoted_behind_whatever_hides_it(first: str, sign: str) -> None:
    assert escapes.csv_text(f"{first}{sign}cmd|' /C calc'!A0").startswith("'")


@pytest.mark.parametrize(
    "text", ["`" * 60_000, ":a" * 30_000, "\x00a" * 30_000, "a@ " * 20_000, "<" * 60_000, "- " * 30_000]
)
def test_long_texts_take_no_time(text: str) -> None:
    started = time.process_time()
    for medium in (escapes.markdown_text, escapes.markdown_code, escapes.html_text, escapes.csv_text):
        medium(text)
    assert time.process_time() - started < 2
