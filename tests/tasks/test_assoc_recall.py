import pytest
import torch
from scipy import stats

from icl_bench.errors import SpecError
from icl_bench.tasks.base import measured_floors

SIGNIFICANCE = 1e-4
"""Significance of a test on a fixed sample, which either always passes or always fails."""


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "pairs=17",
            "length must hold 17 pairs and queries of two tokens each; got 64; raise length to 68 or lower pairs",
        ),
        ("length=63", "length must be even; got 63; try 64"),
        ("vocab=60,pairs=15", "got vocab=60, which leaves 14 keys for 15 pairs; raise vocab to 62 or lower pairs"),
        ("pairs=0", "pairs must be at least 1; got 0"),
        ("pairs=[4|4]", "pairs must differ from each other; got [4, 4]"),
        ("variant=zoology,length=256,pairs=64,vocab=128", "leaves 63 keys for 64 pairs; raise vocab to 130"),
        ("pairs=8,extrapolate=40", "length must hold 40 pairs and queries of two tokens each; got 64"),
        ("pairs=8,extrapolate=8", "pairs and extrapolate must differ from each other; got [8, 8]"),
        ("variant=zoology,extrapolate=8", "got extrapolate=[8] without pairs; give pairs, or leave extrapolate out"),
        ("pairs=8,lengthen=true", "lengthen is for loads that are not trained; got none; give extrapolate"),
        ("filler=blank", "filler"),
        ("slot_power=0", "slot_power"),
        ("pear=4", "assoc-recall has no parameter 'pear'; did you mean 'pairs'?"),
    ],
)
def test_bad_parameters_are_refused(make, spec, message):
    with pytest.raises(SpecError) as error:
        make(f"assoc-recall:{spec}")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_smallest_vocabulary_named_in_the_error_works(make):
    assert make("assoc-recall:vocab=62,pairs=15").keys == 15
    assert make("assoc-recall:variant=zoology,length=256,pairs=64,vocab=130").keys == 64


def test_loads_beyond_the_trained_ones_are_evaluated_alone_and_leave_other_cells_as_they_are(make, draw):
    task = make("assoc-recall:length=64,pairs=[2|4],extrapolate=[8|16]")
    assert [cell.load for cell in task.train_cells] == [2, 4]
    assert [(cell.load, cell.weight) for cell in task.eval_cells] == [(2, 1.0), (4, 1.0), (8, 0.0), (16, 0.0)]
    assert "extrapolate" not in make("assoc-recall:pairs=4").model_dump()
    one, other = (draw(f"assoc-recall:pairs={text}", 3, "pairs=4")[2] for text in ("4", "4,extrapolate=8"))
    assert torch.equal(one.inputs, other.inputs)


def test_lengthened_loads_keep_the_tokens_of_a_pair(make, draw):
    text = "assoc-recall:length=26,pairs=[2|4],extrapolate=[3|5|16],lengthen=true"
    task = make(text)
    assert {cell.load: cell.length for cell in task.eval_cells} == {2: 26, 4: 26, 3: 26, 5: 34, 16: 104}
    assert "lengthen" not in make("assoc-recall:pairs=4,extrapolate=8").model_dump()
    _, cell, batch = draw(text, 20, "pairs=16")
    assert batch.inputs.shape == (20, 104)
    assert torch.equal(task.oracle(batch.inputs, batch.positions, cell), batch.targets)


def test_rule_by_reading(draw):
    """A dictionary filled from the context answers every query, and every key is queried once."""
    _, cell, batch = draw("assoc-recall", 50, "pairs=16")
    for tokens, positions, targets in zip(*(tensor.tolist() for tensor in batch[:3]), strict=True):
        context = tokens[: 2 * cell.load]
        paired = dict(zip(context[0::2], context[1::2], strict=True))
        assert len(paired) == cell.load
        assert [tokens[position] for position in positions] == context[0::2]
        assert [paired[tokens[position]] for position in positions] == targets


def test_gaps_are_those_of_uniform_slots(draw):
    """The median gap is 79 at 16 pairs in 160 tokens, by a numpy simulation of the same law."""
    _, _, batch = draw("assoc-recall:length=160,pairs=16", 4000)
    gaps = batch.positions - 2 * torch.arange(16)
    assert abs(float(gaps.double().median()) - 79) <= 1
    slots = (batch.positions - 32) // 2
    assert stats.chisquare(torch.bincount(slots.flatten(), minlength=64).numpy()).pvalue > SIGNIFICANCE
    octaves = batch.groups
    assert (gaps >= 2**octaves).all()
    assert (gaps < 2 ** (octaves + 1)).all()


def test_order_of_queries_says_nothing_by_default(draw):
    task, cell, batch = draw("assoc-recall", 4000, "pairs=8")
    error = (8 / 7 / 8 / 4000) ** 0.5  # of a share of fixed points in random permutations: variance 1 a row
    assert abs(measured_floors(task, cell, batch)["query-order"] - 1 / 8) < 5 * error + 1 / task.values


@pytest.mark.parametrize(
    ("spec", "accuracies"),
    [
        ("assoc-recall", {8: 0.174, 16: 0.124}),
        ("assoc-recall:length=512,pairs=[16|32|64|128],vocab=1056", {16: 0.076, 32: 0.051, 64: 0.033, 128: 0.022}),
        ("assoc-recall:length=512,pairs=[64|128],vocab=544", {64: 0.038, 128: 0.026}),
        ("two-pass-recall", {8: 0.174}),
        ("haystack-recall", {8: 0.174}),
    ],
)
def test_most_frequent_value_is_the_floor(draw, make, spec, accuracies):
    """Accuracies that a solver outside this package has on 2,000 examples, and one of a thousand for the rounding."""
    for cell in make(spec).eval_cells:
        if cell.load in accuracies:
            task, cell, batch = draw(spec, 2000, cell.label)
            measured = measured_floors(task, cell, batch)
            values = batch.targets.sort(dim=1).values
            most = max(torch.unique_consecutive(row, return_counts=True)[1].max() for row in values[:20])
            hits = task.hits(task.floor_most_frequent(batch.inputs, batch.positions, cell), batch, cell).sum(dim=1)
            assert hits[:20].max() == most and max(measured, key=measured.__getitem__) == "most-frequent"
            # two measurements, each with the spread of the number of equal values over examples
            error = float(hits.std()) / cell.load * (2 / 2000) ** 0.5
            assert abs(measured["most-frequent"] - accuracies[cell.load]) < 4 * error + 0.0005


def test_values_without_repeats_carry_fewer_bits_and_are_not_independent(make):
    task = make("assoc-recall:variant=zoology,length=1024,pairs=256")
    (cell,) = task.eval_cells
    assert task.contents(cell) is None
    assert task.state_bits(cell) == pytest.approx(3060.3, abs=0.05)
    free = make("assoc-recall:length=1024,pairs=256,vocab=8224")
    assert free.state_bits(free.eval_cells[0]) == pytest.approx(256 * 12)


@pytest.mark.parametrize(
    ("length", "pairs", "scored", "distance", "correlation"),
    [(64, 4, 0.0625, 19, 0.11), (256, 16, 0.0625, 73, 0.21), (256, 64, 0.25, 128, 0.53), (1024, 256, 0.25, 512, 0.54)],
)
def test_zoology_statistics_are_the_published_ones(draw, length, pairs, scored, distance, correlation):
    """Statistics of zoology's own generator, within their rounding and five standard errors."""
    rows = 40_000 // pairs
    _, _, batch = draw(f"assoc-recall:variant=zoology,length={length},pairs={pairs}", rows)
    assert batch.positions.shape[1] / length == scored
    gaps = (batch.positions - 2 * torch.arange(pairs)).double().mean(dim=1)
    assert abs(float(gaps.mean()) - distance) < 0.5 + 5 * float(gaps.std()) / rows**0.5
    ranks = batch.positions.argsort(dim=1).argsort(dim=1).double() - (pairs - 1) / 2
    order = torch.arange(pairs).double() - (pairs - 1) / 2
    spearman = (ranks * order).sum(dim=1) / order.square().sum()
    assert abs(float(spearman.mean()) - correlation) < 0.005 + 5 * float(spearman.std()) / rows**0.5


def test_zoology_slots_follow_the_weights(draw):
    """The first key has p_i ~ i^-0.99; the second, drawn without replacement, the sum over i of p_i p_j / (1 - p_i)."""
    _, _, batch = draw("assoc-recall:variant=zoology,length=64,pairs=4", 20_000)
    slots = (batch.positions - 8) // 2
    weights = torch.arange(1, 29, dtype=torch.float64) ** -0.99
    first = weights / weights.sum()
    odds = first / (1 - first)
    second = first * (odds.sum() - odds)
    for column, law in enumerate((first, second)):
        counts = torch.bincount(slots[:, column], minlength=28).numpy()
        assert stats.chisquare(counts, (law * 20_000).numpy()).pvalue > SIGNIFICANCE


def test_zoology_tokens_are_uniform(draw):
    """In a small vocabulary, keys, values and fillers are uniform; fillers are any token."""
    _, _, batch = draw("assoc-recall:variant=zoology,length=64,pairs=4,vocab=32", 8000)
    filler = torch.ones_like(batch.inputs, dtype=torch.bool).scatter(1, batch.positions, False)
    filler[:, :8] = False
    for tokens, low, high in (
        (batch.inputs[:, 0], 1, 16),
        (batch.targets[:, 0], 16, 32),
        (batch.inputs[:, 7], 16, 32),
        (batch.inputs[filler], 0, 32),
    ):
        counts = torch.bincount(tokens.flatten(), minlength=high)
        assert counts[:low].sum() == 0
        assert stats.chisquare(counts[low:].numpy()).pvalue > SIGNIFICANCE


def test_zoology_alphabets(draw):
    _, _, batch = draw("assoc-recall:variant=zoology,length=1024,pairs=256", 200)
    context = batch.inputs[:, :512]
    keys, values = context[:, 0::2], context[:, 1::2]
    assert (int(keys.min()), int(keys.max())) == (1, 4095)
    assert (int(values.min()), int(values.max())) == (4096, 8191)
    for tokens in (keys, values):
        assert (tokens.sort(dim=1).values.diff(dim=1) > 0).all()


def test_zoology_fillers(draw):
    """Random fillers are any token, padding is 0; both fill every position without a query."""
    for filler, low, high in (("random", 0, 8191), ("pad", 0, 0)):
        _, _, batch = draw(f"assoc-recall:variant=zoology,length=64,pairs=4,filler={filler}", 4000)
        free = torch.ones_like(batch.inputs, dtype=torch.bool).scatter(1, batch.positions, False)
        free[:, :8] = False
        fillers = batch.inputs[free]
        assert (int(fillers.min()), int(fillers.max())) == (low, high)


def test_zoology_mix_is_the_published_one(make):
    task = make("assoc-recall:variant=zoology")
    trained = {(cell.length, cell.load): cell.weight for cell in task.train_cells}
    assert trained == {(64, 4): 100, (128, 8): 20, (256, 16): 20, (256, 32): 20, (256, 64): 20}
    tested = [(cell.length, cell.load) for cell in task.eval_cells]
    assert tested == [(64, 4), (64, 8), (64, 16), (128, 32), (256, 64), (512, 128), (1024, 256)]
    assert task.vocabulary == 8192


def test_position_leaks_in_zoology(draw):
    """By simulation, a solver that sees only positions reaches 2.47/pairs; reading in order reaches about 2/pairs."""
    task, cell, batch = draw("assoc-recall:variant=zoology,length=256,pairs=64", 2000)
    assert 1.5 / 64 < measured_floors(task, cell, batch)["query-order"] < 2.47 / 64


@pytest.mark.parametrize("gap", [1, 2, 4])
def test_a_deferred_answer_is_due_at_a_mark_after_the_query(draw, gap):
    task, cell, batch = draw(f"assoc-recall:length=96,pairs=8,readout=deferred,gap={gap}", 50)
    for tokens, positions, targets in zip(*(tensor.tolist() for tensor in batch[:3]), strict=True):
        words = [task.spell(token) for token in tokens]
        values = dict(zip(words[0:16:2], words[1:16:2], strict=True))
        assert [words[position] for position in positions] == ["?"] * cell.scored
        assert words.count("?") == cell.scored
        asked = [words[position - gap] for position in positions]
        assert sorted(asked) == sorted(values)
        assert [values[key] for key in asked] == [task.spell(target) for target in targets]
        between = {words[position - i] for position in positions for i in range(1, gap)}
        assert all(word.startswith("n") for word in between)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("pairs=16,readout=deferred,gap=4", "length must hold 16 pairs and queries of five tokens each; got 64"),
        ("gap=2", "gap belongs to readout=deferred; got gap=2; add readout=deferred"),
        ("variant=zoology,readout=deferred", "dilute and readout belong to the default variant"),
    ],
)
def test_deferred_answers_that_do_not_fit_are_refused(make, spec, message):
    with pytest.raises(SpecError) as error:
        make(f"assoc-recall:{spec}")
    assert message in str(error.value)
