"""Measure the structure of the package: rooms, imports between them, sizes of files and functions, and repetition.

A room is a package or a module directly under `icl_bench`; an arrow is a room that imports another. The script reads
source text alone and runs nothing of it, so that it can compare two checkouts:

    python benchmarks/structure.py [ROOT ...]
"""

import argparse
import ast
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

INDIRECT = re.compile(r"(What|How|Where|Whether|Who|Whom|Whose|Which|When|Why)\b")
SHORT_FILE = 50
LONG_FILE = 400
MANY_PARAMETERS = 10
RUN = 6
Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources(root: Path) -> dict[str, str]:
    """Return the text of each source file of the package by its path relative to the package."""
    package = root / "icl_bench"
    return {path.relative_to(package).as_posix(): path.read_text() for path in sorted(package.rglob("*.py"))}


def functions(tree: ast.AST) -> Iterator[Function]:
    """Iterate over all functions and methods of a module."""
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def parameters(function: Function) -> int:
    """Count the parameters of a function, `self` and `cls` left out."""
    every = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return sum(argument.arg not in ("self", "cls") for argument in every)


def room_of(module: str) -> str:
    """Return the part of a dotted module name that stands directly under the package."""
    return [*module.split("."), ""][1]


def imported(tree: ast.AST) -> Iterator[str]:
    """Iterate over the modules of the package that a module imports, at its head or inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("icl_bench."))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "icl_bench":
            own = node.module == "icl_bench"
            yield from (f"icl_bench.{alias.name}" if own else str(node.module) for alias in node.names)


def arrows(trees: dict[str, ast.Module]) -> set[tuple[str, str]]:
    """Return the pairs of different rooms of which the first imports the second."""
    rooms = {name.split("/")[0].removesuffix(".py") for name in trees}
    pairs = {
        (name.split("/")[0].removesuffix(".py"), room_of(module)) for name in trees for module in imported(trees[name])
    }
    return {(a, b) for a, b in pairs if a != b and b in rooms}


def public_names(trees: dict[str, ast.Module]) -> Counter[str]:
    """Count the modules that define each public function or class."""
    names: Counter[str] = Counter()
    for tree in trees.values():
        own = {node.name for node in tree.body if isinstance(node, ast.ClassDef | Function)}
        names.update(name for name in own if not name.startswith("_"))
    return names


def code_lines(text: str) -> list[str]:
    """Return the lines of a file without blank lines, comments, docstrings and imports."""
    tree, skipped = ast.parse(text), set[int]()
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if is_text or isinstance(node, ast.Import | ast.ImportFrom):
            skipped.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = enumerate((line.strip() for line in text.splitlines()), 1)
    return [line for number, line in lines if line and not line.startswith("#") and number not in skipped]


def repeated_runs(texts: dict[str, str]) -> int:
    """Count the pairs of places at which six or more lines of code in a row are the same, each run once."""
    lines = {name: code_lines(text) for name, text in texts.items()}
    places: dict[tuple[str, ...], list[tuple[str, int]]] = defaultdict(list)
    for name, own in lines.items():
        for i in range(len(own) - RUN + 1):
            places[tuple(own[i : i + RUN])].append((name, i))
    runs = 0
    for found in places.values():
        for first, (name, i) in enumerate(found):
            for other, j in found[first + 1 :]:
                goes_on = i > 0 and j > 0 and lines[name][i - 1] == lines[other][j - 1]
                runs += not goes_on
    return runs


def figures(root: Path) -> dict[str, object]:
    """Return the figures of one checkout."""
    texts = sources(root)
    trees = {name: ast.parse(text) for name, text in texts.items()}
    every = [(name, function) for name, tree in trees.items() for function in functions(tree)]
    lengths = sorted((f.end_lineno or f.lineno) - f.lineno + 1 for _, f in every)
    texts_of = [docstring for _, f in every if (docstring := ast.get_docstring(f))]
    indirect = sum(bool(INDIRECT.match(text)) for text in texts_of)
    sizes = {name: len(text.splitlines()) for name, text in texts.items()}
    kernels = sorted((parameters(f) for name, f in every if name.startswith("kernels/")), reverse=True)
    modules = {name: size for name, size in sizes.items() if not name.endswith("__init__.py")}
    test_lines = sum(len(path.read_text().splitlines()) for path in (root / "tests").rglob("*.py"))
    return {
        "rooms": len({name.split("/")[0] for name in texts} - {"__init__.py", "__main__.py"}),
        "arrows between rooms": len(arrows(trees)),
        "files": len(texts),
        f"files under {SHORT_FILE} lines, __init__.py left out": sum(size < SHORT_FILE for size in modules.values()),
        f"files over {LONG_FILE} lines": sum(size > LONG_FILE for size in sizes.values()),
        "lines": sum(sizes.values()),
        "lines of tests / lines": round(test_lines / sum(sizes.values()), 2),
        "function length, median": lengths[len(lengths) // 2],
        "function length, 90 %": lengths[len(lengths) * 9 // 10],
        "public functions and classes defined twice": sum(n > 1 for n in public_names(trees).values()),
        "docstrings of functions that begin with a question word, %": round(100 * indirect / len(texts_of), 1),
        f"functions over {MANY_PARAMETERS} parameters outside kernels": sum(
            parameters(f) > MANY_PARAMETERS for name, f in every if not name.startswith("kernels/")
        ),
        "parameters of the three largest kernels": kernels[:3],
        f"pairs of places with {RUN} equal lines in a row": repeated_runs(texts),
    }


def main() -> None:
    """Print the figures of the checkouts that are named, or of this one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("roots", nargs="*", type=Path, metavar="ROOT", default=[Path(__file__).resolve().parents[1]])
    roots = parser.parse_args().roots
    print(json.dumps({str(root): figures(root) for root in roots} if len(roots) > 1 else figures(roots[0]), indent=1))


if __name__ == "__main__":
    main()
