"""Crash points: named places at which a process can kill itself, so that tests can show which data survive.

`ICL_BENCH_CRASH_AT=name` sends SIGKILL to the process when it first reaches that point, `name:3` when it reaches the
point for the third time. Without the variable a crash point does nothing.
"""

import os
import re
import signal
from collections import Counter

from icl_bench.errors import SpecError
from icl_bench.schema import nearest

CRASH_VARIABLE = "ICL_BENCH_CRASH_AT"

CRASH_POINTS = (
    "attempt-made", "attempt-begun", "metrics-torn", "metrics-logged",
    "result-written", "file-written", "fleet-sealed", "run-published", "fleet-published", "attempts-cleared",
    "step-done", "validated", "trained", "tested",
    "checkpoint-begun", "checkpoint-written", "checkpoint-published",
    "checkpoint-pruned", "checkpoint-unnamed", "checkpoint-removed",
    "index-written", "index-published", "merge-copied", "merge-published", "run-removed",
)  # fmt: skip
"""Names that `reach` accepts."""

REACHED: Counter[str] = Counter()
"""Number of times that this process reached the crash point of ICL_BENCH_CRASH_AT."""


def reach(name: str) -> None:
    """Pass a crash point; kill the process if ICL_BENCH_CRASH_AT names it; raise SpecError if that is unknown."""
    asked = os.environ.get(CRASH_VARIABLE)
    if asked is None:
        return
    wanted, count = parse_crash(asked)
    if wanted == name:
        REACHED[name] += 1
        if REACHED[name] == count:
            kill()


def parse_crash(text: str) -> tuple[str, int]:
    """Parse `name` or `name:count`; raise SpecError if the text has another form."""
    name, colon, count = text.partition(":")
    if name not in CRASH_POINTS:
        raise SpecError(
            f"{CRASH_VARIABLE} names a crash point; got {name!r}; {nearest(name, CRASH_POINTS)}known: "
            f"{', '.join(CRASH_POINTS)}"
        )
    if colon and not re.fullmatch("0*[1-9][0-9]{0,8}", count):
        raise SpecError(f"{CRASH_VARIABLE} is name or name:count, the count from 1; got {text!r}; write {name}:1")
    return name, int(count) if colon else 1


def kill() -> None:
    """End this process as a power failure would, without closing or cleaning up anything."""
    os.kill(os.getpid(), signal.SIGKILL)
