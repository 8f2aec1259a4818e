import pytest
import torch

from icl_bench.errors import SpecError
from icl_bench.tasks.base import measured_floors


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("entries=1", "queries must be at most entries; got queries = 2 with entries = 1; lower queries or raise"),
        (
            "entries=10,names=3",
            "entries must be at most names^2; got entries = 10 with names^2 = 9; lower entries or raise names^2 to 10",
        ),
        ("entries=[3|3]", "entries must differ from each other"),
        ("digits=0", "digits"),
    ],
)
def test_bad_parameters_are_refused(make, spec, message):
    with pytest.raises(SpecError) as error:
        make(f"phonebook:{spec}")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_smallest_book_has_one_entry(draw):
    task, cell, batch = draw("phonebook:entries=1,digits=1,queries=1,names=1", 4)
    assert torch.equal(task.oracle(batch.inputs, batch.positions, cell), batch.targets)


def test_rule_by_reading(draw):
    task, cell, batch = draw("phonebook:entries=8,digits=4,queries=3,names=3", 50)
    for tokens, positions, targets, groups in zip(*(tensor.tolist() for tensor in batch), strict=True):
        words = [task.spell(token) for token in tokens]
        text = "".join(words)
        book, asked = (dict(line.split(":") for line in part.split(";")[:-1]) for part in text.split("|"))
        assert len(book) == 8
        assert len(asked) == 3
        assert asked.items() <= book.items()
        assert [tokens[place + 1] for place in positions] == targets
        assert "".join(task.spell(target) for target in targets) == "".join(asked.values())
        assert groups == [0, 1, 2, 3] * 3
        assert min(positions) > words.index("|")
        assert len(words) == cell.length


def test_digits_shown_give_the_entry_away_but_for_the_first(draw):
    """The first digit is the most frequent of four, as a count of all 10^4 lists tells; later ones, as few agree."""
    task, cell, batch = draw("phonebook:entries=4,digits=6,queries=1", 4000)
    right = (task.floors["digits-so-far"](batch.inputs, batch.positions, cell) == batch.targets).double().mean(dim=0)
    lists = torch.cartesian_prod(*(torch.arange(10),) * 4)
    expected = float(torch.nn.functional.one_hot(lists, 10).sum(dim=1).amax(dim=1).double().mean()) / 4
    assert abs(float(right[0]) - expected) < 5 * (expected * (1 - expected) / 4000) ** 0.5
    assert right[3] > 0.98


def test_most_frequent_of_the_entries_that_fit_is_right_more_often(draw):
    """A solver outside this package has .717 on 2,000 examples of six entries; their answers vary by .45 a position."""
    task, cell, batch = draw("phonebook", 2000, "entries=6")
    assert abs(measured_floors(task, cell, batch)["digits-so-far"] - 0.717) < 4 * 0.45 * (2 / 12_000) ** 0.5


def test_entries_asked_before_are_left_out(draw):
    """If every entry is queried, the last one is known."""
    task, cell, batch = draw("phonebook:entries=2,digits=6,queries=2", 500)
    right = task.floors["digits-so-far"](batch.inputs, batch.positions, cell) == batch.targets
    assert right[:, 6:].all()
    assert measured_floors(task, cell, batch)["most-frequent"] < 0.7
