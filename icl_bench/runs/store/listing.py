"""The listing of runs: finished, interrupted and running ones, and the filters that select them."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from icl_bench.errors import RecordError, SpecError
from icl_bench.runs.store.attempt import Attempt, attempts
from icl_bench.runs.store.checkpoint import fleets
from icl_bench.runs.store.files import parse_object, read_bytes
from icl_bench.runs.store.index import Summary
from icl_bench.runs.store.store import RUN_ID, Store

INTERRUPTED, RUNNING = "interrupted", "running"
AGO = re.compile(r"(\d{1,6})([mhdw])")
TIME_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class Filters(NamedTuple):
    """The filters of a listing; a filter that is None selects every run."""

    task: str | None = None
    """Label or name of a task."""
    arch: str | None = None
    """Label or name of an architecture."""
    status: str | None = None
    """Status of a finished run, or `interrupted` or `running`."""
    since: datetime | None = None
    """Earliest start time."""

    def admit(self, row: Summary) -> bool:
        """Return whether a run passes all filters."""
        return (
            (self.task is None or self.task in names_of(row.task))
            and (self.arch is None or self.arch in names_of(row.arch))
            and (self.status is None or self.status == row.status)
            and (self.since is None or started_at(row) >= self.since)
        )


def names_of(label: str) -> tuple[str, str]:
    """Return a label, and the name that the label begins with."""
    return label, label.partition(":")[0]


def started_at(row: Summary) -> datetime:
    """Return the start time of a run; the earliest possible time if the manifest gives none."""
    try:
        return aware(datetime.fromisoformat(row.started))
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)


def aware(time: datetime) -> datetime:
    """Return the time with a time zone: its own, or UTC."""
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def parse_since(text: str, now: datetime) -> datetime:
    """Parse a date, a time, or a duration before now, 90m, 12h, 3d, 2w; raise SpecError for other text.

    >>> parse_since("12h", datetime(2026, 1, 2, tzinfo=UTC)).isoformat()
    '2026-01-01T12:00:00+00:00'
    """
    ago = AGO.fullmatch(text)
    try:
        return now - timedelta(**{TIME_UNITS[ago[2]]: int(ago[1])}) if ago else aware(datetime.fromisoformat(text))
    except (ValueError, OverflowError):
        raise SpecError(
            f"--since is a date, a time or a duration before now; got {text!r:.60}; write 2026-01-31, 2026-01-31T12:00 "
            "or 12h"
        ) from None


def unfinished(store: Store) -> list[Summary]:
    """Return the runs with an attempt or a checkpoint but no result, in the order of ids; unknown values are empty."""
    active: dict[str, bool] = {}
    specs: dict[str, Mapping[str, Any]] = {}
    for attempt in attempts(store.root):
        active[attempt.run_id] = active.get(attempt.run_id, False) or attempt.active
        specs.setdefault(attempt.run_id, spec_of(attempt))
    for _, run_ids in fleets(store.root):
        for run_id in run_ids:
            if RUN_ID.fullmatch(run_id):
                active.setdefault(run_id, False)
    rows = []
    for run_id in sorted(run_id for run_id in active if not store.has(run_id)):
        spec = specs.get(run_id, {})
        pattern = spec.get("arch")
        arch = "+".join(name_in(part) for part in pattern) if isinstance(pattern, list) else ""
        seed = spec["seed"] if isinstance(spec.get("seed"), int) else 0
        status = RUNNING if active[run_id] else INTERRUPTED
        rows.append(Summary(run_id, name_in(spec.get("task")), arch, seed, 0.0, status, 0.0, started="", seconds=None))
    return rows


def name_in(component: object) -> str:
    """Return the name of a stored task or architecture."""
    return str(component.get("name", "")) if isinstance(component, Mapping) else ""


def spec_of(attempt: Attempt) -> Mapping[str, Any]:
    """Return the specification of an attempt; empty if the attempt was interrupted before writing it."""
    path = attempt.folder / "spec.json"
    try:
        return parse_object(read_bytes(path), path)
    except RecordError:
        return {}
