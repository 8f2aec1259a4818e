"""Runs as a listing shows them: those that are finished, and those that were cut or are under way."""

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from icl_bench.errors import RecordError, SpecError
from icl_bench.runs.store.attempt import Attempt, attempts
from icl_bench.runs.store.checkpoint import fleets
from icl_bench.runs.store.files import parse_object, read_bytes
from icl_bench.runs.store.rows import Summary
from icl_bench.runs.store.store import RUN_ID, Store

INTERRUPTED, RUNNING = "interrupted", "running"
AGO = re.compile(r"(\d{1,6})([mhdw])")
UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class Filters(NamedTuple):
    """What a listing leaves out; none of these leaves nothing out."""

    task: str | None = None
    """A task, by its label or its name alone."""
    arch: str | None = None
    """An architecture, by its label or its name alone."""
    status: str | None = None
    """How a run ended; `interrupted` where it was cut, `running` where it goes on."""
    since: datetime | None = None
    """Started at that time or later."""

    def admit(self, row: Summary) -> bool:
        """Whether a run is shown."""
        return (
            (self.task is None or self.task in names_of(row.task))
            and (self.arch is None or self.arch in names_of(row.arch))
            and (self.status is None or self.status == row.status)
            and (self.since is None or started_at(row) >= self.since)
        )


def names_of(label: str) -> tuple[str, str]:
    """A label, and the name that it begins with."""
    return label, label.partition(":")[0]


def started_at(row: Summary) -> datetime:
    """When a run started; long ago where its manifest does not say."""
    try:
        return aware(datetime.fromisoformat(row.started))
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)


def aware(time: datetime) -> datetime:
    """A time of a zone: UTC where it has none."""
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def parse_since(text: str, now: datetime) -> datetime:
    """A date, a time, or how long ago: 90m, 12h, 3d, 2w.

    >>> parse_since("12h", datetime(2026, 1, 2, tzinfo=UTC)).isoformat()
    '2026-01-01T12:00:00+00:00'

    Raises:
        SpecError: where it is none of these.
    """
    ago = AGO.fullmatch(text)
    try:
        return now - timedelta(**{UNITS[ago[2]]: int(ago[1])}) if ago else aware(datetime.fromisoformat(text))
    except (ValueError, OverflowError):
        raise SpecError(
            f"--since is a date, a time or how long ago; got {text!r:.60}; write 2026-01-31, 2026-01-31T12:00 or 12h"
        ) from None


def unfinished(store: Store) -> list[Summary]:
    """Runs of which there is an attempt or a checkpoint and no result, in the order of ids."""
    alive: dict[str, bool] = {}
    told: dict[str, Mapping[str, Any]] = {}
    for attempt in attempts(store.root):
        alive[attempt.run_id] = alive.get(attempt.run_id, False) or attempt.alive
        told.setdefault(attempt.run_id, spec_of(attempt))
    for _, run_ids in fleets(store.root):
        for run_id in run_ids:
            if RUN_ID.fullmatch(run_id):
                alive.setdefault(run_id, False)
    cut = [run_id for run_id in sorted(alive) if not store.has(run_id)]
    return [unfinished_row(run_id, alive[run_id], told.get(run_id, {})) for run_id in cut]


def unfinished_row(run_id: str, alive: bool, spec: Mapping[str, Any]) -> Summary:
    """A run without a result; what is not known of it is left empty."""
    arch = spec.get("arch")
    return Summary(
        id=run_id,
        task=name_in(spec.get("task")),
        arch="+".join(name_in(part) for part in arch) if isinstance(arch, list) else "",
        seed=spec["seed"] if isinstance(spec.get("seed"), int) else 0,
        lr=0.0,
        status=RUNNING if alive else INTERRUPTED,
        accuracy=0.0,
        started="",
        seconds=None,
    )


def name_in(component: object) -> str:
    """The name of a stored task or architecture."""
    return str(component.get("name", "")) if isinstance(component, Mapping) else ""


def spec_of(attempt: Attempt) -> Mapping[str, Any]:
    """The specification of an attempt; empty where it was cut before that was written."""
    path = attempt.folder / "spec.json"
    try:
        return parse_object(read_bytes(path), path)
    except RecordError:
        return {}


def listed(finished: Iterable[Summary], cut: Iterable[Summary], filters: Filters) -> Iterator[Summary]:
    """What a listing shows, finished runs first."""
    yield from (row for row in finished if filters.admit(row))
    yield from (row for row in cut if filters.admit(row))
