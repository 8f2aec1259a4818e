"""Cases that are timed: those of the table, and a sweep over lengths on which power attention overtakes softmax."""

import itertools
from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch

from icl_bench.kernels.measurement.operators import known_operators, operator_name
from icl_bench.kernels.measurement.problems import Problem

CasePart = Literal["table", "crossover"]

TABLE_TOKENS = 65_536
TABLE_HEADS = 12
SWEEP_WIDTHS = (32, 64, 128)
SWEEP_LENGTHS = (4096, 16_384, 1024, 65_536, 8192, 32_768, 2048)
"""Lengths of the sweep, in an order that brackets a crossover early if time runs out; a quick sweep takes the first."""
CPU_LENGTHS = (256, 1024, 128, 512)
CPU_TOKENS = 1024


class Case(NamedTuple):
    """A problem, and the contenders that are timed on it."""

    title: str
    part: CasePart
    problem: Problem
    contenders: tuple[str, ...]


def timed_cases(device: torch.device, op: str | None = None, quick: bool = False) -> list[Case]:
    """Return the cases of a device, of one operator or all: the table, then the sweep over lengths."""
    operators, cpu = known_operators(op), device.type == "cpu"
    table = _small_table(quick) if cpu else _table(TABLE_TOKENS // 8 if quick else TABLE_TOKENS)
    return [case for case in (*table, *_sweep(cpu, quick)) if case.problem.op in operators]


def _table(tokens: int) -> Iterator[Case]:
    plain = Problem(op="power", dtype=torch.bfloat16, t=tokens, heads=TABLE_HEADS, groups=TABLE_HEADS, states=False)
    sdpa = ("sdpa flash", "sdpa cudnn", "sdpa efficient")
    n = max(1, tokens // 16_384)
    softmax = plain._replace(op="attention", n=n, t=min(tokens, 16_384))
    window = plain._replace(op="attention", window=1056)
    short = plain._replace(n=tokens // 32, t=256, heads=2, groups=2)
    yield _case(plain, "auto", "chunked", *sdpa, "retention")
    yield _case(plain._replace(gated=True), "auto", "chunked", "retention")
    yield _case(plain._replace(p=1), "auto", "chunked", "fla", "fla unnormalised")
    yield _case(plain._replace(p=1, gated=True), "auto", "chunked")
    yield _case(window, "auto", "torch", "flex")
    yield _case(softmax, "triton", "torch", *sdpa)
    yield _case(short, "auto", "quadratic", "chunked", *sdpa)
    yield _case(plain._replace(t=2 * tokens), "auto", "retention")


def _small_table(quick: bool) -> Iterator[Case]:
    length = 256 if quick else 1024
    plain = Problem(op="power", dtype=torch.float32, t=length, groups=2, key=32, value=32, states=False)
    for p, gated in ((2, False), (2, True), (1, False)):
        peers = () if gated else ("sdpa flash",)
        yield _case(plain._replace(p=p, gated=gated), "auto", "quadratic", "chunked", *peers)
    yield _case(plain._replace(op="attention", window=64), "auto", "torch", "sdpa")
    yield _case(plain._replace(op="attention"), "auto", "torch", "sdpa flash", "sdpa math")
    yield _case(plain._replace(n=16, t=64), "auto", "quadratic", "chunked", "sdpa flash")


def _sweep(cpu: bool, quick: bool) -> Iterator[Case]:
    lengths, tokens, heads, dtype = SWEEP_LENGTHS[: 3 if quick else None], TABLE_TOKENS, TABLE_HEADS, torch.bfloat16
    if cpu:
        lengths, tokens, heads, dtype = CPU_LENGTHS[: 2 if quick else None], CPU_TOKENS, 1, torch.float32
    for t, width in itertools.product(lengths, SWEEP_WIDTHS[:2] if quick or cpu else SWEEP_WIDTHS):
        title = f"crossover d={width}, T={t:,}"
        base = Problem("power", t, dtype, tokens // t, heads, heads, width, width, states=False)
        for p in (1, 2):
            yield Case(title, "crossover", base._replace(p=p), ("auto",))
        softmax = ("sdpa flash",) if cpu else ("sdpa flash", "sdpa cudnn")
        yield Case(title, "crossover", base._replace(op="attention"), softmax)


def _case(problem: Problem, *contenders: str) -> Case:
    window = f" {problem.window:,}" if problem.window else ""
    shape = f"N={problem.n:,}, T={problem.t:,}, H={problem.heads}, d={problem.key}"
    return Case(f"{operator_name(problem)}{window}: {shape}", "table", problem, contenders)
