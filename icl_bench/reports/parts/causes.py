"""Failures by what their probes show: outcomes and causes of a sweep, and probes of one run of each outcome."""

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple, get_args

from matplotlib.figure import Figure

from icl_bench.reports import canvas
from icl_bench.reports.analysis import Section
from icl_bench.reports.blocks import Name, Table, table_of
from icl_bench.reports.context import StudyContext
from icl_bench.reports.entry import Entry
from icl_bench.reports.parts.base import Part, SectionFigure
from icl_bench.runs.kept import lacking
from icl_bench.runs.outline import MeasuredRun
from icl_bench.runs.probes import Cause, Outcome, Probes, causes_of, ending_of
from icl_bench.runs.rates import SCORED

OUTCOMES: tuple[Outcome, ...] = ("trained", "slow", "plateau", "late-collapse", "explode", "nan")
"""Outcomes, from the best to the worst."""
NOT_FAILED: tuple[Outcome, ...] = ("trained", "slow")
CAUSES: tuple[Cause, ...] = get_args(Cause)
NOTE = (
    "All runs that kept probes, at every rate and seed. Trained, slow (still rising at the end), plateau (never above "
    "the floor by 5 % of the range), late collapse, explode and nan are the outcomes of runs. Of those that neither "
    "trained nor still rose the last columns count those that show a cause, in any layer: eps, most tokens at the "
    "constant of the normaliser; sink, one key with most of the weight of over a quarter of the tokens; starved, a "
    "gradient of the queries below a thousandth of that of the values; over-clipped, more than nine tenths of the "
    "updates. A run may show several, or none."
)


class ProbedRun(NamedTuple):
    """A run that keeps probes, with its outcome."""

    entry: Entry
    run: MeasuredRun
    outcome: Outcome


class TypicalRun(NamedTuple):
    """A run that stands for its outcome."""

    found: ProbedRun
    probes: Probes

    @property
    def name(self) -> str:
        """Its outcome, its entry and its learning rate."""
        outcome = self.found.outcome.replace("-", " ")
        return f"{outcome}: {self.found.entry.label}, rate {self.found.run.result.lr:.2g}"


class DrawnProbe(NamedTuple):
    """A probe that the figure draws."""

    ending: str
    """End of its names; of several layers the largest value is drawn."""
    title: str
    logarithmic: bool


PANELS = (
    DrawnProbe("gradient", "norm of the gradient", True),
    DrawnProbe("largest_score", "largest score", True),
    DrawnProbe("eps_share", "share of tokens at the constant", False),
    DrawnProbe("sink_share", "share of tokens at one key", False),
)
"""Probes that tell how a run fails."""


def keeps_probes(run: MeasuredRun) -> bool:
    """Return whether a run keeps probes."""
    return not lacking(run.result.files, ("probes",))


def probed_runs(section: Section) -> Iterator[ProbedRun]:
    """Yield the runs of a section that keep probes, at every rate, of the entries of which some that measure do."""
    for entry in section.entries:
        for outline in entry.runs if any(map(keeps_probes, entry.measured)) else ():
            run = entry.load(outline.id)
            if outline.status in SCORED and keeps_probes(run):
                result = run.result
                ending = ending_of(result.status, result.steps, result.detail, run.curve, result.floor)
                yield ProbedRun(entry, run, ending.outcome)


def cause_table(section: Section) -> Table:
    """Make a row for each entry with runs that keep probes."""
    outcomes: dict[Entry, Counter[Outcome]] = {}
    causes: dict[Entry, Counter[Cause]] = {}
    for entry, run, outcome in probed_runs(section):
        outcomes.setdefault(entry, Counter())[outcome] += 1
        shown = causes.setdefault(entry, Counter())
        if outcome not in NOT_FAILED and (probes := section.probes(run.result)) is not None:
            shown.update(causes_of(probes.until(run.result.steps), run.spec["train"]["clip"]))
    return table_of([cause_row(entry, outcomes[entry], causes[entry]) for entry in outcomes])


def cause_row(entry: Entry, outcomes: Counter[Outcome], causes: Counter[Cause]) -> dict[str, str]:
    """Make the row of an entry."""
    return {
        "architecture": Name(entry.label),
        "runs": str(outcomes.total()),
        **{outcome.replace("-", " "): str(outcomes[outcome]) for outcome in OUTCOMES},
        **{cause: str(causes[cause]) for cause in CAUSES},
    }


def typical_runs(section: Section) -> list[TypicalRun]:
    """Return the first run of each outcome, the worst first; empty where none failed."""
    first: dict[Outcome, ProbedRun] = {}
    for found in probed_runs(section):
        first.setdefault(found.outcome, found)
    if first.keys() <= set(NOT_FAILED):
        return []
    ordered = [first[outcome] for outcome in reversed(OUTCOMES) if outcome in first and outcome != "slow"]
    kept = [(one, section.probes(one.run.result)) for one in ordered]
    return [TypicalRun(one, probes.until(one.run.result.steps)) for one, probes in kept if probes is not None]


def draw_onsets(section: Section, context: StudyContext) -> Figure | None:
    """Draw probes over training for a run of each outcome; None where no run with probes failed."""
    runs = typical_runs(section)
    if not runs:
        return None
    figure, axes = canvas.new_figure(430, 2, 2, sharey=False)
    styles = [canvas.series_style(i) for i in range(len(runs))]
    for one, panel in zip(axes, PANELS, strict=True):
        for run, style in zip(runs, styles, strict=True):
            if points := run.probes.largest(panel.ending):
                one.plot(*zip(*points, strict=True), color=style.colour, linestyle=style.dash)
        if panel.logarithmic:
            one.set_yscale("log")
            canvas.write_decades(one.yaxis)
        else:
            one.set_ylim(-0.02, 1.02)
        one.set_title(panel.title, loc="left")
        one.set_xlabel("updates")
    canvas.legend_below(figure, styles, [run.name for run in runs])
    return figure


PART = Part(
    "Failures and their causes",
    cause_table,
    SectionFigure(
        "onsets",
        "Probes over training for the first run of each outcome that occurs: of several layers, the largest value. A "
        "run that was lost ends there.",
        draw_onsets,
    ),
    NOTE,
)
