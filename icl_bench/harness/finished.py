"""Finished runs that a command meets: those to repeat after an error, and those of an earlier source of a layer."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from icl_bench.runs.record import Status
from icl_bench.runs.spec import RunSpec
from icl_bench.runs.store import Store
from icl_bench.runs.store.files import Folder
from icl_bench.runs.store.index import Index
from icl_bench.schema import canonical_json

REPEATED: tuple[Status, ...] = ("error", "crashed", "timeout", "oom")
"""Outcomes that `--again` repeats; a run that diverged would diverge again."""


def set_failed_aside(store: Store, specs: Iterable[RunSpec]) -> list[str]:
    """Move the runs that ended in an error to the trash of the store, so that they run again; return their ids."""
    failed = [spec.id for spec in specs if store.has(spec.id) and store.load(spec.id).result.status in REPEATED]
    for run_id in failed:
        store.remove(run_id)
    return failed


def edited_parts(store: Store, specs: Sequence[RunSpec]) -> dict[str, int]:
    """Count the finished runs of each layer or task from outside that have another source than these new runs."""
    sources = {key_of_part(part): part["source"] for spec in specs for part in parts_of(spec.model_dump(mode="json"))}
    if not sources or not Folder(store.root).exists():
        return {}
    found: Counter[str] = Counter()
    outlines = Index(store).runs()[0].outlines
    for outline in outlines:
        for part in parts_of(outline.setting.spec, every=True):
            key = key_of_part(part)
            if key in sources and sources[key] != part.get("source"):
                found[part["name"]] += 1
    return dict(found)


def parts_of(spec: Mapping[str, Any], every: bool = False) -> list[Mapping[str, Any]]:
    """Return the task and the architectures of a specification that have a source; with `every`, all of them."""
    return [part for part in (spec["task"], *spec["arch"]) if every or "source" in part]


def key_of_part(part: Mapping[str, Any]) -> str:
    """Return a key that is equal for equal names and parameters, whatever the source."""
    return canonical_json([part["name"], part["params"]])
