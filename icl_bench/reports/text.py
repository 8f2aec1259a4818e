"""The written form of numbers and lists in reports."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from icl_bench.reports.fits import Load
from icl_bench.reports.statistics import Interval

NONE = "\u2013"
"""Stands where there is no number."""
MOST_NAMED = 6
"""Largest number of entries that a sentence names."""
BINARY_UNITS = ("B", "KiB", "MiB", "GiB")


def format_share(value: float | None) -> str:
    """Format a proportion, such as an accuracy, with three decimals."""
    return NONE if value is None else f"{value:.3f}"


def format_interval(interval: Interval | None, digits: int = 3) -> str:
    """Format an interval of proportions."""
    return NONE if interval is None else f"[{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def format_level(interval: Interval | None) -> str:
    """Format the level of an interval.

    >>> format_level(Interval(0.1, 0.5, 0.9375))
    '93.8 %'
    """
    return NONE if interval is None else f"{100 * interval.level:.3g} %"


def format_bytes(number: int | None) -> str:
    """Format a number of bytes in the largest unit of which there is at least one.

    >>> format_bytes(2048), format_bytes(2500)
    ('2 KiB', '2.4 KiB')
    """
    if number is None:
        return NONE
    power = min(len(BINARY_UNITS) - 1, int(math.log2(number) // 10)) if number else 0
    scaled = number / 1024**power
    return f"{scaled:.{0 if scaled >= 100 or scaled == int(scaled) else 1}f} {BINARY_UNITS[power]}"


def format_integer(value: int | None) -> str:
    """Format an integer with separators of thousands."""
    return NONE if value is None else f"{value:,}"


def format_number(value: float | None) -> str:
    """Format a number with three significant digits, or as an integer from 1,000 on."""
    return NONE if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def format_load(found: Load) -> str:
    """Format a load, or the measured load beyond which it lies.

    >>> format_load(Load(12.34, "within")), format_load(Load(64.0, "above"))
    ('12.3', '> 64')
    """
    return {"within": "", "below": "< ", "above": "> "}[found.side] + format_number(found.value)


def format_p(p: float) -> str:
    """Format a p value with its relation: '= 0.012' or '< 0.001'."""
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def format_count(number: int, noun: str) -> str:
    """Format a number with its noun.

    >>> format_count(1, "seed"), format_count(3, "seed")
    ('1 seed', '3 seeds')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def format_failures(statuses: Iterable[str]) -> str:
    """Format the number of failed runs, in all and by status.

    >>> format_failures(["ok", "timeout", "diverged", "timeout"])
    '3 failed (1 diverged, 2 timeout)'
    """
    classes = Counter(status for status in statuses if status != "ok")
    named = ", ".join(f"{number} {status}" for status, number in sorted(classes.items()))
    return f"{classes.total()} failed" + (f" ({named})" if named else "")


def enumerate_words(items: Sequence[str], last: str = "and") -> str:
    """Join items as in a sentence.

    >>> enumerate_words(["a", "b", "c"])
    'a, b and c'
    """
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {last} {items[-1]}"


def enumerate_some(items: Sequence[str]) -> str:
    """Join items as in a sentence, or count them where there are more than six."""
    return enumerate_words(items) if len(items) <= MOST_NAMED else f"{len(items)} others"


def format_span(values: Sequence[int]) -> str:
    """Format the smallest and the largest of sorted numbers.

    >>> format_span([4, 8, 1600])
    '4 to 1,600'
    """
    return f"{values[0]:,}" if values[0] == values[-1] else f"{values[0]:,} to {values[-1]:,}"
