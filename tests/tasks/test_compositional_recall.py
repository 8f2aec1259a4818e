import pytest

from icl_bench.errors import SpecError
from icl_bench.tasks.base import measured_floors


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("pairs=8", "pairs must be square numbers; got 8; try 4 or 9"),
        ("length=64", "length must be a multiple of 3; got 64; try 66"),
        (
            "pairs=16",
            "length must hold 16 pairs and queries of three tokens each; got 66; raise length to 96 or lower pairs",
        ),
        (
            "length=600,pairs=100,keys=9",
            "√pairs must be at most keys; got √pairs = 10 with keys = 9; lower √pairs or raise keys",
        ),
        ("pairs=1", "pairs must be at least 4; got 1"),
        ("pairs=[4|4]", "pairs must differ from each other"),
    ],
)
def test_bad_parameters_are_refused(make, spec, message):
    with pytest.raises(SpecError) as error:
        make(f"compositional-recall:{spec}")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_rule_by_reading(draw):
    _, cell, batch = draw("compositional-recall", 50, "pairs=9")
    for tokens, positions, targets in zip(*(tensor.tolist() for tensor in batch[:3]), strict=True):
        triplets = [tuple(tokens[i : i + 3]) for i in range(0, 27, 3)]
        value = {(first, second): third for first, second, third in triplets}
        firsts, seconds = ({key[part] for key in value} for part in (0, 1))
        assert len(value) == cell.load
        assert set(value) == {(first, second) for first in firsts for second in seconds}
        assert len(firsts) == len(seconds) == 3
        assert [value[tokens[place - 1], tokens[place]] for place in positions] == targets
        assert all(place % 3 == 1 and place > 27 for place in positions)


@pytest.mark.parametrize("pairs", [4, 16])
def test_one_key_is_right_once_in_the_root(draw, pairs):
    """Floors are exact up to repeated values and five standard errors of that many independent queries."""
    rows = 2000
    task, cell, batch = draw(f"compositional-recall:length=96,pairs={pairs},values=4096", rows)
    floors = measured_floors(task, cell, batch)
    for name, share in (("first-key", pairs**-0.5), ("second-key", pairs**-0.5)):
        assert abs(floors[name] - share) < 5 * (share / rows / pairs) ** 0.5 + 1 / 4096
