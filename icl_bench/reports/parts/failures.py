"""Failed runs, and runs that a sweep lacks."""

from collections.abc import Sequence

from icl_bench.reports.analysis import Section
from icl_bench.reports.blocks import Name, Table
from icl_bench.reports.naming import natural_key
from icl_bench.reports.parts.base import Part
from icl_bench.reports.text import plain


def failure_table(section: Section) -> Table:
    """Make a row for each run that did not end well, by status."""
    failed = [(entry.load(run.id).result, entry) for entry in section.entries for run in entry.failed]
    failed.sort(key=lambda pair: (pair[0].status, natural_key(pair[1].label), pair[0].id))
    rows = [
        (run.status, Name(run.id), Name(entry.label), str(run.seed), f"{run.lr:.3g}", Name(error_line(run.detail)))
        for run, entry in failed
    ]
    return Table(("status", "run", "architecture", "seed", "learning rate", "detail"), tuple(rows), 6)


def error_line(detail: str | None) -> str:
    """Return the line that names the error: the first line, or the last of a traceback."""
    lines = [line for line in (detail or "").splitlines() if line.strip()] or ["no detail"]
    return plain(lines[-1] if lines[0].startswith("Traceback") else lines[0])[:200]


def missing_table(section: Section) -> Table:
    """Make a row for each entry whose sweep lacks runs: tuning seeds that did not run at every rate."""
    rows = [(Name(entry.label), missing_runs(entry.missing)) for entry in section.entries if entry.missing]
    return Table(("architecture", "missing runs"), tuple(rows), 2)


def missing_runs(missing: Sequence[tuple[int, float]]) -> str:
    """Format the first ten pairs of seed and learning rate."""
    named = ", ".join(f"seed {seed} at {rate:.3g}" for seed, rate in missing[:10])
    return named + (f" and {len(missing) - 10} more" if len(missing) > 10 else "")


FAILED_PART = Part("Failed runs", failure_table)
MISSING_PART = Part("Missing runs", missing_table)
