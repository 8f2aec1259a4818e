import pytest

from icl_bench.errors import SpecError
from icl_bench.tasks.base import measured_floors


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("length=63", "length must be even; got 63; try 64"),
        ("extrapolate=0.8", "ignore and extrapolate must differ from each other; got [0.8, 0.8]"),
        ("ignore=1", "ignore"),
        ("ignore=[]", "ignore"),
    ],
)
def test_bad_parameters_are_refused(make, spec, message):
    with pytest.raises(SpecError) as error:
        make(f"flip-flop:{spec}")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("ignore", [0.8, 0.1, 0.0])
def test_rule_by_reading(draw, ignore):
    task, cell, batch = draw(f"flip-flop:ignore={ignore}", 50)
    for tokens, positions, targets in zip(*(tensor.tolist() for tensor in batch[:3]), strict=True):
        words = [task.spell(token) for token in tokens]
        bit, reads = "", []
        for place in range(0, cell.length, 2):
            if words[place] == "w":
                bit = words[place + 1]
            elif words[place] == "r":
                assert words[place + 1] == bit
                reads.append((place, bit))
        assert list(zip(positions, [task.spell(target) for target in targets], strict=True)) == reads
        assert (words[0], words[-2]) == ("w", "r")
        assert words.count("w") == words.count("r") == 1 + round(31 * (1 - ignore))


def test_latest_bit_is_right_by_chance_where_it_was_ignored(draw):
    """Of 62 instructions, 40 are ignored, so a read follows an ignored bit in about 40/62 of the cases."""
    task, cell, batch = draw("flip-flop:length=128,ignore=0.65", 4000)
    share = measured_floors(task, cell, batch)["latest-bit"]
    assert abs(share - (1 - 40 / 62 / 2)) < 0.02


def test_extrapolation_is_evaluated_not_trained(make):
    task = make("flip-flop:ignore=0.5,extrapolate=[0.1|0.95]")
    assert [cell.label for cell in task.train_cells] == ["ignore=0.5"]
    assert [(cell.label, cell.weight) for cell in task.eval_cells] == [
        ("ignore=0.5", 1.0),
        ("ignore=0.1", 0.0),
        ("ignore=0.95", 0.0),
    ]
