"""The ceiling of a window: the share of answers within its reach, against examples of the task."""

import math

import pytest
import torch

from icl_bench import random
from icl_bench.reports.context import NO_STUDY
from icl_bench.reports.parts.accuracy import LOAD_PART, accuracy_by_load
from icl_bench.reports.parts.reach import ceilings, reach_table, share_within
from icl_bench.reports.parts.state import recall_by_state
from icl_bench.runs.record import GroupScore
from icl_bench.tasks.assoc_recall import AssocRecall
from tests.reports.factory import make_record, section_of, with_cells

EXAMPLES = 2000


@pytest.mark.parametrize("pairs", [8, 128])
def test_the_share_within_reach_is_that_of_the_examples(pairs: int) -> None:
    task = AssocRecall(length=512, pairs=(pairs,), vocab=1056)
    cell = task.eval_cells[0]
    batch = task.sample(random.row_keys(torch.tensor(1), torch.arange(EXAMPLES)), cell)
    gaps = batch.positions - 2 * torch.arange(pairs)
    numbers, counts = batch.groups.unique(return_counts=True)
    groups = {
        task.group_label(int(number)): GroupScore(accuracy=0.5, count=int(count))
        for number, count in zip(numbers, counts, strict=True)
    }
    run = make_record("window:w=16", loads=(pairs,), accuracies=(0.5,), floors=(0.1,))
    section = section_of([with_cells(run, groups=groups, length=512)])
    for reach in (1, 30, 126, 251, 511):
        exact = float((gaps <= reach).double().mean())
        # in an octave that holds less than half of the gaps, a density that rises to double moves at most 1/12 of them
        assert share_within(section.entries[0], section.cells[0], reach) == pytest.approx(exact, abs=0.5 / 12)


def test_a_window_has_a_ceiling_for_one_layer_and_for_all() -> None:
    runs = [make_record("window:w=6", accuracies=(0.5, 0.3, 0.2)), make_record("softmax")]
    section = section_of(runs)
    one, both = ceilings(section)  # half of the positions lie 4 to 7 tokens back, half 8 to 15
    assert (one.layers, one.reach, both.layers, both.reach) == (1, 6, 2, 11)
    near, far = 0.5 * 3 / 4, 0.5 + 0.5 * 4 / 8
    floors = {"pairs=4": 1 / 4, "pairs=8": 1 / 8, "pairs=16": 1 / 16}
    assert one.by_cell == pytest.approx({label: near + (1 - near) * floor for label, floor in floors.items()})
    assert both.by_cell == pytest.approx({label: far + (1 - far) * floor for label, floor in floors.items()})
    table = reach_table(section)
    assert [row[:3] for row in table.rows] == [("window:w=6", "1", "6"), ("window:w=6", "2", "11")]
    assert table.rows[0][-1] == "0.333"


def test_no_ceiling_is_known_without_distances() -> None:
    run = with_cells(make_record("window:w=6"), groups={"digit 1": GroupScore(accuracy=0.5, count=10)})
    assert reach_table(section_of([run])).rows == ()
    assert reach_table(section_of([make_record("softmax")])).rows == ()


def test_ceilings_are_drawn_and_named_in_the_caption() -> None:
    runs = [make_record("window:w=6", state=600), make_record("window:w=12", state=1200), make_record("softmax")]
    section = section_of(runs)
    figure = accuracy_by_load(section, NO_STUDY)
    assert figure is not None
    thin = [line for line in figure.axes[0].get_lines() if line.get_linewidth() == 1.0]
    assert [line.get_linestyle() for line in thin] == [":", "-."] * 2
    figure = recall_by_state(section, NO_STUDY)
    assert figure is not None
    thin = [line for line in figure.axes[0].get_lines() if line.get_linewidth() == 1.0]
    assert [math.prod(line.get_xdata()) ** 0.5 for line in thin] == pytest.approx([600, 600, 1200, 1200])
    assert all(len(set(line.get_ydata())) == 1 for line in thin)
    assert LOAD_PART.figure is not None
    assert "reach of a window" in LOAD_PART.figure.full_caption(section)
    assert "reach of a window" not in LOAD_PART.figure.full_caption(section_of(runs[2:]))
