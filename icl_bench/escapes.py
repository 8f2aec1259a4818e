"""Text from anywhere, made harmless: one function for each medium, which its last door calls.

Names, messages, file names and versions may come from a stranger's store or study. None of these functions changes what
a reader sees of ordinary text; each keeps text from acting as anything but text in its medium.
"""

import html
import re
import unicodedata

INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories that are not shown: control, format (bidirectional and zero-width marks), half a surrogate pair,
separators of lines and of paragraphs."""
MARKUP = re.compile(r"([\\`*_\[\]#|<>&~$])")
LINK = re.compile(r"://|www\.|@|:[\w+-]+:", re.IGNORECASE)
"""Parts of words of which GitHub makes links, mentions or emoji, without any markup."""
BLOCK = re.compile(r"(\d*)([-+.)])(?=\s|[-\s]*$)")
"""Beginning of a line that opens a list or is a rule."""
FORMULA = ("=", "+", "-", "@")
"""Characters from which a spreadsheet recognises a formula, after white space and in full width as well."""


def visible_text(text: str) -> str:
    """Return text with a space for each run of line breaks, control, format and bidirectional characters."""
    if text.isprintable():
        return text
    shown = "".join("\0" if unicodedata.category(character) in INVISIBLE else character for character in text)
    return re.sub("\0+", " ", shown)


def plain(text: str) -> str:
    """Return text on one line, of visible characters alone, without white space around it."""
    return visible_text(text).strip()


def markdown_code(text: str, in_table: bool = False) -> str:
    r"""Return a Markdown code span that shows any text unchanged, but for a backslash before a bar in a table.

    >>> markdown_code("power:p=2")
    '`power:p=2`'
    >>> markdown_code("a`b|c", in_table=True)
    '``a`b\\|c``'
    """
    text = plain(text) or " "
    if in_table:
        text = text.replace("\\|", "\\ |").replace("|", "\\|")  # GitHub reads two backslashes before a bar as one
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    if text.startswith("`") or text.endswith("`"):
        text = f" {text} "
    return fence + text + fence


def markdown_text(text: str, in_table: bool = False) -> str:
    r"""Return Markdown that shows any text unchanged; words of which GitHub would make links become code.

    >>> markdown_text("a_b <i> www.x.org")
    'a\\_b &#60;i&#62; `www.x.org`'
    """
    words = re.split(r"(\s+)", plain(text))
    written = "".join(markdown_code(w, in_table) if LINK.search(w) else escape_markup(w) for w in words)
    return BLOCK.sub(r"\1\\\2", written, count=1) if BLOCK.match(written) else written


def escape_markup(text: str) -> str:
    """Return text with its characters of Markdown escaped."""
    return MARKUP.sub(lambda found: f"&#{ord(found[1])};" if found[1] in "<>&|`" else "\\" + found[1], text)


def html_text(text: str) -> str:
    """Return HTML that shows any text, also inside a quoted attribute."""
    return html.escape(plain(text))


def csv_text(text: str) -> str:
    r"""Return text for a cell of a table file: one line, which no spreadsheet takes for a formula.

    A text that begins like a formula, behind white space or in full width as well, gets a single quote before it.

    >>> csv_text(" =1+1"), csv_text("a\r=1+1")
    ("'=1+1", 'a =1+1')
    """
    text = plain(text)
    return f"'{text}" if unicodedata.normalize("NFKC", text[:1]).startswith(FORMULA) else text
