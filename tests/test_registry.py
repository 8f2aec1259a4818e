"""Registries: names, summaries, plug-ins."""

import importlib.metadata

import pytest

from icl_bench import registry
from icl_bench.errors import DuplicateNameError, SpecError, UnknownNameError
from icl_bench.registry import PLUGIN_ALLOW_LIST, Registry, load_plugins


class Thing:
    """A thing.

    More about it.
    """


class Bare(Thing):
    pass


def filled() -> Registry[type]:
    things: Registry[type] = Registry("thing")
    things.register("some-thing")(Thing)
    return things


def test_a_registered_class_is_found_unchanged() -> None:
    things = filled()
    assert things["some-thing"] is Thing and list(things) == ["some-thing"]
    assert things.summary("some-thing") == "A thing." and things.name_of(Thing) == "some-thing"


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(
        UnknownNameError, match=r"no thing is named 'som-thing'; did you mean 'some-thing'\? known: some-thing"
    ):
        filled()["som-thing"]


def test_a_taken_name_is_refused_saying_by_whom() -> None:
    with pytest.raises(
        DuplicateNameError, match=r"every thing has its own name; .*test_registry has 'some-thing'; choose another"
    ):
        filled().register("some-thing")(Bare)


def test_a_docstring_of_its_own_is_needed() -> None:
    with pytest.raises(SpecError, match="every thing has a docstring; Bare has none"):
        filled().register("bare")(Bare)


@pytest.mark.parametrize("name", ["Big", "a/b", "..", ""])
def test_names_follow_the_grammar(name: str) -> None:
    with pytest.raises(SpecError, match="a name is lower-case letters, digits and hyphens"):
        filled().register(name)(Thing)


def test_an_unregistered_class_has_no_name() -> None:
    with pytest.raises(UnknownNameError, match="Bare is not a registered thing"):
        filled().name_of(Bare)


def test_plugins_load_and_failures_are_told(monkeypatch) -> None:
    points = [
        importlib.metadata.EntryPoint("good", "json:dumps", "icl_bench"),
        importlib.metadata.EntryPoint("bad", "no_such_module:x", "icl_bench"),
    ]
    monkeypatch.setattr(registry.importlib.metadata, "entry_points", lambda group: points)
    good, bad = load_plugins()
    assert good.error is None and bad.error == "ModuleNotFoundError: No module named 'no_such_module'"
    monkeypatch.setenv(PLUGIN_ALLOW_LIST, "good")
    assert [plugin.name for plugin in load_plugins()] == ["good"]


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("import sys; sys.exit(0)", "SystemExit: 0"),
        ("import os; os._exit(0)", "SystemExit: 0"),
        ("x = (", "SyntaxError: '(' was never closed"),
        ("print('noise'); 1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
def test_an_installed_plugin_that_ends_at_its_import_is_told(tmp_path, monkeypatch, capsys, source, error) -> None:
    (tmp_path / "ends_at_import.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("icl_bench.outside.signal.getsignal", lambda number: None)  # as a command handles signals
    points = [importlib.metadata.EntryPoint("ends", "ends_at_import:x", "icl_bench"),
              importlib.metadata.EntryPoint("good", "json:dumps", "icl_bench")]  # fmt: skip
    monkeypatch.setattr(registry.importlib.metadata, "entry_points", lambda group: points)
    ended, good = load_plugins()
    assert ended.error is not None and ended.error.startswith(f"{error} (") and good.error is None
    assert ended.error.endswith("ends_at_import.py, line 1)") and "\n" not in ended.error
    assert capsys.readouterr().out == ""
