"""Kernels of a chain: each waits for its turn before all else, in its source and as compiled for Hopper."""

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

import icl_bench.kernels
from tests.kernels.absent_gpu import run_for_hopper

ROOT = Path(icl_bench.kernels.__file__).parent
WAIT = "wait_for_turn()"
COMPILED = """
import re
from icl_bench.kernels.triton import common

parts = torch.ones(1, 2, 16, 16, dtype=torch.bfloat16)
sources = []
with ahead.unlaunched(sources.append):
    common.add_parts(parts, parts.dtype)
found = {}
for source in sources:
    for early in (True, False):
        given = common.add_parts_kernel, source.signature, source.constants, source.attributes
        options = {**source.options, "launch_pdl": early}
        made = triton.compile(triton.compiler.ASTSource(*given), target=source.target, options=options)
        text = made.asm["ptx"]
        found[early] = [text.find("griddepcontrol.wait"), re.search("(ld|st)[.]global", text).start()]
print(json.dumps([[source.options["launch_pdl"] for source in sources], found[True], found[False]]))
"""


def chained_functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    """Yield the kernels of chains, with the names of their files."""
    for path in sorted(ROOT.rglob("triton/*.py")):
        for node in ast.parse(path.read_text()).body:
            made = [ast.unparse(each) for each in getattr(node, "decorator_list", [])]
            if isinstance(node, ast.FunctionDef) and any(each.startswith("chained_kernel(") for each in made):
                yield path.name, node


def test_every_kernel_of_a_chain_waits_in_its_first_statement() -> None:
    """What came before it would race what came before that, and its own kernel the one after."""
    kernels = list(chained_functions())
    assert len(kernels) > 15
    late = [f"{name}: {node.name}" for name, node in kernels if ast.unparse(node.body[1]) != WAIT]
    assert late == []


def test_no_other_kernel_waits() -> None:
    chained = {(name, node.name) for name, node in chained_functions()}
    waiting = set()
    for path in ROOT.rglob("triton/*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and f"\n    {WAIT}" in ast.unparse(node):
                waiting.add((path.name, node.name))
    assert waiting == chained


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
def test_a_kernel_launched_early_waits_before_it_reads_or_writes(tmp_path) -> None:
    launched, early, late = run_for_hopper(COMPILED, tmp_path)
    assert launched == [True]
    assert 0 < early[0] < early[1]
    assert late[0] == -1
