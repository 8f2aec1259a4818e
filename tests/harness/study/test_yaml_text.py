"""The bytes and the YAML of a study file from anyone: refused in one line, within a second, or plain data."""

import os
import time
from pathlib import Path

import pytest

from icl_bench.errors import SpecError
from icl_bench.harness.study.yaml_text import LARGEST_STUDY, parse_yaml, read_study_text

FULL = LARGEST_STUDY - 100
EXCESS = {
    "wide list": "a: [" + "1," * (FULL // 2) + "]",
    "wide mapping": "".join(f"k{i}: 1\n" for i in range(6000)),
    "many keys that are lists": "".join(f"? [{i}]\n: 1\n" for i in range(3000)),
    "deep list": "[" * FULL,
    "deep mapping": "{a: " * (FULL // 4),
    "deep block": "- " * (FULL // 2),
    "deep keys": "? " * (FULL // 2),
    "deep indentation": "".join(" " * i + "a:\n" for i in range(300)),
    "decimal": "name: " + "9" * 5000,
    "hexadecimal": "name: 0x" + "f" * 5000,
    "octal": "name: 0" + "7" * 5000,
    "binary": "name: 0b" + "1" * 5000,
    "base 60": "name: 1:" + ":".join(["59"] * 3000),
    "fraction in base 60": "name: 1:" + ":".join(["59"] * 3000) + ".5",
    "separated digits": "name: " + "1_" * 3000,
    "fraction": "name: " + "9" * 5000 + ".5",
    "too long": "a: " + "x" * LARGEST_STUDY,
}
LONG = ["x" * FULL, "a: " + "'" * FULL, "a: >\n" + " x\n" * (FULL // 3), "#\n" * (FULL // 2), "a: |\n" + "\n" * FULL]
REFUSED = [
    "a: !!binary YQ==", "a: !!set {b}", "a: !!omap [b: 1]", "a: !!pairs [[b, c]]", "a: !!timestamp 2001-01-01",
    "a: !x b", "a: !!python/object/apply:os.system [touch made]", "a: &x 1\nb: *x", "a: 1\na: 2", "a: {b: 1, b: 2}",
    "<<: [1, 2]", "? [a]\n: b", "--- a\n--- b", "1: 2", "null", "- 1", "", "\t", "a: \x00", "a: \ud800",
    "%YAML 9.9\n---\n",
]  # fmt: skip


def refusal(text: str) -> str:
    with pytest.raises(SpecError) as raised:
        parse_yaml(text, "s.yaml")
    assert "\n" not in str(raised.value) and "s.yaml" in str(raised.value) and len(str(raised.value)) < 500
    return str(raised.value)


@pytest.mark.parametrize("text", EXCESS.values(), ids=EXCESS)
def test_excess_is_refused_within_a_second(text: str) -> None:
    started = time.process_time()
    refusal(text)
    assert time.process_time() - started < 1


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_no_plain_mapping_is_refused(text: str) -> None:
    refusal(text)


@pytest.mark.parametrize("text", LONG)
def test_long_scalars_take_no_time(text: str) -> None:
    started = time.process_time()
    try:
        parse_yaml(text, "s.yaml")
    except SpecError as error:
        assert "\n" not in str(error)
    assert time.process_time() - started < 1


def test_the_forms_of_scalars_are_plain_values() -> None:
    plain = parse_yaml("a: 2001-01-01\nb: 2001-13-45\nc: 0x10\nd: 1_000\ne: .inf\nf: ~\ng: yes\nh: 'x'\ni: 1.5\n", "s")
    values = ["2001-01-01", "2001-13-45", 16, 1000, float("inf"), None, True, "x", 1.5]
    assert list(plain.values()) == values


def test_a_study_is_read_in_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_bytes("question: \u00e9\n".encode())
    assert read_study_text(path) == "question: \u00e9\n"
    path.write_bytes(b"\xff")
    with pytest.raises(SpecError, match=r"s\.yaml: it is no text in UTF-8"):
        read_study_text(path)


def test_what_is_no_regular_file_is_refused_unread(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "zeros.yaml").symlink_to("/dev/zero")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    for name in ("pipe.yaml", "zeros.yaml", "folder.yaml", "loop.yaml", "nothing.yaml", "n\x00l.yaml", "x" * 300):
        with pytest.raises(SpecError, match="a study is a YAML file that can be read; "):
            read_study_text(tmp_path / name)


def test_of_a_huge_file_no_more_than_the_limit_is_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.yaml"
    with path.open("wb") as file:
        file.truncate(8 << 30)
    started = time.process_time()
    text = read_study_text(path)
    assert len(text) == LARGEST_STUDY + 1 and time.process_time() - started < 1
    assert "a study file has at most 65536 bytes" in refusal(text)
