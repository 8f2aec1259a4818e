"""Triton launches on the current device: every launch makes the device of its tensors the current one first."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import icl_bench.kernels

ROOT = Path(icl_bench.kernels.__file__).parent
SOURCES = sorted(ROOT.rglob("triton/*.py"))


def guarded(node: ast.With) -> bool:
    calls = (item.context_expr for item in node.items)
    return any(isinstance(call, ast.Call) and ast.unparse(call.func) == "launch_on" for call in calls)


def unguarded_calls(node: ast.AST) -> Iterator[ast.Call]:
    """Calls outside of `with launch_on(...)`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.With) and guarded(child):
            continue
        if isinstance(child, ast.Call):
            yield child
        yield from unguarded_calls(child)


def is_launch(call: ast.Call) -> bool:
    """`kernel[grid](...)`."""
    return isinstance(call.func, ast.Subscript) and ast.unparse(call.func.value).endswith("_kernel")


def launchers(tree: ast.Module) -> set[str]:
    """Functions of a module that launch a kernel, by themselves or through another of them, without a guard."""
    called = {
        node.name: [(ast.unparse(call.func), is_launch(call)) for call in unguarded_calls(node)]
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
    }
    found: set[str] = set()
    while True:
        more = {name for name, calls in called.items() if any(launch or to in found for to, launch in calls)}
        if more == found:
            return found
        found = more


def offences(path: Path) -> list[str]:
    """Functions of a file that launch without a guard; those of a `launch.py` leave it to the file beside it."""
    tree = ast.parse(path.read_text())
    beside = path.with_name("launch.py")
    outside = set()
    if path.name == "launch.py":
        return []
    if beside.exists():
        outside = {f"launch.{name}" for name in launchers(ast.parse(beside.read_text()))}
    calls = [ast.unparse(call.func) for call in unguarded_calls(tree)]
    return sorted(launchers(tree)) + [name for name in calls if name in outside]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_kernels_are_launched_on_the_device_of_their_tensors(path):
    assert offences(path) == []


def test_the_search_sees_launches_behind_functions(tmp_path):
    (tmp_path / "launch.py").write_text("def a(x):\n    b(x)\n\ndef b(x):\n    some_kernel[(1,)](x)\n")
    (tmp_path / "ops.py").write_text(
        "def good(x):\n    with launch_on(x):\n        launch.a(x)\n\ndef bad(x):\n    launch.a(x)\n"
    )
    (tmp_path / "one.py").write_text("def bad(x):\n    some_kernel[(1,)](x)\n")
    assert offences(tmp_path / "ops.py") == ["launch.a"]
    assert offences(tmp_path / "one.py") == ["bad"]


def test_launches_are_found_in_every_operator():
    texts = {path: path.read_text() for path in SOURCES}
    launching = {path.parent.parent.name for path, text in texts.items() if "_kernel[" in text}
    assert launching == {"attention", "delta", "fleet", "kernels", "long_convolution", "power", "scan"}
