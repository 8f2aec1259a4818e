"""The listing of runs: finished, interrupted and running ones, and the filters that select them."""

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import Any, NamedTuple, get_args

from icl_bench.errors import SpecError, StoreError
from icl_bench.runs.record import Status
from icl_bench.runs.store.attempt import Attempt, attempts
from icl_bench.runs.store.checkpoint import saved_fleets
from icl_bench.runs.store.index import Summary
from icl_bench.runs.store.parsing import parse_object
from icl_bench.runs.store.store import RUN_ID, Store
from icl_bench.schema import LARGEST_COUNT, nearest

INTERRUPTED, RUNNING = "interrupted", "running"
STATUSES = (*get_args(Status), INTERRUPTED, RUNNING)
FALLING = ("accuracy", "seconds", "started")
"""Columns whose largest values come first."""
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

    def unknown(self, rows: Iterable[Summary]) -> Iterator[str]:
        """Yield a line for each task and architecture asked for that none of the rows has."""
        for kind, asked in (("task", self.task), ("arch", self.arch)):
            known = {name for row in rows for name in names_of(getattr(row, kind))}
            if asked is not None and asked not in known:
                yield f"no run has the {kind} {asked!r}; {nearest(asked, known)}there are {', '.join(sorted(known))}"


def check_status(status: str | None) -> None:
    """Refuse a status that no run can have; raises SpecError."""
    if status is not None and status not in STATUSES:
        hint = nearest(status, STATUSES)
        raise SpecError(f"--status is one of {', '.join(STATUSES)}; got {status!r}; {hint}choose one of them")


def sort_rows(rows: list[Summary], column: str | None) -> list[Summary]:
    """Sort runs by a column; accuracy, seconds and started fall, the others rise; raise SpecError for no column."""
    if column is None:
        return rows
    if column not in Summary._fields:
        hint = nearest(column, Summary._fields)
        raise SpecError(
            f"--sort takes a column: {', '.join(Summary._fields)}; got {column!r}; {hint}choose one of them"
        )
    known = [row for row in rows if getattr(row, column) is not None]
    unknown = [row for row in rows if getattr(row, column) is None]
    return sorted(known, key=attrgetter(column), reverse=column in FALLING) + unknown


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
        specs[attempt.run_id] = specs.get(attempt.run_id) or attempted_spec(attempt)
    for fleet in saved_fleets(store.root):
        for run_id, spec in fleet.runs.items():
            if RUN_ID.fullmatch(run_id):
                active.setdefault(run_id, False)
                specs[run_id] = specs.get(run_id) or spec
    return [
        unfinished_row(run_id, specs[run_id], RUNNING if active[run_id] else INTERRUPTED)
        for run_id in sorted(run_id for run_id in active if not store.has(run_id))
    ]


def unfinished_row(run_id: str, spec: Mapping[str, Any], status: str) -> Summary:
    """Return the line of a run without a result, from its specification as far as that is readable."""
    pattern, seed = spec.get("arch"), spec.get("seed")
    arch = "+".join(name_in(part) for part in pattern) if isinstance(pattern, list) else ""
    whole = seed if isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < LARGEST_COUNT else None
    return Summary(run_id, name_in(spec.get("task")), arch, whole, 0.0, status, 0.0, started="", seconds=None)


def name_in(component: object) -> str:
    """Return the name of a stored task or architecture."""
    return str(component.get("name", "")) if isinstance(component, Mapping) else ""


def attempted_spec(attempt: Attempt) -> Mapping[str, Any]:
    """Return the specification of an attempt; empty if the attempt was interrupted before writing it."""
    try:
        with attempt.folder.opened() as folder:
            return parse_object(folder.read("spec.json"), folder.path / "spec.json")
    except (OSError, StoreError):
        return {}
