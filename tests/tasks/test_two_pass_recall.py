import pytest
import torch

from icl_bench.errors import SpecError
from icl_bench.tasks.base import measured_floors


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("pairs=11", "length must hold 2 times 11 pairs, and queries of two tokens each; got 64; raise length to 66"),
        ("passes=1,pairs=17", "length must hold 1 times 17 pairs, and queries of two tokens each; got 64; raise"),
        ("length=63", "length must be even; got 63; try 64"),
        ("keys=4", "pairs must be at most keys; got pairs = 8 with keys = 4; lower pairs or raise keys to 8"),
        ("passes=0", "passes"),
    ],
)
def test_bad_parameters_are_refused(make, spec, message):
    with pytest.raises(SpecError) as error:
        make(f"two-pass-recall:{spec}")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("passes", [1, 2, 3])
def test_rule_by_reading(draw, passes):
    _, cell, batch = draw(f"two-pass-recall:pairs=6,passes={passes}", 50)
    for tokens, positions, targets in zip(*(tensor.tolist() for tensor in batch[:3]), strict=True):
        context = tokens[:12]
        assert tokens[: 12 * passes] == context * passes
        paired = dict(zip(context[0::2], context[1::2], strict=True))
        assert len(paired) == cell.load
        assert [paired[tokens[place]] for place in positions] == targets
        assert min(positions) >= 12 * passes
        assert len({tokens[place] for place in positions}) == 6


def test_gap_is_to_the_last_pass(draw):
    _, _, batch = draw("two-pass-recall:pairs=4", 100)
    gaps = batch.positions - (8 + 2 * torch.arange(4))
    assert (gaps >= 2**batch.groups).all()
    assert (gaps < 2 ** (batch.groups + 1)).all()


def test_floors_are_right_once_in_pairs(draw):
    task, cell, batch = draw("two-pass-recall:pairs=8,values=4096", 2000)
    for share in measured_floors(task, cell, batch).values():
        assert abs(share - 1 / 8) < 0.02
