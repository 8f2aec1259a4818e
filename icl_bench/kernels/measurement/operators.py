"""The operators that are checked and timed: their problems and their timed cases."""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch

from icl_bench.errors import ArgumentError
from icl_bench.kernels.measurement import convolution, delta, scan, scores
from icl_bench.kernels.measurement.problem import Case, Problem


class MeasuredOperator(NamedTuple):
    """The forms, problems and timed cases of an operator."""

    impls: tuple[str, ...]
    problems: Callable[[torch.dtype, tuple[int, ...]], Iterator[Problem]]
    """Problems of a type at some lengths, on which it is checked."""
    table: Callable[[bool], Iterator[Case]]
    """Cases that are timed on CUDA; true for smaller ones."""
    small_table: Callable[[bool], Iterator[Case]]
    """The same on a CPU."""


OPERATORS: Mapping[str, MeasuredOperator] = {
    "power": MeasuredOperator(
        scores.MeasuredPower.impls, scores.power_problems, scores.power_table, scores.small_power_table
    ),
    "attention": MeasuredOperator(
        scores.MeasuredAttention.impls, scores.attention_problems, scores.attention_table, scores.small_attention_table
    ),
    "delta": MeasuredOperator(
        delta.MeasuredDelta.impls, delta.delta_problems, delta.delta_table, delta.small_delta_table
    ),
    "scan": MeasuredOperator(scan.ScanProblem.impls, scan.scan_problems, scan.scan_table, scan.small_scan_table),
    "long-convolution": MeasuredOperator(
        convolution.MeasuredConvolution.impls, convolution.convolution_problems, convolution.convolution_table,
        convolution.small_convolution_table,
    ),
}  # fmt: skip
"""The operators by name: an operator with kernels has one entry here."""


def known_operators(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the operators of these names, or all for none; raise ArgumentError for an unknown name."""
    for name in names:
        if name not in OPERATORS:
            raise ArgumentError(f"--op is one of {', '.join(OPERATORS)}; got {name!r}: choose one of them")
    return names or tuple(OPERATORS)


def timed_cases(device: torch.device, ops: tuple[str, ...] = (), quick: bool = False) -> list[Case]:
    """Return the cases of a device, of some operators or all: the table, then the sweep over lengths."""
    cpu, names = device.type == "cpu", known_operators(ops)
    cases = [
        case for name in names for case in (OPERATORS[name].small_table(quick) if cpu else OPERATORS[name].table(quick))
    ]
    return cases + [case for case in scores.crossover_sweep(cpu, quick) if case.problem.op in names]
