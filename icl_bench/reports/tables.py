"""Tables of a report as rows of text; Markdown, HTML and the terminal lay the same rows out."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from icl_bench.errors import RecordError
from icl_bench.reports.analysis import Entry, Section, cell_of
from icl_bench.reports.capacities import Recall
from icl_bench.reports.fits import Load
from icl_bench.reports.naming import natural_key
from icl_bench.reports.ranking import Comparison, Ranking, difference_interval
from icl_bench.reports.statistics import chance_corrected, median, rate_window
from icl_bench.reports.text import NONE, bracketed, load, p_text, plain, quantity, share, size
from icl_bench.runs.outline import Outline
from icl_bench.runs.record import Environment, RunRecord

MAIN_HEADER = (
    "architecture",
    "accuracy",
    "95 % interval",
    "corrected",
    "exact match",
    "solved",
    "solved, 95 %",
    "state elements",
    "state",
    "parameters",
    "FLOPs",
    "weight-state",
    "learning rate",
    "failed",
)
COMPARISON_HEADER = (
    "best",
    "against",
    "difference",
    "95 % interval",
    "p, Holm",
    "p, medians",
    "solved",
    "p, Fisher",
    "outcome",
)
CAPACITY_HEADER = (
    "architecture",
    "state elements",
    "K50",
    "95 %",
    "K90",
    "95 %",
    "predicted",
    "recalled bits",
    "bits / element",
    "bound",
)
RATE_HEADER = (
    "architecture",
    "rates",
    "from",
    "to",
    "best",
    "validation",
    "median of sweep",
    "window, decades",
    "best lies",
)


class Name(str):
    """Text from outside: a name, an id, an error. It is shown as it is, in the type of code."""


class Table(NamedTuple):
    """A table; the first column is aligned left, the others right."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1
    """Columns aligned left."""


def main_table(section: Section) -> Table:
    """An entry a row: its size, its accuracy and how sure that is; then the floor and the oracle."""
    blanks = (NONE,) * 9
    floor = (Name("floor"), share(section.mean_floor), NONE, share(0.0), NONE, *blanks)
    oracle = (Name("oracle"), share(1.0), NONE, share(1.0), share(1.0), *blanks)
    return Table(MAIN_HEADER, (*(main_row(entry, section) for entry in section.entries), floor, oracle))


def main_row(entry: Entry, section: Section) -> tuple[str, ...]:
    """The row of an entry."""
    result, seeds = entry.example.result, len(entry.accuracies)
    corrected = corrected_scores(section, entry)
    return (
        Name(entry.label),
        share(entry.accuracy),
        bracketed(entry.interval) or NONE,
        share(median(corrected)) if corrected else NONE,
        share(entry.exact_match),
        f"{entry.solved}/{seeds}" if seeds else NONE,
        bracketed(entry.solved_interval, 2) or NONE,
        f"{entry.state_elements:,}" if entry.state_elements is not None else NONE,
        size(result.state.bytes if result.state else None),
        f"{result.params:,}" if result.params else NONE,
        quantity(result.work.weights + result.work.state),
        quantity(entry.ratio),
        f"{entry.rate:.3g}",
        f"{len(entry.failed)}/{len(entry.runs)}",
    )


def cell_table(section: Section, verdicts: Mapping[str, str]) -> Table:
    """Median accuracy by cell, the floor and its solver, and whether the cell ranks."""
    cells = section.cells
    floors = [section.floors[cell.label] for cell in cells]
    rows = [(Name(entry.label), *(cell_median(entry, cell.label) for cell in cells)) for entry in section.entries]
    rows += [
        (Name("floor"), *(share(floor.accuracy) for floor in floors)),
        (Name("oracle"), *(share(1.0) for _ in cells)),
        ("best trivial solver", *(Name(floor.solver) for floor in floors)),
        ("for a ranking", *(verdicts[cell.label] for cell in cells)),
    ]
    return Table(("architecture", *(Name(cell.label) for cell in cells)), tuple(rows))


def cell_median(entry: Entry, label: str) -> str:
    """Median accuracy in a cell."""
    found = list(entry.in_cell(label).values())
    return share(median(found)) if found else NONE


def own_answers_table(section: Section) -> Table:
    """By cell, what is right where answers are shown and where the model reads its own; empty where none are shown."""
    header = ("architecture", "answers read", "right", *(Name(cell.label) for cell in section.cells))
    entries = [entry for entry in section.entries if any(own_scores(entry, cell.label) for cell in section.cells)]
    rows = [row for entry in entries for row in own_answers_rows(entry, section)]
    oracle = (Name("oracle"), "either", "either", *(share(1.0) for _ in section.cells))
    return Table(header, (*rows, oracle) if rows else (), 3)


def own_answers_rows(entry: Entry, section: Section) -> list[tuple[str, ...]]:
    """The rows of an entry: tokens and whole examples, with shown and with own answers."""
    ways = (
        ("shown", "tokens", "accuracy"),
        ("shown", "examples", "exact_match"),
        ("its own", "tokens", "free_running"),
        ("its own", "examples", "free_running_exact"),
    )
    return [
        (Name(entry.label), read, right, *(field_median(entry, cell.label, field) for cell in section.cells))
        for read, right, field in ways
    ]


def field_median(entry: Entry, label: str, field: str) -> str:
    """Median over seeds of a field of the scores in a cell; a diverged run counts as 0."""
    found = [getattr(cell_of(run, label), field, 0.0) for run in entry.scored]
    known = [value for value in found if value is not None]
    return share(median(known)) if known else NONE


def own_scores(entry: Entry, label: str) -> list[float]:
    """Accuracy in a cell of each run that read its own answers."""
    found = [cell_of(run, label) for run in entry.scored]
    return [cell.free_running for cell in found if cell is not None and cell.free_running is not None]


def group_table(section: Section) -> Table:
    """Median over seeds of the accuracy on each group of scored positions, all cells together."""
    rows = [(Name(entry.label), *(group_median(entry, name) for name in section.groups)) for entry in section.entries]
    return Table(("architecture", *(Name(name) for name in section.groups)), tuple(rows))


def group_median(entry: Entry, group: str) -> str:
    """Median over seeds of the accuracy in a group."""
    shares = group_values(entry, group)
    return share(median(shares)) if shares else NONE


def group_values(entry: Entry, group: str) -> list[float]:
    """Accuracy of each seed in a group; a diverged run counts as 0."""
    return [found for run in entry.scored if (found := group_share(run, group)) is not None]


def group_share(run: RunRecord, group: str) -> float | None:
    """Accuracy of a run in a group, over all its cells."""
    if run.result.status == "diverged":
        return 0.0
    scores = [cell.groups[group] for cell in run.result.cells if group in cell.groups]
    total = sum(score.count for score in scores)
    return sum(score.accuracy * score.count for score in scores) / total if total else None


def comparison_table(ranked: Sequence[Ranking]) -> Table:
    """The best entry against each other one, in each group that was ranked; empty where no two share seeds."""
    pairs = [(ranking.best, row) for ranking in ranked if ranking.best for row in ranking.comparisons]
    shown = any(row.difference for _, row in pairs)
    return Table(COMPARISON_HEADER, tuple(comparison_row(best, row) for best, row in pairs) if shown else (), 2)


def comparison_row(best: Entry, row: Comparison) -> tuple[str, ...]:
    """The row of a comparison."""
    found = row.difference
    solved = f"{best.solved}/{len(best.accuracies)}, {row.other.solved}/{len(row.other.accuracies)}"
    return (
        Name(best.label),
        Name(row.other.label),
        f"{found.mean:+.3f}" if found else NONE,
        bracketed(difference_interval(found)) if found else NONE,
        p_text(row.p).removeprefix("= ") if found else NONE,
        p_text(row.median_p).removeprefix("= ") if found else NONE,
        solved,
        p_text(row.solved_p).removeprefix("= "),
        row.outcome,
    )


def capacity_table(recalled: Sequence[Recall]) -> Table:
    """K50, K90 and recalled bits by entry."""
    return Table(CAPACITY_HEADER, tuple(capacity_row(row) for row in recalled if row.capacity or row.bits is not None))


def capacity_row(row: Recall) -> tuple[str, ...]:
    """The row of an entry."""
    fit = row.capacity
    state = row.entry.state_elements
    return (
        Name(row.entry.label),
        f"{state:,}" if state is not None else NONE,
        load(fit.k50) if fit else NONE,
        load_interval(fit.k50) if fit else NONE,
        load(fit.k90) if fit else NONE,
        load_interval(fit.k90) if fit else NONE,
        quantity(row.predicted),
        quantity(row.bits),
        quantity(row.bits_per_element),
        quantity(row.bound),
    )


def load_interval(found: Load) -> str:
    """The interval of a load; none where all of it lies beyond the loads measured."""
    if found.interval is None or (found.side != "within" and found.interval.low == found.interval.high):
        return NONE
    return f"[{quantity(found.interval.low)}, {quantity(found.interval.high)}]"


def rate_table(section: Section) -> Table:
    """The sweep of learning rates by entry; empty where none was swept."""
    rows = [rate_row(entry) for entry in section.entries if len(entry.rates) > 1]
    floor = (Name("floor"), *(NONE,) * 4, share(section.mean_floor), share(section.mean_floor), NONE, NONE)
    oracle = (Name("oracle"), *(NONE,) * 4, share(1.0), share(1.0), NONE, NONE)
    return Table(RATE_HEADER, (*rows, floor, oracle) if rows else ())


def rate_row(entry: Entry) -> tuple[str, ...]:
    """The row of an entry."""
    scores = [max(0.0, rate.score) for rate in entry.rates]
    window = rate_window([rate.rate for rate in entry.rates], scores)
    return (
        Name(entry.label),
        str(len(scores)),
        f"{entry.rates[0].rate:.3g}",
        f"{entry.rates[-1].rate:.3g}",
        f"{entry.rate:.3g}",
        share(max(scores)),
        share(median(scores)),
        f"{'≥ ' if window.open_end else ''}{window.decades:.2f}",
        "at the edge" if entry.at_edge else "inside",
    )


def corrected_scores(section: Section, entry: Entry) -> list[float]:
    """Mean over cells of the chance-corrected accuracy, of each seed."""
    floors = {cell.label: section.floors[cell.label].accuracy for cell in section.cells}
    by_cell = {label: entry.in_cell(label) for label, floor in floors.items() if floor < 1}
    seeds = sorted(set.intersection(*map(set, by_cell.values()))) if by_cell else []
    return [
        sum(chance_corrected(found[seed], floors[label]) for label, found in by_cell.items()) / len(by_cell)
        for seed in seeds
    ]


def failure_table(section: Section) -> Table:
    """Runs that did not end well, by class."""
    failed = [(run, entry) for entry in section.entries for run in entry.failed]
    failed.sort(key=lambda pair: (pair[0].status, natural_key(pair[1].label), pair[0].id))
    return Table(
        ("class", "run", "architecture", "seed", "learning rate", "detail"), tuple(failure_row(*p) for p in failed), 6
    )


def failure_row(run: Outline, entry: Entry) -> tuple[str, ...]:
    """The row of a failed run."""
    result = run.record.result
    rate = f"{result.lr:.3g}"
    return (result.status, Name(result.id), Name(entry.label), str(result.seed), rate, Name(first_line(result.detail)))


def first_line(detail: str | None) -> str:
    """What went wrong in a line: the first, or of a traceback the last, which holds the error."""
    lines = [line for line in (detail or "").splitlines() if line.strip()]
    if not lines:
        return "no detail"
    return plain(lines[-1] if lines[0].startswith("Traceback") else lines[0])[:200]


def missing_table(section: Section) -> Table:
    """Runs that a sweep lacks: seeds that ran at other rates alone."""
    rows = [(Name(entry.label), gaps(entry.missing)) for entry in section.entries if entry.missing]
    return Table(("architecture", "not run"), tuple(rows), 2)


def gaps(missing: Sequence[tuple[int, float]]) -> str:
    """Seeds and rates, the first ten."""
    named = ", ".join(f"seed {seed} at {rate:.3g}" for seed, rate in missing[:10])
    return named + (f" and {len(missing) - 10} more" if len(missing) > 10 else "")


def problem_table(problems: Sequence[RecordError]) -> Table:
    """Records that could not be read."""
    return Table(("record",), tuple((Name(text),) for text in sorted(str(problem) for problem in problems)))


def environment_table(counts: Mapping[str, Counter[str]]) -> Table:
    """Every value that a property of the environment takes, with the number of runs where there are several."""
    return Table(("", "value"), tuple((key, Name(several(counted))) for key, counted in counts.items()), 2)


def environment_counts(environments: Sequence[Environment]) -> dict[str, Counter[str]]:
    """How many runs have which value of each property."""
    distinct = {id(one): one for one in environments}  # very many runs share few of them
    packages = sorted({name for one in distinct.values() for name in one.versions})
    rows = {name: Counter[str]() for name in (*packages, "device", "threads", "host", "revision", "kernels")}
    for key, number in Counter(map(id, environments)).items():
        one = distinct[key]
        for name in packages:
            rows[name][one.versions.get(name, "none")] += number
        rows["device"][one.device] += number
        rows["threads"][str(one.threads)] += number
        rows["host"][one.host] += number
        rows["revision"][one.revision or "none"] += number
        rows["kernels"][one.impl] += number
    return rows


def several(values: Counter[str]) -> str:
    """One value, or each with the number of its runs."""
    if len(values) == 1:
        return next(iter(values))
    return "; ".join(f"{value} ({number})" for value, number in sorted(values.items()))
