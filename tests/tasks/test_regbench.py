import pytest
import torch
from scipy import stats

from icl_bench.errors import SpecError
from icl_bench.tasks.base import Batch
from icl_bench.tasks.vocabulary import SEP

SIGNIFICANCE = 1e-4
"""Significance of a test on a fixed sample, which either always passes or always fails."""
PUBLISHED = "regbench:states=12,alphabet=18,strings=15,symbols=25,queries=375"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("states=3", "states must be at least 4; got 3; raise states"),
        ("strings=[8|8]", "strings must differ from each other"),
        ("strings=4,extrapolate=4", "strings and extrapolate must differ from each other"),
        (
            "strings=2,symbols=5,queries=11",
            "queries must be at most strings * symbols; got queries = 11 with strings * symbols = 10; lower queries",
        ),
        ("alphabet=3", "alphabet"),
        ("exits=5", "exits"),
    ],
)
def test_bad_parameters_are_refused(make, spec, message):
    with pytest.raises(SpecError) as error:
        make(f"regbench:{spec}")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_strings_are_walks_of_the_automaton_written_behind_them(draw):
    """The exits `a>3` are read state by state; then every letter is followed from the bar on."""
    task, cell, batch = draw("regbench:states=6,strings=5,symbols=7,queries=35", 50)
    for row in range(50):
        words = [task.spell(token) for token in batch.inputs[row].tolist()]
        body, written = words[: cell.length - 18], words[cell.length - 18 :]
        exits = [dict(word.split(">") for word in written[3 * q : 3 * q + 3] if word != "·") for q in range(6)]
        assert all(1 <= len(steps) <= 3 for steps in exits)
        assert all(int(end) != q for q, steps in enumerate(exits) for end in steps.values())
        state, allowed = 0, {}
        for place, word in enumerate(body):
            state = 0 if word == "|" else int(exits[state][word])
            allowed[place] = set(exits[state])
        assert body[0] == "|" and body.count("|") == 5 and "||" not in "".join(body)
        positions = [place for place in range(len(body) - 1) if body[place + 1] != "|"]
        assert batch.positions[row].tolist() == positions
        assert [task.spell(token) for token in batch.targets[row].tolist()] == [body[place + 1] for place in positions]
        for letter in range(12):
            own = Batch(*(part[row : row + 1] for part in batch))
            right = task.hits(torch.full_like(own.targets, 16 + letter), own, cell)[0].bool().tolist()
            assert right == [task.spell(16 + letter) in allowed[place] for place in positions]


def test_an_answer_that_is_no_letter_is_wrong(draw):
    task, cell, batch = draw("regbench", 4, "states=4,strings=8")
    for token in (0, SEP, 15, task.words.first("exits"), task.vocabulary - 1):
        assert not task.hits(torch.full_like(batch.targets, token), batch, cell).any()


def test_automata_follow_the_published_law(make, rows):
    """Sizes, numbers of exits, letters and ends are uniform; no exit leads back to its own state."""
    task = make(PUBLISHED)
    automata = task.automata(rows(task, "test", 20_000), 12)
    index = torch.arange(12)
    used = automata.letters[:, 0, 0]
    for counts in (torch.bincount(automata.degree.flatten()), torch.bincount(used, minlength=18)):
        assert stats.chisquare(counts[counts > 0].numpy()).pvalue > SIGNIFICANCE
    assert not (automata.ends == index[:, None]).any()
    largest = automata.ends.flatten(1).amax(dim=1) + 1  # states of an automaton, where all were reached
    assert int(largest.min()) >= 3 and int(largest.max()) == 12
    # ends of state 0: uniform over 1..n-1, n uniform over 4..12
    law = torch.tensor([sum(1 / (n - 1) for n in range(max(4, end + 1), 13)) / 9 for end in range(1, 12)])
    ends = torch.bincount(automata.ends[:, 0, 0], minlength=12)[1:]
    assert stats.chisquare(ends.numpy(), (law.double() * 20_000 / law.double().sum()).numpy()).pvalue > SIGNIFICANCE
    ordered = automata.letters.sort(dim=-1).values
    assert (ordered.diff(dim=-1) > 0).all()


def test_exits_and_lengths_are_uniform(make, rows):
    """Two exits of a state are equally likely, and letters after the first begin a string equally often."""
    task = make(PUBLISHED)
    keys = rows(task, "test", 4000)
    automata = task.automata(keys, 12)
    batch = task.sample(keys, task.eval_cells[0])
    first = batch.inputs[:, 1] - 16
    for degree in (2, 3):
        of = automata.degree[:, 0] == degree
        chosen = (automata.letters[of, 0] == first[of, None]).int().argmax(dim=1)
        assert stats.chisquare(torch.bincount(chosen, minlength=degree).numpy()).pvalue > SIGNIFICANCE
    second = (batch.inputs[:, 2] == SEP).double().mean()
    assert abs(float(second) - 14 / 374) < 5 * (14 / 374 / 4000) ** 0.5


@pytest.mark.parametrize(
    ("name", "whole", "half"), [("unigram", 0.47, 0.48), ("bigram", 0.81, 0.83), ("trigram", 0.91, 0.94)]
)
def test_floors_are_those_of_the_simulation(draw, name, whole, half):
    """Contexts of the simulation end at a bar; here, a different number in place of each bar has this effect.

    Both use 300 automata, among which the accuracy of the unigram varies by .185: .045 is three standard errors.
    """
    task, cell, batch = draw(PUBLISHED, 300)
    unlike = -1 - torch.arange(cell.length)
    inputs = torch.where(batch.inputs == SEP, unlike, batch.inputs)
    right = task.hits(task.floors[name](inputs, batch.positions, cell), batch, cell)
    error = 0.045 if name == "unigram" else 0.02
    assert abs(float(right.mean()) - whole) < error
    assert abs(float(right[:, cell.scored // 2 :].mean()) - half) < error


def test_the_names_of_states_are_no_content(draw):
    """States other than the first are numbered anew, and the exits written in the new order."""
    task, cell, batch = draw("regbench:states=5,exits=2", 200)
    first, exits = task.words.first("exits"), batch.inputs[:, -10:].unflatten(1, (5, 2))
    new = torch.tensor([0, 3, 1, 4, 2])
    ends, letters = (exits - first) // task.alphabet, (exits - first) % task.alphabet
    renamed = torch.where(exits >= first, first + new[ends.clamp(min=0)] * task.alphabet + letters, exits)
    other = torch.cat([batch.inputs[:, :-10], renamed[:, new.argsort()].flatten(1)], dim=1)
    forms = task.canonical(batch.inputs, cell)
    assert torch.equal(forms, task.canonical(other, cell)) and not torch.equal(batch.inputs, other)
    assert len(forms.unique(dim=0)) > 150
