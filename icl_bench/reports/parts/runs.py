"""Failed runs, runs that a sweep lacks, and the environments of all, with warnings where they may change numbers."""

from collections import Counter, defaultdict
from collections.abc import Sequence

from icl_bench.reports.analysis import Section
from icl_bench.reports.blocks import Content, Name, Prose, Table, titled
from icl_bench.reports.naming import natural_key
from icl_bench.reports.parts.base import Part
from icl_bench.reports.text import enumerate_words
from icl_bench.runs.outline import Outline
from icl_bench.runs.record import Environment
from icl_bench.schema import canonical_json


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
    return (lines[-1] if lines[0].startswith("Traceback") else lines[0]).strip()[:200]


def missing_table(section: Section) -> Table:
    """Make a row for each entry whose sweep lacks runs: tuning seeds that did not run at every rate."""
    rows = [(Name(entry.label), missing_runs(entry.missing)) for entry in section.entries if entry.missing]
    return Table(("architecture", "missing runs"), tuple(rows), 2)


def missing_runs(missing: Sequence[tuple[int, float]]) -> str:
    """Format the first ten pairs of seed and learning rate."""
    named = ", ".join(f"seed {seed} at {rate:.3g}" for seed, rate in missing[:10])
    return named + (f" and {len(missing) - 10} more" if len(missing) > 10 else "")


MIXING = ("icl-bench", "torch", "triton", "device", "threads", "revision", "kernels")
"""Properties of the environment that may change numbers: the report warns where runs differ in one."""


def environment_blocks(runs: Sequence[Outline]) -> list[Content]:
    """Return warnings and the table of environments."""
    if not runs:
        return []
    counts = environment_counts([run.environment for run in runs])
    warnings = []
    if mixed := [key for key, values in counts.items() if key in MIXING and len(values) > 1]:
        rule = "numbers are equal bit for bit only where these properties are equal"
        warnings.append(f"the runs differ in {enumerate_words(mixed)}; {rule}.")
    if differing_data(runs):
        warnings.append("runs of the same task and data seed began training on different examples.")
    for task, versions in mixed_versions(runs).items():
        warnings.append(
            f"the runs of {task} are on versions {enumerate_words(versions)} of its data; they do not compare."
        )
    table = Table(("property", "value"), tuple((key, Name(values_text(found))) for key, found in counts.items()), 2)
    return titled(2, "Environment", *(Prose(text, warning=True) for text in warnings), table)


def environment_counts(environments: Sequence[Environment]) -> dict[str, Counter[str]]:
    """Count the runs that have each value of each property."""
    distinct = {id(one): one for one in environments}  # very many runs share few environments
    packages = sorted({name for one in distinct.values() for name in one.versions})
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for key, number in Counter(map(id, environments)).items():
        one = distinct[key]
        values = {name: one.versions.get(name, "none") for name in packages}
        values |= {"device": one.device, "threads": str(one.threads), "host": one.host}
        values |= {"revision": one.revision or "none", "kernels": one.impl}
        for name, value in values.items():
            counts[name][value] += number
    return counts


def values_text(values: Counter[str]) -> str:
    """Format the only value, or each value with its number of runs."""
    listed = "; ".join(f"{value} ({number})" for value, number in sorted(values.items()))
    return listed if len(values) > 1 else next(iter(values))


def mixed_versions(runs: Sequence[Outline]) -> dict[str, list[str]]:
    """Return the versions of the data of each task of which the runs have several."""
    settings = {run.setting for run in runs}
    known = sorted({(one.spec["task"]["name"], one.spec["task"]["version"]) for one in settings})
    found: dict[str, list[str]] = defaultdict(list)
    for name, version in known:
        found[name].append(str(version))
    return {name: versions for name, versions in found.items() if len(versions) > 1}


def differing_data(runs: Sequence[Outline]) -> bool:
    """Return whether runs of one task, batch size and data seed began with different examples."""
    known = [(run.first_batch, run.setting, run.seeds[1]) for run in runs if run.first_batch is not None]
    data = {one: canonical_json([one.spec["task"], one.spec["train"]["batch"]]) for _, one, _ in known}
    seen: dict[tuple[str, int], str] = {}
    return any(seen.setdefault((data[setting], seed), digest) != digest for digest, setting, seed in known)


FAILED_PART = Part("Failed runs", failure_table)
MISSING_PART = Part("Missing runs", missing_table)
