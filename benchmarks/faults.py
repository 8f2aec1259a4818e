"""Attack a store by faults in file operations and by losses of power, and count what does not survive.

    python benchmarks/faults.py /dev/shm/attack --every 1
    python benchmarks/faults.py /dev/shm/attack --scenes merge rm --faults kill ENOSPC --every 3
    python benchmarks/faults.py /dev/shm/attack-3 --shard 3/16
    python benchmarks/faults.py /dev/shm/attack --power

A try gives a command (`tests/harness/scenes.py`) a fault at one file operation below its folder, then gives the same
command again. Wrong are a traceback, an undocumented status, a run that is lost, doubled, damaged or different, and any
file that an undisturbed command would not have left. With `--power`, all is lost that was not waited for with fsync,
after each operation: content alone, or names too. Needs gcc; SQLite and Python are reached alike, in one process.
Sixteen processes with `--shard 0/16` to `--shard 15/16`, each in a folder of its own, share the operations.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.harness.fork_server import FAULTS, ForkServer, compile_library
from tests.harness.scenes import SCENES, Stage, empty

Try = tuple[str, list[str]]
"""What was done in a try, and what was wrong afterwards."""


def main() -> None:
    """Try every fault or every cut, print what is wrong and the number of tries."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scenes", nargs="+", choices=SCENES, default=list(SCENES))
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--every", type=int, default=1, help="hit each operation, each second one, ...")
    parser.add_argument("--shard", type=parse_shard, default=(0, 1), help="number of this share, and of shares: 3/16")
    parser.add_argument("--power", action="store_true", help="cut the power in place of faults")
    asked = parser.parse_args()
    share, shares = asked.shard
    server = ForkServer(compile_library(empty(asked.folder)))
    failed = 0
    for scene in asked.scenes:
        stage = Stage(server, SCENES[scene], asked.folder / scene)
        if asked.power:
            tries = {f"{kind} lost": stage.power_cuts(kind == "names") for kind in ("content", "names")}
        else:
            first, every = 1 + asked.every * share, asked.every * shares
            tries = {name: attacks(stage, name, first, every) for name in asked.faults}
        for name, each in tries.items():
            failed += count(f"{scene}, {name}", each)
    server.close()
    sys.exit(failed > 0)


def parse_shard(text: str) -> tuple[int, int]:
    """Return the number of a share, from 0, and the number of shares, of a text such as 3/16."""
    share, _, shares = text.partition("/")
    if not 0 <= int(share) < int(shares):
        raise ValueError
    return int(share), int(shares)


def attacks(stage: Stage, name: str, first: int, every: int) -> Iterator[Try]:
    """Hit operations of a scene, the first one and each `every`-th after it, until the fault is never reached."""
    at = first
    while True:
        ended, wrong = stage.attack(FAULTS[name]._replace(at=at))
        if ended.status >= 0 and ended.operations < at and not ended.hit:
            return  # the command ended before it came to this operation
        yield f"operation {at} {ended.hit}", wrong
        at += every


def count(title: str, tries: Iterator[Try]) -> int:
    """Print what is wrong, and the number of tries; return the number of those that did not survive."""
    started, done, failed, kinds = time.monotonic(), 0, 0, Counter[str]()
    for what, wrong in tries:
        done += 1
        failed += bool(wrong)
        for text in wrong:
            kind = text.partition(":")[0]
            kinds[kind] += 1
            if kinds[kind] <= 3:
                print(f"    {title}, {what}: {text}", flush=True)
    seconds = time.monotonic() - started
    print(f"{title}: {done - failed} of {done} survived, {seconds:.0f} s {dict(kinds) or ''}", flush=True)
    return failed


if __name__ == "__main__":
    main()
