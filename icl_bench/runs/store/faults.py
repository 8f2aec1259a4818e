"""Faults on purpose: named points at which a process kills itself, so that tests can show what survives.

`ICL_BENCH_CRASH_AT=name` sends SIGKILL to the process when it first reaches that point, `name:3` when it does so for
the third time. Without the variable a point does nothing.
"""

import os
import signal
from collections import Counter

from icl_bench.errors import SpecError
from icl_bench.schema import nearest

VARIABLE = "ICL_BENCH_CRASH_AT"

CRASH_POINTS = (
    "attempt-made",
    "attempt-begun",
    "metrics-torn",
    "metrics-logged",
    "result-written",
    "file-written",
    "fleet-sealed",
    "run-published",
    "fleet-published",
    "attempts-cleared",
    "step-done",
    "validated",
    "trained",
    "tested",
    "checkpoint-begun",
    "checkpoint-written",
    "checkpoint-published",
    "checkpoint-pruned",
    "checkpoint-unnamed",
    "checkpoint-removed",
    "index-written",
    "index-published",
    "merge-copied",
    "merge-published",
    "run-removed",
)
"""Every name that `reach` may be given."""

REACHED: Counter[str] = Counter()


def reach(name: str) -> None:
    """Pass a crash point.

    Raises:
        SpecError: where ICL_BENCH_CRASH_AT names a point that there is not.
    """
    asked = os.environ.get(VARIABLE)
    if asked is None:
        return
    wanted, count = parse_crash(asked)
    if wanted == name:
        REACHED[name] += 1
        if REACHED[name] == count:
            kill()


def parse_crash(text: str) -> tuple[str, int]:
    """Read `name` or `name:count`.

    Raises:
        SpecError: where it is neither.
    """
    name, colon, count = text.partition(":")
    if name not in CRASH_POINTS:
        raise SpecError(
            f"{VARIABLE} names a crash point; got {name!r}; {nearest(name, CRASH_POINTS)}known: "
            f"{', '.join(CRASH_POINTS)}"
        )
    if colon and not (count.isascii() and count.isdecimal() and int(count)):
        raise SpecError(f"{VARIABLE} is name or name:count, the count from 1; got {text!r}; write {name}:1")
    return name, int(count) if colon else 1


def kill() -> None:
    """End this process as a power cut would: nothing is closed, nothing is cleared up."""
    os.kill(os.getpid(), signal.SIGKILL)
