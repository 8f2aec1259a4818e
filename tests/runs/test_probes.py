"""Outcomes of runs by their curves, and causes by their probes."""

import pytest

from icl_bench.runs.probes import Ending, ProbePoint, Probes, causes_of, ending_of

FLOOR = 0.2


def curve(*shares: float) -> list[tuple[int, float]]:
    """Accuracies at steps 10, 20, ..., given as shares of the range above the floor."""
    return [(10 * (i + 1), FLOOR + (1 - FLOOR) * share) for i, share in enumerate(shares)]


@pytest.mark.parametrize(
    ("shares", "ending"),
    [
        ((0.0, 0.9, 0.95, 0.3), Ending("late-collapse", 40)),
        ((0.0, 0.6, 0.2, 0.5, 0.5, 0.5), Ending("trained", 20)),  # it comes back above half of its best
        ((0.0, 0.04, 0.01), Ending("plateau", 30)),
        ((0.0, 0.1, 0.2, 0.3, 0.4, 0.5), Ending("slow", 60)),
        ((0.0, 0.5, 0.995, 0.999), Ending("trained", 30)),
        ((0.0, 0.3, 0.31, 0.3), Ending("trained", 20)),
    ],
)
def test_outcomes_follow_from_the_curve(shares: tuple[float, ...], ending: Ending) -> None:
    assert ending_of("ok", 10 * len(shares), None, curve(*shares), FLOOR) == ending


def test_a_divergence_is_told_by_its_description() -> None:
    for detail, outcome in (
        ("diverged at step 7: loss or gradient not finite", "nan"),
        ("diverged at step 7: loss above 10 x its first + 10 for 50 steps", "explode"),
        ("diverged at step 7: loss or gradient not finite, or loss above 10 x its first", "nan"),
    ):
        assert ending_of("diverged", 7, detail, curve(0.5), FLOOR) == Ending(outcome, 7)


def test_the_largest_of_several_layers_leaves_out_what_is_not_finite() -> None:
    names = ("gradient", "block0.eps_share", "block1.eps_share")
    rows = ((1.0, 0.2, 0.4), (None, 0.3, None), (None, None, None))
    probes = Probes(
        id="0", task="t", arch="a", names=names,
        points=tuple(ProbePoint(step=10 * i, values=row) for i, row in enumerate(rows)),
    )  # fmt: skip
    assert probes.largest("eps_share") == [(0, 0.4), (10, 0.3)] and probes.largest("gradient") == [(0, 1.0)]


def test_causes_follow_from_the_probes() -> None:
    names = ("gradient", "block0.gradient.q", "block0.gradient.v", "block0.eps_share", "block1.sink_share")

    def probes(*rows: tuple[float | None, ...]) -> Probes:
        points = tuple(ProbePoint(step=i, values=row) for i, row in enumerate(rows))
        return Probes(id="0", task="t", arch="a", names=names, points=points)

    quiet = (0.5, 1.0, 1.0, 0.0, 0.1)
    assert causes_of(probes(quiet, quiet), 1.0) == []
    assert causes_of(probes((2.0, 1e-4, 1.0, 0.9, 0.3), quiet, (2.0, 1e-4, 1.0, 0.9, 0.3)), 1.0) == [
        "eps",
        "sink",
        "starved",
    ]
    assert causes_of(probes(*[(2.0, 1.0, 1.0, None, None)] * 20), 1.0) == ["over-clipped"]
    assert causes_of(probes(*[(2.0, 1.0, 1.0, None, None)] * 20), None) == []
