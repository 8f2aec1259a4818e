import itertools
from collections import defaultdict

import pytest
import torch

from icl_bench.errors import SpecError
from icl_bench.tasks.base import measured_floors
from icl_bench.tasks.grammar import SYMBOLS, Grammar, spell_rule
from icl_bench.tasks.vocabulary import PAD, SEP

Language = dict[tuple[int, ...], float]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("queries=65", "queries must be at most length; got queries = 65 with length = 64"),
        ("depth=6", "depth must be at most the deepest grammar that can be followed; got depth = 6"),
        ("grammar=none", "grammar"),
        ("rules=1", "rules"),
    ],
)
def test_bad_parameters_are_refused(make, spec, message):
    with pytest.raises(SpecError) as error:
        make(f"grammar:{spec}")
    assert message in str(error.value)


def language(rules: list[list[list[str]]]) -> Language:
    """All sentences with their probabilities, by expanding every derivation; rules by level and symbol."""
    strings: list[Language] = [{(letter,): 1.0} for letter in range(SYMBOLS)]
    for level in reversed(rules):
        above = []
        for sides in level:
            found: Language = defaultdict(float)
            for side in sides:
                for parts in itertools.product(*(strings[int(symbol)].items() for symbol in side)):
                    probability = 1 / len(sides)
                    for _, own in parts:
                        probability *= own
                    found[tuple(itertools.chain.from_iterable(part for part, _ in parts))] += probability
            above.append(dict(found))
        strings = above
    return strings[0]


def next_tokens(sentences: Language, prefix: tuple[int, ...]) -> list[float]:
    """The probabilities of a bar and of each letter after a prefix, from the list of all sentences."""
    chances = [0.0] * (1 + SYMBOLS)
    for sentence, probability in sentences.items():
        if sentence[: len(prefix)] == prefix:
            chances[0 if sentence == prefix else 1 + sentence[len(prefix)]] += probability
    return [chance / sum(chances) for chance in chances]


def check_distribution(task: Grammar, inputs: list[int], exact: list[list[float]], sentences: Language) -> None:
    """Compare the probabilities after each of the last tokens with those of the list of sentences."""
    first, prefix, start = task.words.first("letters"), (), task.length - len(exact)
    for position, token in enumerate(inputs[: task.length]):
        prefix = () if token == SEP else (*prefix, token - first)
        if position >= start:
            expected = next_tokens(sentences, prefix)
            found = exact[position - start]
            assert [found[SEP], *found[first : first + SYMBOLS]] == pytest.approx(expected, abs=1e-12)
            assert sum(found) == pytest.approx(1, abs=1e-12)


def by_symbol(codes: torch.Tensor) -> list[list[list[str]]]:
    """Spell the rules of one grammar, [levels, symbols, rules], by level and symbol."""
    return [[[spell_rule(code) for code in sides if code >= 0] for sides in level] for level in codes.tolist()]


@pytest.mark.parametrize("rules", [3, 4])
def test_distribution_is_that_of_the_list_of_all_sentences(draw, rules):
    task, cell, batch = draw(f"grammar:depth=2,length=40,rules={rules},seed=3", 4)
    exact = task.distribution(batch.inputs, batch.positions, cell)
    own = by_symbol(task._own_rules(batch.inputs, 2).codes[0])
    assert {len(sides) for level in own for sides in level} <= {rules - 1, rules}
    sentences = language(own)
    assert sum(sentences.values()) == pytest.approx(1)
    for inputs, found in zip(batch.inputs.tolist(), exact.tolist(), strict=True):
        check_distribution(task, inputs, found, sentences)


def test_a_fresh_grammar_is_the_one_that_is_written(draw):
    """The rules after the sentences are those of the root and then of each symbol, without repeats."""
    task, cell, batch = draw("grammar:grammar=fresh,depth=2,length=30", 6)
    exact = task.distribution(batch.inputs, batch.positions, cell)
    grammars = set()
    for inputs, found in zip(batch.inputs.tolist(), exact.tolist(), strict=True):
        written = [inputs[i : i + task.rules] for i in range(task.length, len(inputs), task.rules)]
        sides = [[task.spell(token) for token in own if token != PAD] for own in written]
        assert all(len(set(own)) == len(own) in (3, 4) for own in sides)
        check_distribution(task, inputs, found, language([sides[:1], sides[1:]]))
        grammars.add(str(sides))
    assert len(grammars) == 6


@pytest.mark.parametrize("spec", ["depth=3", "depth=3,grammar=fresh", "depth=4,length=40"])
def test_tokens_come_as_often_as_they_should(draw, spec):
    """Over all scored positions the counts of bars and letters are sums of their probabilities, within five sigma."""
    task, cell, batch = draw(f"grammar:{spec}", 20)
    exact = task.distribution(batch.inputs, batch.positions, cell)
    assert (exact.gather(-1, batch.targets[..., None]) > 0).all()
    counts = torch.bincount(batch.targets.flatten(), minlength=task.vocabulary)
    variance = (exact * (1 - exact)).sum(dim=(0, 1))
    assert ((counts - exact.sum(dim=(0, 1))).abs() <= 5 * variance.sqrt() + 1e-9).all()


def test_sentences_are_rows_of_right_sides(draw):
    """A sentence of depth 2 is two or three right sides of rules, and groups count its tokens."""
    task, _, batch = draw("grammar:depth=2", 100)
    rules = by_symbol(task._own_rules(batch.inputs, 2).codes[0])
    sentences = language(rules)
    for inputs, groups in zip(batch.inputs.tolist(), batch.groups.tolist(), strict=True):
        whole = [tuple(map("abc".index, part.split())) for part in " ".join(map(task.spell, inputs)).split("|")[1:]]
        assert all(sentence in sentences for sentence in whole[:-1])
        places = [place for sentence in whole for place in range(1, len(sentence) + 2)]
        assert [place.bit_length() - 1 for place in places] == groups
        assert task.group_label(groups[-1]).startswith("token")


def test_floors_rise_with_their_contexts(draw):
    task, cell, batch = draw("grammar:depth=3", 100)
    floors = measured_floors(task, cell, batch)
    assert 0.6 < floors["bigram"] < floors["four-gram"] < floors["seven-gram"] < 0.95
