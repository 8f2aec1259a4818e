from icl_bench.tasks.vocabulary import PAD, SEP, Alphabet, Vocabulary, letters, numbered, spell_components


def test_alphabets_follow_each_other_from_the_reserved_ids_on():
    words = Vocabulary({"noise": 16, "names": numbered("x", 4), "digits": Alphabet(10, str)})
    assert [words.first(name) for name in ("noise", "names", "digits")] == [16, 32, 36]
    assert words.size == 46
    assert [words.spell(token) for token in (16, 31, 32, 36, 45)] == ["n0", "n15", "x0", "0", "9"]


def test_special_tokens_are_spelled_by_signs_and_others_by_number():
    words = Vocabulary({"letters": letters(3)}, special={5: "=", SEP: "/"})
    assert [words.spell(token) for token in (PAD, SEP, 5, 6, 16, 18)] == ["·", "/", "=", "6", "a", "c"]


def test_alphabets_may_take_the_ids_of_special_tokens():
    words = Vocabulary({"keys": 3, "values": 4}, start=1)
    assert (words.size, words.spell(0), words.spell(1), words.spell(4)) == (8, "·", "k0", "v0")


def test_more_than_26_letters_are_numbered():
    assert (letters(26).spell(25), letters(27).spell(25)) == ("z", "s25")


def test_long_vectors_are_cut():
    assert spell_components([0.12, -1.0, 2.0]) == "0.1,-1.0,2.0"
    assert spell_components([0.12, -1.0, 2.0, 3.0]) == "0.1,-1.0,2.0,…"
