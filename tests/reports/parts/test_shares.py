"""Learned shares of lower degrees over training."""

from icl_bench.reports.analysis import Section, analyse
from icl_bench.reports.canvas import figure_settings
from icl_bench.reports.context import NO_STUDY
from icl_bench.reports.parts.shares import draw_shares
from icl_bench.runs.outline import FinishedRuns
from icl_bench.runs.probes import ProbePoint, Probes
from icl_bench.runs.record import RunResult
from tests.reports.factory import make_record


def probes_of(result: RunResult) -> Probes:
    """Probes of a run, with a share in both layers where it learns them."""
    names = ("gradient", *(("block0.theta0", "block1.theta0") if "spectrum" in result.arch else ()))
    values = (1.0, 0.9 + result.seed, -0.2)[: len(names)]
    points = tuple(ProbePoint(step=step, values=values) for step in (10, 20))
    return Probes(id=result.id, task=result.task, arch=result.arch, names=names, points=points)


def section_of(*archs: str) -> Section:
    records = [make_record(arch, seed) for arch in archs for seed in (0, 1)]
    return analyse(FinishedRuns.of(records, probes_of))[0]


def test_each_share_of_each_layer_has_a_panel_with_a_line_for_each_seed() -> None:
    with figure_settings():
        figure = draw_shares(section_of("power:p=2", "power:p=2,spectrum=learned"), NO_STUDY)
    assert figure is not None
    first, second = (axes.lines[2:] for axes in figure.axes)  # behind the levels 0 and 1
    assert [line.get_ydata().tolist() for line in first] == [[0.9, 0.9], [1.9, 1.9]]
    assert [line.get_ydata().tolist() for line in second] == [[-0.2, -0.2]] * 2


def test_fixed_degrees_have_no_shares_to_draw() -> None:
    assert draw_shares(section_of("power:p=2"), NO_STUDY) is None
