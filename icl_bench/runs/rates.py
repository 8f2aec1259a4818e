"""How a learning rate is chosen: on validation alone, by the same rule in a study and in its report."""

from collections.abc import Collection, Mapping, Sequence
from statistics import median

from icl_bench.runs.record import RunRecord, Status

SCORED: Collection[Status] = ("ok", "diverged")
"""Ends after which a run says something about recall: it ended well, or it diverged."""


def has_score(run: RunRecord) -> bool:
    """Whether the run says something about recall."""
    return run.result.status in SCORED


def validation_accuracy(run: RunRecord) -> float:
    """Accuracy at the last validation; 0 for a run that did not end well."""
    return run.metrics[-1].accuracy if run.metrics and run.result.status == "ok" else 0.0


def rate_score(accuracies: Sequence[float]) -> float:
    """Median over seeds; below any accuracy where no run has a score."""
    return median(accuracies) if accuracies else -1.0


def choose_rate(scores: Mapping[float, float]) -> float:
    """The rate with the best score; of equal ones the middle, the lower of two.

    >>> choose_rate({1e-4: 0.2, 1e-3: 0.9, 1e-2: 0.9})
    0.001
    """
    best = max(scores.values())
    tied = sorted(rate for rate, score in scores.items() if score == best)
    return tied[(len(tied) - 1) // 2]
