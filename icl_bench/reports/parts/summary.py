"""The main table of a section: size, accuracy or error, and learning rate of each entry."""

from icl_bench.reports.analysis import Section
from icl_bench.reports.blocks import Name, Notes, Table, table_of
from icl_bench.reports.entry import ZERO_ERROR, Entry
from icl_bench.reports.parts.accuracy import oracle_error
from icl_bench.reports.parts.base import Part
from icl_bench.reports.parts.solved import section_jumps
from icl_bench.reports.statistics import median, median_interval, wilson
from icl_bench.reports.text import (
    NONE,
    enumerate_words,
    format_bytes,
    format_integer,
    format_interval,
    format_level,
    format_number,
    format_share,
)
from icl_bench.runs.rates import GAP, LOCK_IN_MARGIN
from icl_bench.runs.record import SOLVED

CHOICES = {"median": "the median", "lock-in": "by the number of locked-in seeds, then the worst of these,"}
"""Rules by which a study chooses a learning rate, in words."""
OVER_SEEDS = (
    *("accuracy", "error", "interval of the median", "its level", "chance-corrected", "exact match", "solved seeds"),
)
"""Columns that describe all seeds by one number."""


def main_table(section: Section) -> Table:
    """Make a row for each entry, then for the floor and the oracle; errors replace accuracies where there are any.

    A section that opens with solved seeds has no scores over seeds.
    """
    rows = [main_row(entry, section) for entry in section.entries]
    if section_jumps(section):
        return table_of([{name: text for name, text in row.items() if name not in OVER_SEEDS} for row in rows])
    exact = {"chance-corrected": format_share(1.0), "exact match": format_share(1.0)}
    if section.has_errors:
        errors = [oracle_error(section, cell.label) for cell in section.cells]
        rows.append({"architecture": Name("answering 0"), "error": format_share(ZERO_ERROR)})
        rows.append({"architecture": Name("oracle"), "error": format_share(sum(errors) / len(errors)), **exact})
    else:
        floor = {"accuracy": format_share(section.mean_floor), "chance-corrected": format_share(0.0)}
        rows.append({"architecture": Name("floor"), **floor})
        rows.append({"architecture": Name("oracle"), "accuracy": format_share(1.0), **exact})
    return table_of(rows)


def main_row(entry: Entry, section: Section) -> dict[str, str]:
    """Make the row of an entry, with its weight-state FLOP ratio (arXiv 2507.04239, section 3.2)."""
    result, seeds = entry.example.result, len(entry.accuracies)
    work = result.work
    corrected = section.corrected_scores(entry)
    interval = median_interval(list(entry.errors.values())) if section.has_errors else entry.interval
    score = {"error": entry.error} if section.has_errors else {"accuracy": entry.accuracy}
    locked = len(section.locked_seeds(entry))
    return {
        "architecture": Name(entry.label),
        **{name: format_share(value) for name, value in score.items()},
        "interval of the median": format_interval(interval),
        "its level": format_level(interval),
        "chance-corrected": format_share(median(corrected) if corrected else None),
        "exact match": format_share(entry.exact_match),
        "training": section.training(entry),
        "locked-in seeds": f"{locked}/{seeds}" if seeds else NONE,
        "lock-in rate, 95 % interval": format_interval(wilson(locked, seeds) if seeds else None, 2),
        "solved seeds": f"{entry.solved_seeds}/{seeds}" if seeds else NONE,
        "state elements": format_integer(entry.state_elements),
        "state size": format_bytes(entry.state_bytes),
        "parameters": format_integer(result.params or None),
        "FLOPs per token": format_number(work.total),
        "weight-state FLOP ratio": format_number(work.weights / work.state if work.state else None),
        "learning rate": f"{entry.rate:.3g}",
        "failed runs": f"{len(entry.failed)}/{len(entry.runs)}",
    }


def main_notes(section: Section) -> Notes:
    """Explain the columns of the main table."""
    lengths = sorted({found.length for found in section.evaluations if found.length is not None})
    longest = enumerate_words([f"{length:,}" for length in lengths], "or") if lengths else "the last"
    common = section.common_parameters
    oracle = "the best answers that the context allows" if section.has_errors else "right on every scored position"
    over_seeds = (
        f"{'Error' if section.has_errors else 'Accuracy'} and exact match: median over seeds of the mean over cells, "
        "on test examples that are used once.",
        "Interval of the median: between two order statistics, exact for any distribution; its level is the "
        "probability with which it covers, at most 93.8 % with 5 seeds and 97.9 % with 10.",
        "Chance-corrected: (accuracy - floor) / (1 - floor), mean over cells, median over seeds.",
    )
    notes = (
        *(() if section_jumps(section) else over_seeds),
        f"Locked-in seeds: above the floor by {100 * LOCK_IN_MARGIN:.0f} % of the room above it, mean over cells; the "
        f"interval of their proportion is Wilson's. Solved seeds: those with an accuracy of at least {SOLVED}.",
        "Training: untrained, if no seed is locked in and the median is below the floor; at the floor, if no seed is "
        f"locked in; bimodal, if some are, or if neighbouring seeds are {GAP} apart; else trained.",
        f"State: all that the layers together carry from token to token, after {longest} tokens.",
        "FLOPs per token: of the mixers, in the forward pass. Weight-state FLOP ratio: operations on parameters "
        "divided by operations on the state.",
        f"Learning rate: the best by validation accuracy, {CHOICES[section.context.choice]} over the tuning seeds; "
        "test accuracy plays no part in the choice.",
        *([f"Equal in all architectures: {enumerate_words(common)}."] if common else []),
        "A diverged run counts as accuracy 0. Runs that failed in another way are left out of the scores.",
        f"Floor: the best trivial solver, on the same examples. Oracle: {oracle}.",
    )
    return Notes(notes)


PART = Part("", table=main_table, note=main_notes)
