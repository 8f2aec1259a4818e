"""Find kernels that Triton 3.6 or its ptxas 12.8 compiles wrong for Hopper.

    python benchmarks/miscompiled_kernels.py ~/.triton/cache

Nothing warns of either fault, and both depend on block sizes. Both show in the machine code of the kernels that Triton
has cached, so that a run of the GPU tests, or of `compile_kernels.py` where there is no GPU, followed by this script,
covers every configuration that they compile.

* Unwritten reads: an instruction that reads the address of a shared tile is moved before the one that computes it, and
  products read other memory.
* Overwritten operands: a product takes its left operand from registers some time after it is issued, and only waiting
  for the product protects them. Triton leaves the products of one turn of a loop in flight into the next, which may
  begin by writing the registers of the last. With 128 columns, writes 29 to 38 instructions later were seen to spoil
  results, now and then and by percents, and writes 75 later were not; with 64 columns, writes 42 and 45 later were. A
  product of n columns takes n / 2 cycles, but waits for those of the other program of its multiprocessor: a write
  within 64 instructions counts as a fault.
"""

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

import triton

INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,5})\*/\s+(.*?);\s*/\*")
UNIFORM = re.compile(r"\bUR(\d+)(\.64)?")
DESCRIPTOR = re.compile(r"(g?)desc\[UR(\d+)\]")
REGISTER = re.compile(r"R(\d+)(\.reuse)?")
WRITERS = ("R2UR", "S2UR", "REDUX")
NO_RESULT = ("ST", "LDGSTS", "RED", "R2UR")
"""Instructions whose first register is an operand."""
IN_FLIGHT = 8
"""Groups of products that the machine keeps apart."""
SOON = 64
"""Instructions within which the registers of a product must not be written, for up to 128 columns."""


class Instruction(NamedTuple):
    """The registers that an instruction reads and writes, and its successors."""

    text: str
    reads: set[int]
    """Uniform registers that it reads."""
    writes: set[int]
    results: frozenset[int]
    """General registers that it writes."""
    operand: frozenset[int]
    """General registers that a product reads."""
    columns: int
    """Columns of a product, else 0."""
    closes: bool
    """A group of products ends here."""
    waits: int | None
    """Number of groups that may still be in flight after it, if it waits for them."""
    successors: list[int]


def parse(sass: str) -> list[Instruction]:
    """Return the instructions of a listing of cuobjdump."""
    lines = [(int(m[1], 16), m[2].strip()) for m in map(INSTRUCTION.match, sass.splitlines()) if m]
    place = {address: i for i, (address, _) in enumerate(lines)}
    return [_instruction(text, i, place, len(lines)) for i, (_, text) in enumerate(lines)]


def _instruction(text: str, i: int, place: dict[int, int], count: int) -> Instruction:
    guard, body = re.match(r"(@!?U?P\w+\s+)?(.*)", text).groups()  # type: ignore[union-attr]
    name, _, rest = body.partition(" ")
    arguments = [argument.strip() for argument in rest.split(",")]
    reads, writes = _uniform(name, list(arguments))
    product = name.startswith("HGMMA")
    operand = REGISTER.fullmatch(arguments[1]) if product else None
    return Instruction(
        text,
        reads,
        writes,
        frozenset() if product else _results(name, arguments),
        frozenset(range(int(operand[1]), int(operand[1]) + 4)) if operand else frozenset(),
        int(name.split("x")[1]) if product else 0,
        product and "gsb0" in arguments,
        int(arguments[-1], 16) if name.startswith("WARPGROUP.DEPBAR") else None,
        _successors(name, guard is not None, rest, i, place, count),
    )


def _uniform(name: str, arguments: list[str]) -> tuple[set[int], set[int]]:
    """Return the uniform registers that an instruction reads and writes."""
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
    return reads, writes


def _results(name: str, arguments: list[str]) -> frozenset[int]:
    """Return the general registers that an instruction writes."""
    first = REGISTER.fullmatch(arguments[0])
    if first is None or name.startswith(NO_RESULT):
        return frozenset()
    width = 1
    if ".128" in name or (name.startswith("LDSM") and name.endswith(".4")):
        width = 4
    elif ".64" in name or ".WIDE" in name or name.startswith("CS2R"):
        width = 2
    return frozenset(range(int(first[1]), int(first[1]) + width))


def _successors(name: str, guarded: bool, rest: str, i: int, place: dict[int, int], count: int) -> list[int]:
    falls = [i + 1] if i + 1 < count else []
    if name.split(".")[0] == "EXIT":
        return falls if guarded else []
    if name.split(".")[0] != "BRA":
        return falls
    target = re.search(r"0x([0-9a-f]+)", rest)
    jumps = [place[int(target[1], 16)]] if target and int(target[1], 16) in place else []
    return jumps + (falls if guarded or "UP" in rest else [])


def unwritten_reads(code: list[Instruction]) -> list[str]:
    """Return the instructions that read a uniform register which some path to them has not written."""
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


def overwritten_operands(code: list[Instruction]) -> list[str]:
    """Return the instructions that write an operand of a product in flight, which may not have read it."""
    products = [i for i, x in enumerate(code) if x.operand]
    found = {j for i in products for j in _spoilers(code, i)}
    return [code[i].text for i in sorted(found)]


def _spoilers(code: list[Instruction], start: int) -> Iterator[int]:
    """Yield the indices of the instructions that overwrite the operand of the product at index `start`."""
    operand, soon = code[start].operand, max(SOON, code[start].columns // 2)
    # Groups that have been closed since, the product's own among them: a wait for fewer has it done.
    seen: dict[tuple[int, int], int] = {}
    work = [(j, int(code[start].closes), 1) for j in code[start].successors]
    while work:
        i, closed, distance = work.pop()
        if distance >= soon or seen.get((i, closed), soon) <= distance:
            continue
        seen[i, closed] = distance
        waits = code[i].waits
        if waits is not None and waits < closed:
            continue
        if operand & code[i].results:
            yield i
            continue
        after = min(closed + code[i].closes, IN_FLIGHT)
        work += [(j, after, distance + 1) for j in code[i].successors]


def kernel_faults(cubin: Path, tool: str) -> list[str]:
    """Return the faults of one compiled kernel."""
    listing = subprocess.run([tool, "-sass", str(cubin)], capture_output=True, text=True, check=True).stdout
    code = parse(listing)
    kinds = {"unwritten": unwritten_reads(code), "overwritten": overwritten_operands(code)}
    return [f"{len(texts)} {kind}, first {texts[0]}" for kind, texts in kinds.items() if texts]


def main() -> None:
    """Print every kernel with such a fault; exit status 1 where there is one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path, help="the folder in which Triton keeps compiled kernels")
    bundled = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    parser.add_argument("--cuobjdump", default=shutil.which("cuobjdump") or str(bundled))
    options = parser.parse_args()
    cubins = sorted(options.cache.rglob("*.cubin"))
    with ThreadPool() as pool:
        found = pool.map(lambda cubin: kernel_faults(cubin, options.cuobjdump), cubins)
    wrong = {cubin: faults for cubin, faults in zip(cubins, found, strict=True) if faults}
    for cubin, faults in wrong.items():
        print(f"{cubin.parent.name}/{cubin.name}: {'; '.join(faults)}")
    print(f"{len(wrong)} of {len(cubins)} kernels are compiled wrong")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
