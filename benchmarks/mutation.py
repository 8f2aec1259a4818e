"""Plant faults in the package, one at a time, and count those that the ordinary tests notice.

    python benchmarks/mutation.py results.json --faults 200 --jobs 2

A fault changes one operator, constant or condition on one line. Faults are drawn with a seed, as many in each area,
from all lines of the area. Each is planted in a copy of the checkout, in a temporary folder. The tests of its module
run first; if these pass, the tests that name the module and those beside its own; then those of its area (not with
`--quick`). A test that fails counts if it passes without the fault; one that does not is left out from then on. A
process that has imported torch is forked for every run of tests. Results are written after each fault, and the same
command goes on after an interruption; `--again` tries the faults that survived once more, after tests were added.

Not drawn: texts, annotations, decorators, what is raised, and calls that only log.
"""

import argparse
import ast
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
AREAS = {
    "store": ("icl_bench/runs",),
    "engines": ("icl_bench/harness/engines",),
    "statistics": ("icl_bench/reports/statistics.py", "icl_bench/reports/ranking.py", "icl_bench/reports/fits.py"),
    "matching": ("icl_bench/harness/matching.py",),
    "tasks": ("icl_bench/tasks",),
    "power": ("icl_bench/kernels/power", "icl_bench/architectures/power.py", "icl_bench/architectures/sums.py"),
}
"""Folders and modules of each area, without Triton kernels, most of whose constants change the time alone."""
SUITES = {
    "store": ("tests/runs", "tests/test_fuzz.py", "tests/harness/test_crashes.py", "tests/commands", "tests/reports"),
    "engines": ("tests/harness/engines", "tests/harness/training", "tests/harness/study", "tests/commands"),
    "statistics": ("tests/reports", "tests/benchmarks", "tests/commands"),
    "matching": ("tests/harness/test_matching.py", "tests/harness/test_resolve.py", "tests/harness/study",
                 "tests/commands"),
    "tasks": ("tests/tasks", "tests/harness/training", "tests/harness/test_resolve.py", "tests/reports"),
    "power": ("tests/kernels/power", "tests/architectures", "tests/kernels/test_launches.py"),
}  # fmt: skip
"""Tests that run where those of the module itself notice nothing."""
SWAPS: Mapping[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.BitXor: ast.BitOr, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
    ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip
SILENCE = 400.0
"""Seconds without the end of a test after which a run of tests counts as a hang, which is noticed."""
IMPORTS_ALL = "tests/test_registry.py"
"""A short file of tests, for modules without any of their own."""
QUICK_FILES = 6
"""Number of files of tests that name a module and run with `--quick`."""
SURVIVED, NOTICED, HANGED = "survived", "noticed", "hanged"
EQUIVALENT: Mapping[tuple[str, str], str] = {
    ("icl_bench/harness/engines/supervisor.py", "slot.last_heard = (1.0)"): "A worker has a second more of patience.",
    ("icl_bench/harness/engines/slurm.py", "if (time.monotonic() > until):"): "No clock shows the same time twice.",
    ("icl_bench/harness/engines/slurm.py", "STORE_POLL_SECONDS = (2.0)"): "A store is looked at more rarely.",
    ("icl_bench/harness/engines/slurm.py", "time.sleep(STORE_POLL_SECONDS / (6))"): "Jobs are looked at more often.",
    (
        "icl_bench/harness/engines/queues.py",
        "self.next_scan = time.monotonic() + min(SCAN_SECONDS, self.leases.expiry / (5))",
    ): "A store is looked at more often.",
    (
        "icl_bench/harness/engines/supervisor.py",
        "if (seconds >= self.limits.outside):",
    ): "No call takes 600 s to the last digit.",
    (
        "icl_bench/tasks/regbench.py",
        "latest = inputs.gather(1, (positions - back + 1).clamp(min=(1)))",
    ): "Where token 0 is read, no position counts.",
    (
        "icl_bench/tasks/bound_recall.py",
        "last = torch.full_like(positions, self._events(inputs, cell)[(1)].shape[1] - 1)",
    ): "All parts of events have one shape.",
    (
        "icl_bench/harness/matching.py",
        "if (found is not None or (best is None or found.error < best.error)):",
    ): "With more parameters free, nothing worse is found.",
    (
        "icl_bench/harness/matching.py",
        "if got > (3) * budget.target and isinstance(values, range):",
    ): "Values beyond twice the target are tried in vain.",
    (
        "icl_bench/harness/matching.py",
        "rank, width = architecture_of(parse_spec(padded.arch)).key_rank(shape.d_model) or ((1), 0)",
    ): "Keys that are padded have a rank.",
}
"""Reasons why a fault changes nothing that anybody could notice, by its module and its line."""
FAILING: set[str] = set()
"""Tests that fail without any fault, on this machine."""


@dataclass
class Fault:
    """A changed line, and what became of it."""

    area: str
    path: str
    line: int
    before: str
    after: str
    outcome: str = ""
    """`noticed`, `survived`, `hanged`, or empty before it was tried."""
    by: str = ""
    """The first test that failed."""
    seconds: float = 0.0


def main() -> None:
    """Draw faults, try those without an outcome, and print the share noticed by area."""
    parser = argparse.ArgumentParser()
    parser.add_argument("results", type=Path)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--areas", nargs="+", choices=AREAS, default=list(AREAS))
    parser.add_argument("--again", action="store_true", help="try the faults that survived once more")
    parser.add_argument("--quick", action="store_true", help="leave out the tests of the whole area")
    asked = parser.parse_args()
    if asked.results.exists():
        faults = [Fault(**row) for row in json.loads(asked.results.read_text())]
    else:
        faults = draw(asked.areas, asked.faults, asked.seed)
    for fault in faults:
        fault.outcome = "" if asked.again and fault.outcome == SURVIVED else fault.outcome
    left = [fault for fault in faults if not fault.outcome and fault.area in asked.areas]
    import_early()
    with tempfile.TemporaryDirectory() as scratch:
        copies = [copy_checkout(Path(scratch) / str(i)) for i in range(asked.jobs)]
        with ThreadPoolExecutor(asked.jobs) as pool:
            for done in as_completed([pool.submit(try_fault, fault, copies, asked.quick) for fault in left]):
                fault = done.result()
                asked.results.write_text(json.dumps([asdict(one) for one in faults], indent=1))
                told = f"{fault.path}:{fault.line}: {fault.before.strip()}  ->  {fault.after.strip()}"
                print(f"{fault.outcome} in {fault.seconds:.0f} s: {told} {fault.by}", flush=True)
    print(f"left out, because they fail without a fault: {sorted(FAILING)}")
    summarise(faults)


def summarise(faults: Sequence[Fault]) -> None:
    """Print the share of faults that were noticed, by area; faults that change nothing do not count."""
    counted = [fault for fault in faults if fault.outcome and (fault.path, fault.after.strip()) not in EQUIVALENT]
    for area in (*AREAS, "all"):
        found = Counter(fault.outcome for fault in counted if area in (fault.area, "all"))
        if found:
            told = f"{found[NOTICED] + found[HANGED]} of {found.total()} noticed, {found[HANGED]} of them by a hang"
            print(f"{area}: {told}")
    print(f"{sum(bool(fault.outcome) for fault in faults) - len(counted)} more change nothing")


def draw(areas: Sequence[str], count: int, seed: int) -> list[Fault]:
    """Return as many faults of each area, in an order in which every area comes first as often."""
    drawn, chosen = random.Random(seed), []
    for area in areas:
        paths = sorted(path for place in AREAS[area] for path in modules(ROOT / place))
        every = [fault for path in paths for fault in faults_of(area, path)]
        chosen.append(drawn.sample(every, min(len(every), -(-count // len(areas)))))
    return [fault for together in zip(*chosen, strict=False) for fault in together][:count]


def modules(place: Path) -> Iterator[Path]:
    """Yield the modules at a place, without Triton kernels."""
    if place.suffix == ".py":
        yield place
    else:
        yield from (path for path in place.rglob("*.py") if "triton" not in path.parts)


def faults_of(area: str, path: Path) -> Iterator[Fault]:
    """Yield every fault that can be planted in a module."""
    text = path.read_text()
    lines = text.splitlines()
    for node in drawable(ast.parse(text)):
        if getattr(node, "lineno", 0) != getattr(node, "end_lineno", 1):
            continue  # a fault is a change of one line
        line = lines[node.lineno - 1].encode()
        for changed in changes(node):
            new = line[: node.col_offset] + f"({ast.unparse(changed)})".encode() + line[node.end_col_offset :]
            name = path.relative_to(ROOT).as_posix()
            yield Fault(area, name, node.lineno, lines[node.lineno - 1], new.decode())


def drawable(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the expressions below a node that may be changed."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, ast.Raise | ast.JoinedStr) or is_told(child):
                continue
            if isinstance(child, ast.expr):
                yield child
            yield from drawable(child)


def is_told(node: ast.AST) -> bool:
    """Return whether a statement is a call that logs, or a condition for the type checker alone."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        return ast.unparse(node.value.func).startswith("LOG.")
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def changes(node: ast.AST) -> Iterator[ast.AST]:
    """Yield an expression with one operator, constant or condition changed."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        yield ast.Compare(node.left, [SWAPS[type(node.ops[0])]()], node.comparators)
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(SWAPS[type(node.op)](), node.values)
    elif isinstance(node, ast.BinOp) and type(node.op) in SWAPS and is_arithmetic(node):
        yield ast.BinOp(node.left, SWAPS[type(node.op)](), node.right)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield node.operand
    elif isinstance(node, ast.IfExp):
        yield ast.IfExp(ast.UnaryOp(ast.Not(), node.test), node.body, node.orelse)
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield ast.Constant(node.value + 1 if isinstance(node.value, int) else 2 * node.value or 1.0)


def is_arithmetic(node: ast.BinOp) -> bool:
    """Return whether an operation is on numbers, as far as its text tells; any other change always fails."""
    text = ast.unparse(node)
    texts = any(isinstance(part, ast.JoinedStr) or (isinstance(part, ast.Constant) and isinstance(part.value, str))
                for part in ast.walk(node))  # fmt: skip
    paths = isinstance(node.op, ast.Div) and any(word in text for word in ("root", "folder", "path", "target"))
    types = isinstance(node.op, ast.BitOr) and text.replace(" | ", "").replace(".", "").isidentifier()
    return not (texts or paths or types)


def import_early() -> None:
    """Import what all tests need and no fault can change, so that a fork has it."""
    os.environ |= {"OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"}
    import pydantic  # noqa: F401
    import pytest  # noqa: F401
    import rich  # noqa: F401
    import scipy.stats  # noqa: F401
    import torch
    import typer  # noqa: F401

    torch.set_num_threads(1)


def copy_checkout(folder: Path) -> Path:
    """Copy the files of the checkout that git knows or would add, and return the folder."""
    listed = ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard"]
    for name in subprocess.run(listed, check=True, capture_output=True, text=True).stdout.splitlines():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, folder / name)
    return folder


def try_fault(fault: Fault, copies: list[Path], quick: bool) -> Fault:
    """Plant a fault in a copy that nobody uses, run tests until one fails, and take the fault out again."""
    folder, started = copies.pop(), time.monotonic()
    path = folder / fault.path
    whole = path.read_text()
    changed = planted(whole, fault)
    if changed is None:
        copies.append(folder)
        return fault
    try:
        for tests in stages(folder, fault, quick):
            fault.outcome, fault.by = NOTICED, ""
            while fault.outcome == NOTICED:
                path.write_text(changed)
                fault.outcome, fault.by = run_tests(folder, tests)
                path.write_text(whole)
                if fault.outcome == NOTICED and run_tests(folder, [test_of(fault.by)])[0] == SURVIVED:
                    break
                FAILING.update([test_of(fault.by)] if fault.outcome == NOTICED else [])
            if fault.outcome != SURVIVED:
                break
    finally:
        path.write_text(whole)
        copies.append(folder)
    fault.seconds = round(time.monotonic() - started, 1)
    return fault


def test_of(line: str) -> str:
    """Return the test, or the file of tests, that a line of pytest's summary names; any file if it names none."""
    found = re.fullmatch(r"(?:FAILED|ERROR) (\S.*?)(?: - .*)?", line)
    return found[1] if found else IMPORTS_ALL


def planted(text: str, fault: Fault) -> str | None:
    """Return the text of a module with a fault, on the line nearest to that where it was drawn; None if it is gone."""
    lines = text.splitlines()
    places = [i for i, line in enumerate(lines) if line == fault.before]
    if not places:
        return None
    lines[min(places, key=lambda i: abs(i + 1 - fault.line))] = fault.after
    return "\n".join(lines) + "\n"


def stages(folder: Path, fault: Fault, quick: bool) -> Iterator[list[str]]:
    """Yield the tests of a fault, in the order in which they run."""
    path = Path(fault.path).relative_to("icl_bench")
    mirrored = Path("tests") / path.parent / f"test_{path.name}"
    beside = [str(test.relative_to(folder)) for test in sorted((folder / mirrored.parent).glob("test_*.py"))]
    # A module imported for its examples before its package would be registered twice, so that a test comes first.
    own = [
        str(mirrored) if (folder / mirrored).exists() else [*naming(folder, path), *beside, IMPORTS_ALL][0],
        fault.path,
    ]
    if path.parts[0] == "tasks":
        own += [
            "tests/tasks/test_contract.py",
            "tests/test_docs.py",
            "-k",
            f"{path.stem.replace('_', '-')} or {path.stem}",
        ]
    yield own
    yield list(dict.fromkeys([*naming(folder, path)[: QUICK_FILES if quick else None], *beside]))
    if not quick:
        yield list(SUITES[fault.area])


def naming(folder: Path, path: Path) -> list[str]:
    """Return the files of tests that import a module of the package, shortest first."""
    package, name = ".".join(("icl_bench", *path.parent.parts)), path.stem
    dotted = package if name == "__init__" else f"{package}.{name}"
    pattern = re.compile(rf"{re.escape(dotted)}\b|from {re.escape(package)} import [^\n]*\b{name}\b")
    found = {test: test.read_text() for test in sorted((folder / "tests").rglob("test_*.py"))}
    chosen = [test for test, text in found.items() if pattern.search(text)]
    return [str(test.relative_to(folder)) for test in sorted(chosen, key=lambda test: len(found[test]))]


def run_tests(folder: Path, tests: Sequence[str]) -> tuple[str, str]:
    """Run tests in a fork until the first fails; return the outcome and the line that names the test that failed."""
    tests = [test for test in tests if test not in FAILING]
    if not tests:
        return SURVIVED, ""
    out = folder.with_suffix(".out")
    child = os.fork()
    if not child:
        run_in_fork(folder, tests, out)
    size, since = -1, time.monotonic()
    while time.monotonic() - since < SILENCE:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            failed = [
                line for line in out.read_text(errors="replace").splitlines() if line.startswith(("FAILED", "ERROR"))
            ]
            return (SURVIVED if code in (0, 5) else NOTICED), (failed or [f"status {code}"])[0] if code else ""
        grown = out.stat().st_size if out.exists() else 0
        if grown != size:
            size, since = grown, time.monotonic()
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return HANGED, ""


def run_in_fork(folder: Path, tests: Sequence[str], out: Path) -> None:
    """Run pytest in this process, which ends with its status."""
    status = 70
    try:
        os.setsid()
        handle = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.chdir(folder)
        os.environ |= {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
        sys.dont_write_bytecode = True
        sys.path.insert(0, str(folder))
        import pytest

        # What is slow or needs a GPU is no ordinary test; a hang of one example is a failure at once.
        left_out = [f"--{'deselect' if '::' in test else 'ignore'}={test}" for test in FAILING]
        status = int(pytest.main(["-x", "-q", "--no-header", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=line",
                                  "-m", "not slow and not gpu", *left_out, *tests]))  # fmt: skip
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
