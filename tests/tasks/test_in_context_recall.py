import pytest
import torch
from scipy import stats

from icl_bench.errors import SpecError
from icl_bench.tasks.base import measured_floors


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("keys=9", "keys must be at most alphabet^motif; got keys = 9 with alphabet^motif = 8; lower keys or raise"),
        (
            "length=16",
            "keys must be below the number of pairs, 8 in length=16, so that some come back; got 8; raise length",
        ),
        ("noise=0.9", "keys must be below the number of pairs, 3 in length=64"),
        ("noise=1", "noise"),
        ("motif=0", "motif"),
        ("keys=[4|4]", "keys must differ from each other"),
    ],
)
def test_bad_parameters_are_refused(make, spec, message):
    with pytest.raises(SpecError) as error:
        make(f"in-context-recall:{spec}")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("spec", ["keys=8", "keys=5,motif=2,noise=0.3,length=96", "keys=4,noise=0.5"])
def test_rule_by_reading(draw, spec):
    task, cell, batch = draw(f"in-context-recall:{spec}", 50)
    for tokens, positions, targets in zip(*(tensor.tolist() for tensor in batch[:3]), strict=True):
        words = [(task.spell(token), place) for place, token in enumerate(tokens)]
        letters = [(word, place) for word, place in words if not word.startswith("n")]
        known: dict[tuple[str, ...], list[int]] = {}
        returned: list[tuple[int, int]] = []
        width = 2 * task.motif
        for start in range(0, len(letters), width):
            pair = letters[start : start + width]
            assert [place - pair[0][1] for _, place in pair] == list(range(width)), "noise stands between pairs"
            assert [word[0] for word, _ in pair] == ["k"] * task.motif + ["v"] * task.motif
            key = tuple(word for word, _ in pair[: task.motif])
            value = [tokens[place] for _, place in pair[task.motif :]]
            if key in known:
                returned += [(place - 1, known[key][i]) for i, (_, place) in enumerate(pair[task.motif :])]
            assert known.setdefault(key, value) == value
        assert len(known) <= cell.load
        assert list(zip(positions, targets, strict=True)) == returned[len(returned) - cell.scored :]


def test_noise_takes_its_part(draw):
    _, _, batch = draw("in-context-recall:length=100,keys=4,noise=0.4", 20)
    assert (((batch.inputs >= 16) & (batch.inputs < 32)).sum(dim=1) == 40).all()


def test_stream_follows_the_published_law(draw):
    """As in MAD without noise, keys and values are uniform with repetition, so the gap between returns is geometric."""
    _, _, batch = draw("in-context-recall:length=128,keys=8", 4000)
    keys, values = batch.inputs[:, 0::2] - 32, batch.inputs[:, 1::2] - 40
    for tokens in (keys[:, 0], keys[:, 63], values[:, 0], values[:, 63], batch.targets[:, -1] - 40):
        assert stats.chisquare(torch.bincount(tokens, minlength=8).numpy()).pvalue > 1e-4
    back = (keys[:, :63] == keys[:, 63:]).flip(1).int().argmax(dim=1) + 1
    gaps = torch.bincount(back.clamp(max=30), minlength=31)[1:].numpy()
    law = stats.geom(1 / 8).pmf(range(1, 31))
    law[-1] = stats.geom(1 / 8).sf(29)
    assert stats.chisquare(gaps, 4000 * law).pvalue > 1e-4


@pytest.mark.parametrize(("keys", "floor"), [(8, 0.32), (16, 0.19), (32, 0.12), (64, 0.068)])
def test_mode_floors_are_those_of_the_simulation(draw, keys, floor):
    """MAD has vocabularies of 16, 32 and 64 at length 128, half of which are keys.

    Its vocabulary of 128 has as many keys as a sequence of that length has pairs, so no number of returns is certain.
    A numpy simulation of its rule gives .084 at length 128, and .068 at length 256, which is tested here.
    """
    length = 128 if keys < 64 else 256
    task, cell, batch = draw(f"in-context-recall:length={length},keys={keys},alphabet={keys}", 1000)
    assert abs(measured_floors(task, cell, batch)["most-frequent"] - floor) < 0.02
