"""The choice of a learning rate from validation accuracy: one rule for studies and for reports."""

from collections.abc import Collection, Mapping, Sequence
from statistics import median

from icl_bench.runs.record import RunRecord, Status

SCORED: Collection[Status] = ("ok", "diverged")
"""Statuses after which a run counts as a measurement of recall."""


def validation_accuracy(run: RunRecord) -> float:
    """Return the accuracy at the last validation; 0 unless the run ended with status `ok`."""
    return run.metrics[-1].accuracy if run.metrics and run.result.status == "ok" else 0.0


def rate_score(accuracies: Sequence[float]) -> float:
    """Return the median over the seeds of one learning rate; -1, below every accuracy, if there are none."""
    return median(accuracies) if accuracies else -1.0


def choose_rate(scores: Mapping[float, float]) -> float:
    """Return the learning rate with the best score; among equal scores the middle rate, or the lower of two.

    >>> choose_rate({1e-4: 0.2, 1e-3: 0.9, 1e-2: 0.9})
    0.001
    """
    best = max(scores.values())
    tied = sorted(rate for rate, score in scores.items() if score == best)
    return tied[(len(tied) - 1) // 2]
