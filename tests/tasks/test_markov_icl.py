import pytest
import torch
from scipy import stats

from icl_bench.errors import SpecError
from icl_bench.tasks.base import measured_floors


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("order=7", "alphabet^order must be at most 4096; got 4^7; lower one of them"),
        ("queries=63", "order + queries must be at most length; got order + queries = 65 with length = 64; lower"),
        ("order=0", "order must be at least 1; got 0"),
        ("order=[1|1]", "order must differ from each other"),
        ("alphabet=1", "alphabet"),
    ],
)
def test_bad_parameters_are_refused(make, spec, message):
    with pytest.raises(SpecError) as error:
        make(f"markov-icl:{spec}")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_rule_by_counting(draw, order):
    _, cell, batch = draw(f"markov-icl:length=50,order={order},alphabet=3,queries=20", 100)
    for tokens, positions, targets in zip(*(tensor.tolist() for tensor in batch[:3]), strict=True):
        assert positions == list(range(30, cell.length))
        for place, target in zip(positions, targets, strict=True):
            context = tokens[place - order + 1 : place + 1]
            seen = [i for i in range(order, place + 1) if tokens[i - order : i] == context]
            followed = [tokens[i] for i in seen]
            merit = [(followed.count(s), max((i for i in seen if tokens[i] == s), default=-1)) for s in (16, 17, 18)]
            assert target == 16 + merit.index(max(merit))


def test_rows_are_dirichlet(draw):
    """Under Dirichlet(1) of two symbols a transition probability is uniform, so the count of one symbol in n is too."""
    _, _, batch = draw("markov-icl:length=400,order=1,alphabet=2,queries=1", 2000)
    symbols = batch.inputs - 16
    after_first = symbols[:, :-1] == 0
    share = (after_first & (symbols[:, 1:] == 1)).sum(dim=1) / after_first.sum(dim=1).clamp(min=1)
    enough = after_first.sum(dim=1) >= 50
    # rows with few tries are those whose first symbol is rare: the law is that of the rows which are left
    assert stats.kstest(share[enough].numpy(), "uniform").statistic < 1 - float(enough.double().mean()) + 0.05


def test_counts_beat_the_floors(draw):
    task, cell, batch = draw("markov-icl", 2000, "order=1")
    floors = measured_floors(task, cell, batch)
    assert 1 / 4 < floors["shorter-context"] < floors["latest-successor"] < 0.75
    assert torch.equal(task.oracle(batch.inputs, batch.positions, cell), batch.targets)
