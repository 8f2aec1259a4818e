"""The pages name everything there is, their links lead somewhere, and the code fences of commands are ones that run.

That the generated parts are fresh is checked by `make lint`; that the examples hold, by the root `conftest.py`.
"""

import re
import tomllib
from pathlib import Path

import pytest
import typer

from docs import pages, pictures, validation
from icl_bench.architectures import ARCHITECTURES
from icl_bench.cli import app
from icl_bench.harness.validation.gate import names_answers
from icl_bench.runs import record, spec
from icl_bench.schema import Frozen, field_descriptions
from icl_bench.tasks import TASKS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
COMMANDS = typer.main.get_command(app).commands


def headings(path: Path) -> list[str]:
    return re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text()), re.MULTILINE)


def anchor(heading: str) -> str:
    """As GitHub makes it: lower case, spaces to hyphens, other signs dropped."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize(
    ("page", "names"), [("tasks.md", TASKS), ("architectures.md", ARCHITECTURES), ("cli.md", COMMANDS)]
)
def test_everything_has_its_heading(page: str, names) -> None:
    assert set(names) <= set(headings(ROOT / "docs" / page))


@pytest.mark.parametrize("name", list(TASKS))
def test_the_budget_of_a_task_is_on_its_page(name: str) -> None:
    assert pages.budget(name, TASKS[name].budget) in (ROOT / "docs" / "tasks.md").read_text()


def test_every_record_has_its_heading() -> None:
    found = headings(ROOT / "docs" / "records.md")
    stored = {record.RunResult, record.CellScore, record.GroupScore, record.StateReport, record.WorkReport}
    stored |= {record.Manifest, record.MetricPoint, spec.RunSpec, spec.Component, spec.ModelSpec, spec.TrainSpec}
    assert {model.__name__ for model in stored | {spec.EvalSpec}} <= set(found)


@pytest.mark.parametrize("report", sorted((ROOT / "docs" / "studies").glob("*-*.md")), ids=lambda path: path.stem)
def test_a_published_report_ends_with_a_command_that_trains_it_elsewhere(report: Path) -> None:
    command = report.read_text().rpartition("```sh\n")[2].partition("\n")[0]
    assert re.fullmatch(rf"icl-bench sweep {report.stem}( --(parts|device|report) [\w,./-]+)*", command)


@pytest.mark.parametrize("module", [record, spec])
def test_every_field_of_a_record_is_described(module) -> None:
    models = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, Frozen)]
    missing = [
        f"{model.__name__}.{name}"
        for model in models
        for name in model.model_fields.keys() - field_descriptions(model).keys()
    ]
    assert missing == []


@pytest.mark.parametrize("registry", [TASKS, ARCHITECTURES], ids=["tasks", "architectures"])
def test_every_parameter_is_described(registry) -> None:
    missing = [
        f"{name}.{parameter}"
        for name in registry
        for parameter in registry[name].model_fields.keys() - field_descriptions(registry[name]).keys()
    ]
    assert missing == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target, section in LINK.findall(FENCE.sub("", path.read_text())):
        page = path.parent / target if target else path
        assert page.exists(), f"{path.name} links to {target}"
        if section:
            assert section in map(anchor, headings(page)), f"{path.name} links to {target}#{section}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_lines_of_prose_are_short(path: Path) -> None:
    prose = FENCE.sub("", path.read_text()).splitlines()
    assert [line for line in prose if len(line) > 120 and not line.startswith(("|", "!", "* `"))] == []
    assert "<" * 7 not in path.read_text(), "an unfinished merge"


@pytest.mark.parametrize("name", list(TASKS))
def test_pictures_are_those_of_the_code(name: str) -> None:
    """Written by `make docs`."""
    assert (pictures.FOLDER / f"{name}.svg").read_text() == pictures.picture(name)


def test_the_picture_of_states_is_that_of_the_code() -> None:
    """Written by `make docs`."""
    assert pictures.STATE_PICTURE.read_text() == pictures.state_picture()


def test_the_picture_of_validation_is_that_of_its_results() -> None:
    """Written by `make docs`."""
    assert validation.PICTURE.read_text() == validation.picture()


def test_the_committed_validation_has_every_task_and_no_solver_above_a_floor() -> None:
    found = validation.load()
    named = {name for name in TASKS if names_answers(TASKS[name]())}
    assert found["ok"] and named <= {task["task"] for task in found["tasks"]}


def test_readme_begins_with_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text()
    assert text.index("make quickstart") < text.index("make test") < text.index("## ")
    assert len(re.findall(r"!\[", text)) == 1


def test_commands_in_shell_blocks_are_targets_of_make() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in PAGES:
        assert set(re.findall(r"^make ([a-z-]+)", path.read_text(), re.MULTILINE)) <= targets, path.name


def test_changelog_begins_with_what_is_unreleased() -> None:
    assert headings(ROOT / "CHANGELOG.md")[1] == "Unreleased"


def test_the_wheel_says_its_types_and_licence() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["license"] == "Apache-2.0 AND ISC AND MIT"  # of the libraries of the explorer too
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert (ROOT / "icl_bench" / "py.typed").is_file()


def test_an_index_learns_what_the_package_is() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["authors"] and project["keywords"] and "Typing :: Typed" in project["classifiers"]
    extras = dict(project["optional-dependencies"])
    (everything,) = extras.pop("all")
    assert everything == f"icl-bench[{','.join(extras)}]"
