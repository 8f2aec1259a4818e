"""What is timed: the table's cases, and a sweep over lengths that shows where power attention overtakes softmax."""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch

from icl_bench.errors import ArgumentError
from icl_bench.kernels.measurement.problems import Problem

Part = Literal["table", "crossover"]

TOKENS = 65_536
HEADS = 12
SWEEP_WIDTHS = (32, 64, 128)
SWEEP_LENGTHS = (4096, 16_384, 1024, 65_536, 8192, 32_768, 2048)
"""Lengths of the sweep, in an order that brackets a crossover early should time run out."""
QUICK_LENGTHS = (4096, 16_384, 1024)
CPU_LENGTHS = (256, 1024, 128, 512)
CPU_TOKENS = 1024


class Case(NamedTuple):
    """A problem, and who is timed on it."""

    title: str
    part: Part
    problem: Problem
    contenders: tuple[str, ...]


def cases(device: torch.device, op: str | None = None, quick: bool = False) -> list[Case]:
    """What is timed on a device: the table, then the sweep over lengths.

    Raises:
        ArgumentError: There is no operator of that name.
    """
    if op not in (None, "power", "attention"):
        raise ArgumentError(f"--op is one of power, attention; got {op!r}: choose one of them")
    if device.type == "cpu":
        made = [*_small_table(quick), *_sweep(CPU_LENGTHS[: 2 if quick else 4], CPU_TOKENS, 1, torch.float32, quick)]
    else:
        lengths = QUICK_LENGTHS if quick else SWEEP_LENGTHS
        made = [*_table(TOKENS // 8 if quick else TOKENS), *_sweep(lengths, TOKENS, HEADS, torch.bfloat16, quick)]
    return [case for case in made if op in (None, case.problem.op)]


def _table(tokens: int) -> Iterator[Case]:
    plain = Problem(op="power", dtype=torch.bfloat16, t=tokens, heads=HEADS, groups=HEADS, states=False)
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


def _sweep(lengths: Sequence[int], tokens: int, heads: int, dtype: torch.dtype, quick: bool) -> Iterator[Case]:
    backends = ("sdpa flash", "sdpa cudnn") if heads > 1 else ("sdpa flash",)
    for t in lengths:
        for width in SWEEP_WIDTHS[:2] if quick or heads == 1 else SWEEP_WIDTHS:
            base = Problem(
                "power", t, dtype, n=tokens // t, heads=heads, groups=heads, key=width, value=width, states=False
            )
            for p in (1, 2):
                yield Case(f"crossover d={width}, T={t:,}", "crossover", base._replace(p=p), ("auto",))
            softmax = base._replace(op="attention")
            yield Case(f"crossover d={width}, T={t:,}", "crossover", softmax, backends)


def _case(problem: Problem, *contenders: str) -> Case:
    window = f" {problem.window:,}" if problem.window else ""
    shape = f"N={problem.n:,}, T={problem.t:,}, H={problem.heads}, d={problem.key}"
    return Case(f"{problem.name}{window}: {shape}", "table", problem, contenders)
