"""How numbers and names are written in reports, and how they are kept from acting as markup."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from icl_bench.reports.fits import Load
from icl_bench.reports.statistics import Interval

NONE = "\u2013"
"""Stands where there is no number."""
BINARY_UNITS = ("B", "KiB", "MiB", "GiB")
BREAKS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]+")
"""Line breaks, controls, and marks that turn the direction of text."""
MARKUP = re.compile(r"([\\`*_\[\]#|<>&~$])")


def plain(text: str) -> str:
    """Text on one line without control characters."""
    return BREAKS.sub(" ", text).strip()


def code(text: str, in_table: bool = False) -> str:
    r"""A Markdown code span that shows the text as it is, whatever it holds.

    >>> code("power:p=2")
    '`power:p=2`'
    >>> code("a`b|c", in_table=True)
    '``a`b\\|c``'
    """
    text = plain(text) or " "
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    if text.startswith("`") or text.endswith("`"):
        text = f" {text} "
    return fence + (text.replace("|", "\\|") if in_table else text) + fence


def escaped(text: str) -> str:
    """Markdown that shows the text as it is, outside of a code span."""
    return MARKUP.sub(lambda found: f"&#{ord(found[1])};" if found[1] in "<>&|`" else "\\" + found[1], plain(text))


def share(value: float | None) -> str:
    """A share with three decimals."""
    return NONE if value is None else f"{value:.3f}"


def bracketed(interval: Interval | None, digits: int = 3) -> str:
    """An interval of shares."""
    return "" if interval is None else f"[{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def size(number: int | None) -> str:
    """Bytes in the largest unit that leaves at least 1."""
    if number is None:
        return NONE
    power = min(len(BINARY_UNITS) - 1, int(math.log2(number) // 10)) if number else 0
    scaled = number / 1024**power
    return (
        f"{scaled:.0f} {BINARY_UNITS[power]}"
        if scaled >= 100 or scaled == int(scaled)
        else f"{scaled:.1f} {BINARY_UNITS[power]}"
    )


def quantity(value: float | None) -> str:
    """A number with three significant digits."""
    return NONE if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def count(number: int, noun: str) -> str:
    """A number with its noun.

    >>> count(1, "seed"), count(3, "seed")
    ('1 seed', '3 seeds')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def failures(statuses: Iterable[str]) -> str:
    """How many runs failed, by class.

    >>> failures(["ok", "timeout", "diverged", "timeout"])
    '3 failed (1 diverged, 2 timeout)'
    """
    classes = Counter(status for status in statuses if status != "ok")
    named = ", ".join(f"{number} {status}" for status, number in sorted(classes.items()))
    return f"{classes.total()} failed" + (f" ({named})" if named else "")


def listed(items: Sequence[str], last: str = "and") -> str:
    """Items in a sentence.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {last} {items[-1]}"


def load(found: Load) -> str:
    """A load, or the one it lies beyond.

    >>> load(Load(12.34, "within")), load(Load(64.0, "above"))
    ('12.3', '> 64')
    """
    sign = {"within": "", "below": "< ", "above": "> "}[found.side]
    return sign + quantity(found.value)


def p_text(p: float) -> str:
    """A p value with its sign of equality."""
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"
