"""Give commands hostile specs, requests, study files, records, stores and checkpoints by the ten thousand.

    python benchmarks/fuzz.py /dev/shm/fuzz --inputs 100000 --seed 0

Inputs are those of `tests/hostile.py`, drawn with a seed. Wrong are a traceback, an undocumented status, an error of
several lines, control or bidirectional characters on the terminal, five seconds of processor time, a good run that is
not listed, live markup or formulas in reports and tables, JSON that is none, any change of a folder outside, and any
path outside the folder that is opened for writing, made, moved or removed. Memory is limited to 6 GiB beyond that of
the imports.
"""

import argparse
import os
import re
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests import fuzzing

SHARES = {
    "specs": 0.3, "requests": 0.2, "studies": 0.26, "records": 0.17, "samples": 0.02, "places": 0.045,
    "checkpoints": 0.005,
}  # fmt: skip
"""Share of each kind of input; those that train or report take longest."""
MEMORY = 6 << 30
CHANGES = {"os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree"}


def main() -> None:
    """Give the inputs, print what is wrong, and the number of inputs of each kind."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--kinds", nargs="+", choices=SHARES, default=list(SHARES))
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    folder = asked.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.chdir(folder)
    os.environ |= {"HOME": str(folder), "TMPDIR": str(folder), "MPLCONFIGDIR": str(folder)}
    tempfile.tempdir = str(folder)
    strays = watch(folder)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))
    given = {
        "specs": lambda count: fuzzing.fuzz_specs(count, asked.seed),
        "requests": lambda count: fuzzing.fuzz_requests(count, asked.seed),
        "studies": lambda count: fuzzing.fuzz_studies(folder, count, asked.seed),
        "records": lambda count: fuzzing.fuzz_records(folder, count, asked.seed),
        "samples": lambda count: fuzzing.fuzz_samples(folder / "samples", count, asked.seed),
        "places": lambda count: fuzzing.fuzz_places(folder / "places", count, asked.seed),
        "checkpoints": lambda count: fuzzing.fuzz_checkpoints(folder / "checkpoints", count, asked.seed),
    }
    failed = 0
    for kind in asked.kinds:
        failed += count_wrong(kind, given[kind](int(asked.inputs * SHARES[kind])), strays)
    for name in fuzzing.accepted_records(folder):
        failed += 1
        print(f"    accepted: {name}")
    sys.exit(failed > 0)


def watch(folder: Path) -> list[str]:
    """Return a list to which every path outside a folder is added that Python opens for writing or changes."""
    strays: list[str] = []
    known = tuple(str(Path(path).resolve()) for path in (folder, "/dev/null"))

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            changing = bool((flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) or set(mode or "") & set("wax+"))
        else:
            path = arguments[0] if arguments else None
            changing = event in CHANGES and not (event == "os.mkdir" and Path(os.fsdecode(path)).is_dir())
        if changing and isinstance(path, str | bytes | Path):
            real = os.path.realpath(os.path.dirname(os.fsdecode(path)) or ".")  # noqa: PTH120 - a hook must be quick
            if not real.startswith(known) and real != "/dev":
                strays.append(f"{event} {os.fsdecode(path)}")

    sys.addaudithook(hook)
    return strays


def count_wrong(kind: str, found: fuzzing.Found, strays: list[str]) -> int:
    """Print what is wrong, and the number of inputs; return the number of those that were not survived."""
    started, done, failed, kinds, slowest = time.monotonic(), 0, 0, Counter[str](), 0.0
    last = started
    for what, wrong in found:
        now = time.monotonic()
        slowest, last, done = max(slowest, now - last), now, done + 1
        wrong += [f"outside: {path}" for path in strays]
        strays.clear()
        failed += bool(wrong)
        for text in wrong:
            name = re.sub(r"\d+", "0", text[:60])
            kinds[name] += 1
            if kinds[name] <= 2:
                print(f"    {text}\n        {what[:500]!r}", flush=True)
    print(f"{kind}: {done - failed} of {done} survived, {time.monotonic() - started:.0f} s, slowest {slowest:.1f} s",
          flush=True)  # fmt: skip
    for name, times in kinds.most_common():
        print(f"    {times} times {name!r}", flush=True)
    return failed


if __name__ == "__main__":
    main()
