"""One concept, one file, one name; nothing grows too long; `--help` stays light; the commands do not change unseen."""

import ast
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import typer

from icl_bench import errors
from icl_bench.architectures import ARCHITECTURES
from icl_bench.cli import app
from icl_bench.tasks import TASKS

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "icl_bench").rglob("*.py"))
OWN_FILES = [*SOURCES, *sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "docs").glob("*.py"))]
LONGEST_FILE = 400
HELP_LOOPS = 8.5
"""Most processor time of a help text, in loops of `LIGHT`: .4 s where one takes .047 s, on a core of its own."""
HEAVY = {"torch", "triton", "numpy", "scipy", "matplotlib", "yaml", "safetensors"}
SECONDS_TO_LOAD = {"torch._dynamo", "torch._inductor", "torch.distributed.fsdp", "sympy", "scipy.stats", "matplotlib"}
"""Modules that take half a second or more each, of which a run needs none."""
COMMANDS = [
    "quickstart", "run", "compare", "sweep", "studies", "report", "view", "samples", "verify", "tasks", "archs",
    "plugins", "show", "state", "check-arch", "check-task", "validate", "doctor", "merge",
    "corpus", "kernels", "runs",
]  # fmt: skip
DRAWS_GLOBALLY = {"icl_bench/architectures/plain.py", "icl_bench/architectures/causality.py"}
"""A layer of one's own draws its parameters as its class does, and its dropout, under a seed of torch."""
OWN_GENERATORS = {"icl_bench/kernels/measurement/problem.py", "icl_bench/kernels/measurement/check.py"}
"""Inputs to check kernels on, drawn from a generator of torch; no run sees them."""

SUITES = {
    "architectures/attention_variants", "architectures/canon", "architectures/contract", "architectures/fla_layers",
    "architectures/fla_recurrences",
    "architectures/families",
    "architectures/learning", "architectures/recurrences", "architectures/state_spaces", "harness/crashes",
    "harness/engines/contract",
    "harness/training/continuous", "harness/training/free_running", "harness/training/fused_path",
    "harness/training/commands_on_gpu", "harness/training/gpu", "harness/training/mixers_on_gpu",
    "harness/training/plain_loop", "harness/training/stop", "harness/training/untrained",
    "kernels/launches", "kernels/gpu/attention_triton",
    "kernels/gpu/delta_triton", "kernels/gpu/extremes", "kernels/gpu/fused_step", "kernels/gpu/kept_launches",
    "kernels/gpu/long_convolution_triton", "kernels/gpu/plain_forms", "kernels/gpu/power_triton",
    "kernels/gpu/power_walk", "kernels/gpu/scan_triton", "kernels/gpu/spectrum_triton", "gpu_memory",
    "reports/parts/figures",
    "reports/parts/tables", "runs/store/store_machine", "tasks/contract", "tasks/parameters", "docs", "fuzz",
    "hostile_text", "site", "language", "layout", "own_layer", "plugin", "security", "surroundings",
}  # fmt: skip
"""Test files for what several modules do together; every other test file has the path of the module that it tests."""

GROUP = typer.main.get_command(app)


def file_name(name: str) -> str:
    return name.replace("-", "_") + ".py"


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("name", list(TASKS))
def test_a_task_has_the_file_and_the_test_file_of_its_name(name: str) -> None:
    assert inspect.getfile(TASKS[name]) == str(ROOT / "icl_bench" / "tasks" / file_name(name))
    assert (ROOT / "tests" / "tasks" / f"test_{file_name(name)}").is_file()


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_an_architecture_has_the_file_of_its_name(name: str) -> None:
    assert inspect.getfile(ARCHITECTURES[name]) == str(ROOT / "icl_bench" / "architectures" / file_name(name))


@pytest.mark.parametrize("folder", ["tasks", "architectures"])
def test_no_file_without_a_name(folder: str) -> None:
    registry = {"tasks": TASKS, "architectures": ARCHITECTURES}[folder]
    shared = {
        "tasks": ["base", "cells", "continuous", "dilution", "ngrams", "sampling", "versions", "vocabulary"],
        "architectures": [
            *(
                "base",
                "backbone",
                "causality",
                "decays",
                "deltas",
                "filling",
                "frame",
                "heads",
                "initialisation",
                "interface",
                "layers",
                "outputs",
            ),
            *("fla_layer", "joined", "plain", "rotation", "spectrum", "sums", "token_shift"),
        ],
    }[folder]
    files = {path.name for path in (ROOT / "icl_bench" / folder).glob("*.py")} - {f"{stem}.py" for stem in shared}
    assert files == {"__init__.py", *(file_name(name) for name in registry)}


def test_tests_mirror_the_package() -> None:
    tests = [path.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")]
    names = {
        (path.parent / path.stem.removeprefix("test_")).as_posix() for path in tests if path.parts[0] != "benchmarks"
    }
    modules = {path.relative_to(ROOT / "icl_bench").with_suffix("").as_posix() for path in SOURCES}
    modules |= {
        path.parent.relative_to(ROOT / "icl_bench").as_posix() for path in SOURCES if path.name == "__init__.py"
    }
    assert names - modules == SUITES


def offences(find: Callable[[Path, str], object], paths: Sequence[Path] = SOURCES) -> dict[str, object]:
    """Return what is found in the text of a file, by file, where it is anything."""
    found = {relative(path): find(path, path.read_text()) for path in paths}
    return {name: offence for name, offence in found.items() if offence}


def test_no_file_is_too_long() -> None:
    assert offences(lambda path, text: max(0, len(text.splitlines()) - LONGEST_FILE), OWN_FILES) == {}


def test_no_global_random_state() -> None:
    seeds = re.compile(r"(torch|cuda|random)\.(manual_)?seed\(")
    assert set(offences(lambda path, text: seeds.search(text))) <= DRAWS_GLOBALLY
    assert set(offences(lambda path, text: "manual_seed(" in text)) <= DRAWS_GLOBALLY | OWN_GENERATORS


def test_no_keyword_catch_all_in_a_public_signature() -> None:
    def catch_alls(path: Path, text: str) -> list[str]:
        functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
        return [node.name for node in functions if not node.name.startswith("_") and node.args.kwarg]

    assert offences(catch_alls) == {}


def test_text_reaches_a_terminal_through_its_doors_alone() -> None:
    doors = {"output": r"\becho\(|std(out|err)\.write\(|write_text\(sys\.", "console": r"(?<!\w)Console\("}

    def others(path: Path, text: str) -> list[str]:
        return [door for door, call in doors.items() if path.stem != door and re.search(call, text)]

    assert offences(others) == {}


def test_no_path_of_a_machine() -> None:
    assert offences(lambda path, text: re.findall(r"[\"']/(?!proc/|sys/)\w+/", text)) == {}


def test_every_error_is_raised_somewhere() -> None:
    text = "\n".join(path.read_text() for path in SOURCES if path.name != "errors.py")
    classes = {name for name, value in vars(errors).items() if isinstance(value, type)} - {"IclBenchError"}
    assert {name for name in classes if not re.search(rf"\b{name}\(", text)} == set()


def test_every_error_is_one_that_the_user_can_mend() -> None:
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    assert all(issubclass(error, errors.IclBenchError) and error.__doc__ for error in classes)


def test_commands_are_those_published() -> None:
    assert list(GROUP.commands) == COMMANDS


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_says_what_it_is_for(name: str) -> None:
    command = GROUP.commands[name]
    assert command.help and command.help.splitlines()[0].endswith(".")
    assert all(parameter.help for parameter in command.params if parameter.name != "help")


LIGHT = """
import json, resource, sys, time
sys.argv = ["icl-bench", {arguments}]
from icl_bench.cli import main
try:
    main()
except SystemExit as exit_:
    assert exit_.code in (0, None), exit_.code
used = resource.getrusage(resource.RUSAGE_SELF)
started = time.process_time()
sum(i * i for i in range(10**6))
loops = (used.ru_utime + used.ru_stime) / (time.process_time() - started)
print(json.dumps([sorted(sys.modules), loops]), file=sys.stderr)
"""


def loaded_and_loops(arguments: str, folder: Path | None = None) -> tuple[set[str], float]:
    """Run a command in a process of its own; return the modules it loads and its processor time in loops of `LIGHT`."""
    code = LIGHT.format(arguments=arguments)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    loaded, loops = json.loads(done.stderr.splitlines()[-1])
    return set(loaded), loops


@pytest.mark.parametrize("arguments", ['"--help"', '"run", "--help"', '"--version"'])
def test_help_is_light(arguments: str) -> None:
    """Processor time counts, the least of three runs, in loops, as both double where another thread shares the core."""
    loaded, loops = loaded_and_loops(arguments)
    assert HEAVY & loaded == set()
    assert "pydantic" not in loaded or arguments != '"--help"'  # typer itself loads it to read the options of a command
    others = (loaded_and_loops(arguments)[1] for _ in range(2))
    assert loops < HELP_LOOPS or min(others) < HELP_LOOPS


def test_a_run_loads_no_module_that_takes_long(tmp_path: Path) -> None:
    tiny = ["train.steps=1", "evaluation.points=1", "evaluation.validation=2", "evaluation.examples=2"]
    arguments = ["run", "assoc-recall:pairs=4", "--arch", "power:p=2", "--arch", "softmax", "--seeds", "0..1"]
    arguments += ["--device", "cpu", *(part for setting in tiny for part in ("--set", setting))]
    for _ in ("trained", "found in the store"):
        loaded, _ = loaded_and_loops(json.dumps(arguments)[1:-1], tmp_path)
        assert "torch" in loaded and SECONDS_TO_LOAD & loaded == set()
