"""Find kernels that read a uniform register of the GPU before anything has written it.

    python benchmarks/miscompiled_kernels.py ~/.triton/cache

ptxas 12.8, which Triton 3.6 brings, compiles some kernels for Hopper into code that moves the address of a shared
tile past the instruction that computes it: products then read other memory, or memory that is not theirs. Nothing warns
of it, and whether it happens turns on block sizes. The wrong reads show in the machine code of the kernels that Triton
has cached, so that a run of the GPU tests, followed by this, covers every configuration that they compile.
"""

import argparse
import re
import shutil
import subprocess
import sys
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,5})\*/\s+(.*?);\s*/\*")
UNIFORM = re.compile(r"\bUR(\d+)(\.64)?")
DESCRIPTOR = re.compile(r"(g?)desc\[UR(\d+)\]")
WRITERS = ("R2UR", "S2UR", "REDUX")


class Instruction(NamedTuple):
    """What an instruction does with uniform registers, and where it may go on."""

    text: str
    reads: set[int]
    writes: set[int]
    successors: list[int]


def parse(sass: str) -> list[Instruction]:
    """The instructions of a listing of cuobjdump."""
    lines = [(int(m[1], 16), m[2].strip()) for m in map(INSTRUCTION.match, sass.splitlines()) if m]
    place = {address: i for i, (address, _) in enumerate(lines)}
    return [_instruction(text, i, place, len(lines)) for i, (_, text) in enumerate(lines)]


def _instruction(text: str, i: int, place: dict[int, int], count: int) -> Instruction:
    guard, body = re.match(r"(@!?U?P\w+\s+)?(.*)", text).groups()  # type: ignore[union-attr]
    name, _, rest = body.partition(" ")
    arguments = [argument.strip() for argument in rest.split(",")]
    reads: set[int] = set()
    writes: set[int] = set()
    if re.fullmatch(r"UR\d+", arguments[0]) and (name.startswith("U") or name.split(".")[0] in WRITERS):
        first = int(arguments.pop(0)[2:])
        writes = {first, first + 1} if ".64" in name or ".WIDE" in name else {first}
    from_registers = len(arguments) > 1 and re.fullmatch(r"R\d+", arguments[1]) is not None
    for argument in arguments:
        for matrix, number in DESCRIPTOR.findall(argument):
            first = int(number)
            reads |= set(range(first + 2 if from_registers else first, first + 4)) if matrix else {first, first + 1}
        for number, wide in UNIFORM.findall(DESCRIPTOR.sub("", argument)):
            reads |= {int(number), int(number) + 1} if wide else {int(number)}
    return Instruction(text, reads, writes, _successors(name, guard is not None, rest, i, place, count))


def _successors(name: str, guarded: bool, rest: str, i: int, place: dict[int, int], count: int) -> list[int]:
    falls = [i + 1] if i + 1 < count else []
    if name.split(".")[0] == "EXIT":
        return falls if guarded else []
    if name.split(".")[0] != "BRA":
        return falls
    target = re.search(r"0x([0-9a-f]+)", rest)
    jumps = [place[int(target[1], 16)]] if target and int(target[1], 16) in place else []
    return jumps + (falls if guarded or "UP" in rest else [])


def unwritten_reads(sass: str) -> list[str]:
    """The instructions that read a uniform register which some path to them has not written."""
    code = parse(sass)
    known: list[set[int] | None] = [None] * len(code)
    if code:
        known[0] = set()
    work = [0] if code else []
    while work:
        i = work.pop()
        after = (known[i] or set()) | code[i].writes
        for j in code[i].successors:
            before = known[j]
            merged = after if before is None else before & after
            if merged != before:
                known[j] = set(merged)
                work.append(j)
    return [x.text for x, written in zip(code, known, strict=True) if written is not None and x.reads - written]


def examine(cubin: Path, tool: str) -> list[str]:
    """The wrong reads of one compiled kernel."""
    listing = subprocess.run([tool, "-sass", str(cubin)], capture_output=True, text=True, check=True).stdout
    return unwritten_reads(listing)


def main() -> None:
    """Print every kernel with such a read; exit status 1 where there is one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path, help="the folder in which Triton keeps compiled kernels")
    parser.add_argument("--cuobjdump", default=shutil.which("cuobjdump") or "cuobjdump")
    options = parser.parse_args()
    cubins = sorted(options.cache.rglob("*.cubin"))
    with ThreadPool() as pool:
        found = pool.map(lambda cubin: examine(cubin, options.cuobjdump), cubins)
    wrong = {cubin: reads for cubin, reads in zip(cubins, found, strict=True) if reads}
    for cubin, reads in wrong.items():
        print(f"{cubin.parent.name}/{cubin.name}: {len(reads)} wrong reads, first {reads[0]}")
    print(f"{len(wrong)} of {len(cubins)} kernels read a uniform register that nothing has written")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
