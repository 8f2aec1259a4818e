"""Probes of a run: numbers measured during training that tell why it fails; its outcome, and the causes of it."""

from collections.abc import Sequence
from statistics import median
from typing import Literal, NamedTuple, Self

from pydantic import model_validator

from icl_bench.runs.record import SCHEMA
from icl_bench.schema import Count, Frozen, Real

Outcome = Literal["nan", "explode", "late-collapse", "plateau", "slow", "trained"]
Cause = Literal["eps", "sink", "starved", "over-clipped"]

COLLAPSE_PEAK, COLLAPSE_END = 0.5, 0.5
"""Share of the range above the floor that a run must have reached, and share of its best below which it ends, for a
late collapse."""
PLATEAU = 0.05
"""Share of the range above the floor that a run on a plateau never reaches."""
RISE = 0.02
"""Rise of validation accuracy over the last third of the validations from which a run counts as still rising."""
EPS_SHARE, SINK_SHARE, CLIPPED_SHARE, STARVED = 0.5, 0.25, 0.9, 1e-3
"""Limits of the causes: shares of tokens at eps and at one key, share of clipped steps, gradient of q by that of v."""


class ProbePoint(Frozen):
    """The numbers of one member at one step."""

    step: Count
    """Number of updates done."""
    values: tuple[Real | None, ...]
    """Values in the order of the names; none for a value that is not finite."""


class Probes(Frozen):
    """The file probes.json of a run."""

    schema_version: int = SCHEMA
    """Version of this layout."""
    id: str
    """Id of the run."""
    task: str
    """Label of the task."""
    arch: str
    """Label of the architecture."""
    names: tuple[str, ...]
    """Names of the numbers: `gradient`, and for each layer such as `block0.gradient.q` or `block0.largest_score`."""
    points: tuple[ProbePoint, ...]
    """The numbers at about every 2 % of the steps, in order."""

    @model_validator(mode="after")
    def _check_values(self) -> Self:
        if any(len(point.values) != len(self.names) for point in self.points):
            raise ValueError("a point has a value for each name")
        return self

    def places(self, ending: str) -> list[int]:
        """Return the places of the names with this ending."""
        return [i for i, name in enumerate(self.names) if name == ending or name.endswith(f".{ending}")]

    def column(self, ending: str) -> list[list[float]]:
        """Return the known values over the steps of each name with this ending, a list for each name."""
        places = self.places(ending)
        return [[value for point in self.points if (value := point.values[i]) is not None] for i in places]

    def until(self, step: int) -> "Probes":
        """Return the probes up to a step; those of a run that was lost go on beside the rest of its fleet."""
        return self.model_copy(update={"points": tuple(point for point in self.points if point.step <= step)})

    def largest(self, ending: str) -> list[tuple[int, float]]:
        """Return the step and the largest known value among the names with this ending, point by point."""
        places = self.places(ending)
        known = ((point.step, [v for i in places if (v := point.values[i]) is not None]) for point in self.points)
        return [(step, max(values)) for step, values in known if values]


class Ending(NamedTuple):
    """The outcome of a run, and the step at which it was decided."""

    outcome: Outcome
    step: int


def ending_of(status: str, steps: int, detail: str | None, curve: Sequence[tuple[int, float]], floor: float) -> Ending:
    """Classify a finished run by its status and its validation accuracies.

    `steps` is the number of updates, `curve` has the step and the accuracy of each validation, `floor` is the accuracy
    of the best trivial solver. In this order: `nan` and `explode` for a run that diverged, by its description (`nan`
    where an older one names both);
    `late-collapse`, which once had half of the range above the floor and ends with less than half of its best;
    `plateau`, never above the floor by 5 % of the range; `slow`, still rising at the end; else `trained`.
    """
    if status == "diverged":
        exploded = detail is not None and "loss above" in detail and "not finite" not in detail
        return Ending("explode" if exploded else "nan", steps)
    above = [(step, (accuracy - floor) / max(1e-9, 1 - floor)) for step, accuracy in curve]
    if not above:
        return Ending("plateau", steps)
    best_step, best = max(above, key=lambda point: point[1])
    last = above[-1][1]
    if best >= COLLAPSE_PEAK and last < COLLAPSE_END * best:
        return Ending("late-collapse", next(step for step, value in above if step > best_step and value < best / 2))
    if best < PLATEAU:
        return Ending("plateau", steps)
    third = max(1, len(above) // 3)
    if len(above) > third and last - above[-1 - third][1] > RISE and last < 1 - RISE:
        return Ending("slow", steps)
    return Ending("trained", next(step for step, value in above if value >= best - RISE))


def causes_of(probes: Probes, clip: float | None) -> list[Cause]:
    """Return the causes of a failure that the probes show, in any layer; `clip` is the largest norm of the run.

    `eps`: over half of the tokens within ten times the constant that keeps the normaliser from 0, at half of the
    points; `sink`: one key has most of the weight of over a quarter of the tokens; `starved`: the gradient of the
    queries is below a thousandth of that of the values; `over-clipped`: more than nine tenths of the steps.
    """
    found: list[Cause] = []
    if any(median(values) > EPS_SHARE for values in probes.column("eps_share") if values):
        found.append("eps")
    if any(median(values) > SINK_SHARE for values in probes.column("sink_share") if values):
        found.append("sink")
    pairs = zip(probes.column("gradient.q"), probes.column("gradient.v"), strict=True)
    if any(q and v and median(q) < STARVED * median(v) for q, v in pairs):
        found.append("starved")
    norms = [value for values in probes.column("gradient")[:1] for value in values]
    if clip is not None and norms and sum(norm > clip for norm in norms) > CLIPPED_SHARE * len(norms):
        found.append("over-clipped")
    return found
