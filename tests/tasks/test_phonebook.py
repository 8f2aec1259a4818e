import pytest

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
    """The first digit is right for one entry in four, or by chance; later ones because few entries agree so far."""
    task, cell, batch = draw("phonebook:entries=4,digits=6,queries=1", 4000)
    right = (task.floors["digits-so-far"](batch.inputs, batch.positions, cell) == batch.targets).double().mean(dim=0)
    expected = 1 / 4 + 3 / 4 / 10
    assert abs(float(right[0]) - expected) < 5 * (expected * (1 - expected) / 4000) ** 0.5
    assert right[3] > 0.98


def test_entries_asked_before_are_left_out(draw):
    """If every entry is queried, the last one is known."""
    task, cell, batch = draw("phonebook:entries=2,digits=6,queries=2", 500)
    right = task.floors["digits-so-far"](batch.inputs, batch.positions, cell) == batch.targets
    assert right[:, 6:].all()
    assert measured_floors(task, cell, batch)["most-frequent"] < 0.7
