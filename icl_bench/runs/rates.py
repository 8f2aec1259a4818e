"""The choice of a learning rate from validation accuracy, and lock-in: one rule for studies and for reports."""

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from statistics import median
from typing import Literal, TypeVar

from icl_bench.runs.record import RunRecord, Status

Choice = Literal["lock-in", "median"]
"""Rule by which a learning rate is chosen: by the seeds that lock in and the worst of them, or by the median seed."""
Rank = TypeVar("Rank", float, tuple[float, ...])

SCORED: Collection[Status] = ("ok", "diverged")
"""Statuses after which a run counts as a measurement of recall."""
LOCK_IN_MARGIN = 0.1
"""Part of the room above the floor that a seed must gain to count as locked in, that is, as having left the floor."""
GAP = 0.2
"""Difference in accuracy between neighbouring seeds from which they belong to different modes."""


def validation_accuracy(run: RunRecord) -> float:
    """Return the accuracy at the last validation; 0 unless the run ended with status `ok`."""
    return run.metrics[-1].accuracy if run.metrics and run.result.status == "ok" else 0.0


def rate_score(accuracies: Sequence[float]) -> float:
    """Return the median over the seeds of one learning rate; -1, below every accuracy, if there are none."""
    return median(accuracies) if accuracies else -1.0


def rate_rank(accuracies: Sequence[float], floor: float, choice: Choice) -> tuple[float, ...]:
    """Return the rank of a learning rate, higher for a better one, from the validation accuracies of its seeds.

    By `lock-in`, first the number of seeds that lock in counts, then the worst of these, then the median of all: the
    worst seed decides among rates at which every seed trains.

    >>> rate_rank([0.05, 0.9], 0.05, "lock-in") < rate_rank([0.4, 0.5], 0.05, "lock-in")
    True
    """
    middle = rate_score(accuracies)
    if choice == "median":
        return (middle,)
    trained = [accuracy for accuracy in accuracies if locked_in(accuracy, floor)]
    return len(trained), min(trained, default=0.0), middle


def choose_rate(scores: Mapping[float, Rank]) -> float:
    """Return the learning rate with the best score or rank; among equal ones the middle rate, or the lower of two.

    >>> choose_rate({1e-4: 0.2, 1e-3: 0.9, 1e-2: 0.9})
    0.001
    """
    best = max(scores.values())
    tied = sorted(rate for rate, score in scores.items() if score == best)
    return tied[(len(tied) - 1) // 2]


def locked_in(accuracy: float, floor: float) -> bool:
    """Return whether a seed is locked in: above the floor by a tenth of the room that the floor leaves.

    >>> locked_in(0.19, 0.1), locked_in(0.18, 0.1)
    (True, False)
    """
    return accuracy >= floor + LOCK_IN_MARGIN * (1 - floor)


def is_bimodal(accuracies: Sequence[float], floor: float) -> bool:
    """Return whether seeds fall into two modes: some locked in and some not, or a gap of .2 between neighbours.

    >>> is_bimodal([0.05, 0.05, 0.8, 0.81], 0.1), is_bimodal([0.3, 0.35, 0.42], 0.1)
    (True, False)
    """
    ordered = sorted(accuracies)
    gaps = (high - low for low, high in pairwise(ordered))
    return len({locked_in(accuracy, floor) for accuracy in ordered}) == 2 or any(gap >= GAP for gap in gaps)
