"""Code from outside the package: digests of its source, and the guard around its calls."""

import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from icl_bench.errors import OutsideCodeError
from icl_bench.outside import StopRequest, exits_refused, guarded, is_outside, module_sources, source_digest

MAIN = "import json, torch\nfrom helper import f\nimport lazily.inner\nclass Mine: pass\ndef g():\n    import late\n"
FILES = {
    "helper.py": "import second\nf = 1\n",
    "second.py": "import helper\n",
    "late.py": "",
    "lazily/__init__.py": "",
    "lazily/inner.py": "from . import sibling\nimport helper\n",
    "lazily/sibling.py": "",
    "unused.py": "import json\n",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name, text in {"digested.py": MAIN, **FILES}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def digest() -> str:
    for name in ("digested", "helper", "second", "lazily", "lazily.inner", "lazily.sibling", "late"):
        sys.modules.pop(name, None)
    importlib.invalidate_caches()
    return source_digest("digested", importlib.import_module("digested").Mine)


def test_a_source_is_the_file_of_a_module_and_all_that_it_imports_beside_it(folder) -> None:
    found = module_sources("digested", folder / "digested.py")
    assert set(found) == {"digested.py", *FILES} - {"unused.py"}


def test_a_layer_of_torch_is_told_by_its_own_file() -> None:
    assert set(module_sources("torch.nn.modules.linear", Path(torch.nn.modules.linear.__file__))) == {
        "torch/nn/modules/linear.py"
    }


@pytest.mark.parametrize("name", ["digested.py", "second.py", "late.py", "lazily/sibling.py"])
def test_an_edited_file_gives_another_digest(folder, name: str) -> None:
    before = digest()
    (folder / name).write_text((folder / name).read_text() + "# edited\n")
    assert digest() != before


def test_the_same_source_has_the_same_digest_anywhere(folder, tmp_path_factory, monkeypatch) -> None:
    before = digest()
    (folder / "unused.py").write_text("edited")
    (folder / "digested.py").write_bytes(MAIN.replace("\n", "\r\n").encode())
    assert digest() == before and len(before) == 16
    other = tmp_path_factory.mktemp("elsewhere") / "copy"
    folder.rename(other)
    monkeypatch.syspath_prepend(other)
    assert digest() == before


def test_a_module_that_goes_on_running_keeps_its_digest(folder) -> None:
    before = digest()
    (folder / "digested.py").write_text("other = 1\n")
    assert source_digest("digested", None) == before


def test_packages_that_are_installed_count_their_own_modules_alone() -> None:
    found = module_sources("pydantic.main", Path(str(importlib.import_module("pydantic.main").__file__)))
    assert "pydantic/fields.py" in found and not [name for name in found if not name.startswith("pydantic/")]


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("raise ValueError('no\\nmore')", r"it failed: ValueError: no \(.*test_outside.py, line \d+\); mend it"),
        ("sys.exit(0)", "it failed: SystemExit: 0"),
        ("raise KeyboardInterrupt", "it failed: KeyboardInterrupt"),
        ("raise BaseException", "it failed: BaseException"),
        ("os._exit(0)", "it failed: SystemExit: 0"),
    ],
)
def test_whatever_is_raised_is_one_line_with_its_place(code: str, text: str, monkeypatch) -> None:
    monkeypatch.setattr("icl_bench.outside.signal.getsignal", lambda number: None)  # as a command handles signals
    with pytest.raises(OutsideCodeError, match=text) as caught, exits_refused(), guarded("it failed"):
        exec(code)
    assert "\n" not in str(caught.value) and "Traceback" in caught.value.trace


@pytest.mark.parametrize("error", [StopRequest, KeyboardInterrupt])
def test_a_request_of_the_user_to_stop_goes_through(error: type[BaseException]) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a process in the background may lack
    try:
        with pytest.raises(error), guarded("it failed"):
            raise error
    finally:
        signal.signal(signal.SIGINT, before)


def test_output_and_settings_stay_what_they_were(capsys) -> None:
    threads = torch.get_num_threads()
    with guarded("it failed"):
        print("noise")  # noqa: T201
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(threads + 1)
        torch.set_default_device("meta")
        torch.use_deterministic_algorithms(True)
    assert torch.is_grad_enabled() and torch.get_num_threads() == threads and torch.ones(1).device.type == "cpu"
    assert torch.ones(1).dtype == torch.float32 and not torch.are_deterministic_algorithms_enabled()
    assert capsys.readouterr() == ("", "noise\n")


FORK = """
import os, sys
from icl_bench.outside import guarded
with guarded("it failed"):
    os.fork()
print("once", flush=True)
os.wait()
"""


def test_a_copy_of_the_process_ends_where_the_code_does() -> None:
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "once\n"


def test_classes_of_the_package_are_inside() -> None:
    assert is_outside(Case) and not is_outside(OutsideCodeError) and is_outside(os.getpid)


class Case:
    pass
